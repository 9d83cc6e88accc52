"""`canal merge`: two lineages on one basis become one version with two parents, their sums added up.

One of both is a stage of params.yaml, which gets a new branch with the sums of both; the other is any version
of the registry, or a bundle of `canal share`. Whole numbers add up exactly, so the result is what one lineage
has that learned from the cells of both.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from canal.app.backfilling import lock_writer
from canal.app.common_cells import OVERLAPS as OVERLAPS
from canal.app.common_cells import Overlap as Overlap
from canal.app.common_cells import without_common
from canal.app.lineage_sides import Other, Own, made_already, read_type_names, require_same, sides
from canal.app.project import Project
from canal.app.remaking import (
    alone,
    copy_split,
    kept_facts,
    register,
    scratch_project,
    state_before,
    take_over,
    validation_cells,
    write_backbone,
    write_version,
)
from canal.app.sharing import OverlapKey as OverlapKey
from canal.config.branches import with_merge
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.config.yaml_file import parse
from canal.continual.bank import BANK, PROBE, Bank, Probe, cut
from canal.continual.cells import LabelledCells
from canal.continual.stage import ExactTask, StageArtifacts, backfilled, finish_exact
from canal.core.errors import HistoryError
from canal.core.files import read_json
from canal.memory.joining import Meaning, all_sums, joined, meanings, with_names
from canal.memory.stage_sums import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model.annotator import GENES, LABELS
from canal.model.storage import read_names
from canal.registry.manifest.stage_request import request_facts
from canal.registry.promotion.promotion import Decision as Decision

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Joining:
    """What is to be merged, and how.

    Attributes
    ----------
    first, second : str
        Versions by number, alias or stage's name; one may be a bundle of `canal share`.
    names : Path or None
        A table of the other's cell types: their name, our name.
    same : tuple of str
        Types that are the same though their centroids are far apart.
    overlap : Overlap
        Whether common cells are refused, or left out of what is added.
    network : str or None
        The version of params.yaml whose network is kept beside the sums.
    """

    first: str
    second: str
    names: Path | None = None
    same: tuple[str, ...] = ()
    overlap: Overlap = field(default_factory=Overlap)
    network: str | None = None


@dataclass(frozen=True)
class Joined:
    """The result of a merge.

    Attributes
    ----------
    stage, version : str, int or None
        The stage of the merged version, and its number (None in a dry run).
    own, other : str
        What was merged.
    basis, sums : str
        Digests of the basis, and of all sums together.
    cells : dict
        Stage -> number of cells in the sums.
    new_types, uncalibrated : tuple of str
        Types that only the other lineage has, and those without validation cells here.
    overlap : dict
        How common cells were looked for, and how many were left out.
    meanings : dict
        Type of both lineages -> how far its centroids are apart.
    equals : str
        What the sums equal.
    lacking : tuple of str
        Types without any sum, which only a network knew.
    network : bool
        Whether a network is kept.
    released : dict or None
        Of a bundle: under how many cells types were left out, and which.
    """

    stage: str
    version: int | None
    own: str
    other: str
    basis: str
    sums: str
    cells: dict[str, int]
    new_types: tuple[str, ...]
    uncalibrated: tuple[str, ...]
    overlap: dict[str, Any]
    meanings: dict[str, Any]
    equals: str
    lacking: tuple[str, ...]
    network: bool
    released: dict[str, Any] | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class _Work:
    """Everything a merge has found out before it writes anything."""

    project: Project
    own: Own
    sums: StageSums
    facts: dict[str, Any]
    found: Mapping[str, Meaning]
    texts: tuple[str, str] = ("", "")
    wanted: Project | None = None
    labels: tuple[str, ...] = field(default=())


def merge(
    project: Project,
    joining: Joining,
    decision: Decision,
    notice: Notice = lambda message: None,
    dry_run: bool = False,
) -> Joined:
    """Register a version with the sums of two lineages, on a new branch of the one in params.yaml.

    Old versions stay as they are. A second call completes an interrupted one.

    Raises
    ------
    SumsError
        If the sums are of two bases or would grow beyond 64 bits, a name means other cells there, or cells
        are in both.
    HistoryError
        If neither is the newest version of a lineage in params.yaml, one keeps no sums, or common cells have
        to be subtracted whose prepared file is gone.
    """
    began = time.perf_counter()
    project.store.update_paths()
    if (done := made_already(project, (joining.first, joining.second))) is not None:
        made, own, other = done
        notice(f"version {made.version.number} has the sums of both already")
        labels = read_names(made.folder / "model", LABELS)
        work = _Work(project, own, made.sums, made.key["merged"], {}, labels=labels)
        return _result(work, other, made.version.number, time.perf_counter() - began)
    with alone(project, dry_run) as (current, before):
        own, other = sides(current, (joining.first, joining.second))
        if own.sums.basis.digest != other.sums.basis.digest:
            joined(own.sums, other.sums, {})
        work = _prepared(current, before, own, other, joining)
        number = None if dry_run else _write_and_register(work, decision, notice)
    return _result(work, other, number, time.perf_counter() - began)


def _prepared(project: Project, before: str, own: Own, other: Other, joining: Joining) -> _Work:
    """Return what is to be written, after all checks."""
    types = read_type_names(joining.names, other.sums.types)
    renamed = replace(other, sums=with_names(other.sums, types))
    rest, overlap = without_common(project, own, renamed, types, joining.overlap)
    found = meanings(own.sums, rest)
    require_same(found, joining.same, other.name)
    taken = {*project.config.stages, *own.sums.stages, BACKBONE}
    names = {
        stage: f"{stage[:55]}-{one.digest[:8]}" if stage in taken else stage
        for stage, one in rest.stages.items()
    }
    sums = joined(own.sums, rest, names)
    total = all_sums(sums).digest
    facts: dict[str, Any] = {
        "other": other.digest,
        "bundle": other.shared is not None,
        "sums": total,
        "stages": {name: {"named": stage, "sums": sums.stages[name].digest} for stage, name in names.items()},
        "names": types,
        "same": sorted(set(joining.same)),
        "overlap": overlap,
        "equals": "joint learning on what the sites released"
        if own.partly or other.partly
        else "joint learning of both lineages",
    }
    if other.shared is not None:
        facts["released"] = {"min_cells": other.shared.min_cells, "withheld": dict(other.shared.withheld)}
    labels = read_names(own.folder / "model", LABELS)
    labels = (*labels, *(name for name in sums.types if name not in labels))
    work = _Work(project, own, sums, facts, found, labels=labels)
    if joining.network is not None:
        facts["network"] = _network_of(project, own, joining.network)
    text, wanted = _asked_for(project, before, own.version.stage, facts)
    return replace(work, texts=(before, text), wanted=wanted)


def _asked_for(project: Project, text: str, stage: str, facts: Mapping[str, Any]) -> tuple[str, Project]:
    """Return params.yaml's text that asks for the merged version, on a branch that is free or its own."""
    earlier = project.config.stages[stage].merged
    merged = {
        "stages": [*(earlier.stages if earlier else ()), *facts["stages"]],
        "sums": facts["sums"],
        "other": facts["other"],
    }
    while True:
        text = with_merge(text, stage, merged, "network" in facts)
        wanted = Project(project.layout, parse(text))
        try:
            wanted.learned(stage)
        except HistoryError:  # an interrupted merge with another lineage has this branch
            continue
        return text, wanted


def _network_of(project: Project, own: Own, wanted: str) -> str:
    """Return the key of the version whose network is kept: that of the own lineage, if it has one."""
    if project.store.version(wanted).key != own.version.key:
        raise HistoryError(
            f"--network {wanted}: only the network of {own.name}, which the sums are added to, can be kept: "
            "the other's has other labels and no bank here"
        )
    if not (own.folder / BANK).is_file():
        raise HistoryError(f"--network {wanted}: {own.name} has no network: it answers by its sums alone")
    return own.version.key


# Writing the version.


def _write_and_register(work: _Work, decision: Decision, notice: Notice) -> int:
    wanted, stage = work.wanted, work.own.version.stage
    assert wanted is not None  # noqa: S101 - `_prepared` has set it
    with lock_writer(wanted.store, "call canal merge again") as commit:
        with scratch_project(work.project, wanted, "merge", copy_split) as scratch:
            if wanted.learned(BACKBONE) is None:
                write_backbone(work.project, scratch, {})
            if wanted.learned(stage) is None:
                notice(f"{stage}: solving the sums of both lineages, and measuring the version")
                _write_stage(work, scratch)
            register(wanted, scratch, decision)  # a kill may have left a version without an entry
        return take_over(wanted, work.texts, [stage], commit)[stage]


def _write_stage(work: _Work, scratch: Project) -> None:
    stage, folder, config = work.own.version.stage, work.own.folder, scratch.config
    genes = read_names(folder / "model", GENES)
    validation = validation_cells(scratch, stage, folder, genes).of_types(work.labels)
    state = state_before(scratch, stage, len(genes))
    batches = Sums.load(folder / OWN_BATCHES) if (folder / OWN_BATCHES).is_file() else None
    network = "network" in work.facts
    if network:
        artifacts = _with_network(work, validation, batches, config)
    else:
        task = ExactTask(work.labels, genes, validation, state, work.sums, batches)
        artifacts = finish_exact(stage, task, config)
    kept = kept_facts(work.own.key, network)
    facts = kept | request_facts(scratch.layout, config, stage) | {"merged": work.facts}
    write_version(scratch, stage, artifacts, folder, facts, work.own.version.key)


def _with_network(
    work: _Work, validation: LabelledCells, batches: Sums | None, config: Config
) -> StageArtifacts:
    """Return the own network combined with the sums of both; its bank has room for the new types."""
    folder, stage = work.own.folder, work.own.version.stage
    combined = backfilled(folder, stage, validation, work.sums, config, work.labels)
    bank = cut(Bank.load(folder / BANK, combined.genes), config.bank.capacity, len(work.labels))
    return StageArtifacts(
        annotator=combined,
        teacher=None,
        bank=bank,
        probe=Probe.load(folder / PROBE, combined.genes),
        history=read_json(folder / "history.json"),
        sums=work.sums,
        batches=batches,
    )


def _result(work: _Work, other: Other, number: int | None, seconds: float) -> Joined:
    validated = set()
    for split in work.own.splits.values():
        if split is not None:
            validated |= set(split["cell_type"][split["set"] == "validation"])
    before = set(work.own.sums.types)
    return Joined(
        stage=work.own.version.stage,
        version=number,
        own=work.own.name,
        other=other.name,
        basis=work.sums.basis.digest,
        sums=work.facts["sums"],
        cells={name: one.n_cells for name, one in work.sums.stages.items()},
        new_types=tuple(name for name in work.sums.types if name not in before),
        uncalibrated=tuple(name for name in work.sums.types if name not in validated),
        overlap=work.facts["overlap"],
        meanings={name: one.to_json() for name, one in work.found.items()},
        equals=work.facts["equals"],
        lacking=work.sums.lacking(work.labels),
        network="network" in work.facts,
        released=work.facts.get("released"),
        seconds=round(seconds, 2),
    )
