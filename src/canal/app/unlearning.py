"""`canal unlearn`: register versions without some cells, from the sums of what remains.

The sums of a stage are whole numbers, so the sums of the remaining cells are those of all cells minus those
of the withdrawn ones, byte for byte what a lineage without these cells has on the same basis. No network can
forget like this: the new versions answer by their sums alone.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.app.backfilling import STAGE_STEPS, lock_writer
from canal.app.declaring import LABELS_FILE
from canal.app.learning import evaluate_stage
from canal.app.pipeline import complete_params
from canal.app.project import Project
from canal.app.promoting import retire
from canal.app.versions import registry_sync
from canal.app.withdrawing import Remainder, Unlearned, basis_checks, remainder_of
from canal.app.withdrawing import Withdrawal as Withdrawal
from canal.app.withdrawing import read_names_of_cells as read_names_of_cells
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.config.yaml_file import parse, save, with_withdrawal, without_stages
from canal.continual.bank import PROBE, ParentState, Probe
from canal.continual.cells import LabelledCells
from canal.continual.evaluation import write_evaluation
from canal.continual.stage import ExactTask, finish_exact
from canal.core.digests import json_digest
from canal.core.errors import HistoryError
from canal.core.files import new_folder, read_json, write_json
from canal.data.split import SUMMED, write_split
from canal.memory.stage_sums import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model.annotator import GENES, LABELS
from canal.model.storage import read_names
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.manifest.stage_request import request_facts, sums_facts
from canal.registry.manifest.version_folder import Key, key_digest, write_key
from canal.registry.promotion.promotion import Decision as Decision
from canal.registry.store.database import Version
from canal.registry.versions.history import restore_file, restore_metrics, restore_model, verified
from canal.report.collect import write_scores

Notice = Callable[[str], None]

_KEPT_FACTS = ("stage", "data", "panel", "verdict")
_INPUTS = ("split", "validation")
_CALIBRATES = 20
"""Probe cells of a type that a statement on its confidence needs at least."""


@dataclass(frozen=True)
class _Work:
    """Everything an unlearning has found out before it writes anything."""

    project: Project
    wanted: Project
    text: str
    withdrawal: Withdrawal
    old: dict[str, Version]
    folders: dict[str, Path]
    keys: dict[str, Key]
    remainders: dict[str, Remainder] = field(default_factory=dict)


def unlearn(
    project: Project,
    withdrawal: Withdrawal,
    decision: Decision,
    notice: Notice = lambda message: None,
    dry_run: bool = False,
) -> Unlearned:
    """Register a version without the withdrawn cells for each stage that learned from them, and on.

    params.yaml excludes the cells, and names a new branch and the exact method for these stages; a later
    `make run` finds them learned. Old versions stay as they are. A second call completes an interrupted one.

    Raises
    ------
    HistoryError
        If no stage of the lineage learned from the cells, a stage keeps no sums, or sums of single cells need
        a prepared file that is gone.
    ConfigError
        If params.yaml is changed meanwhile.
    """
    began = time.perf_counter()
    project.store.settle()
    # Whoever waited for another unlearning here goes on from what that one has left in params.yaml.
    with project.store.lock("unlearn", needed=not dry_run):
        if not dry_run:
            complete_params(project.layout.params)
        text = project.layout.params.read_text(encoding="utf-8")
        work = _prepare(Project(project.layout, parse(text)), text, withdrawal)
        new: dict[str, int | None] = dict.fromkeys(work.old)
        if not dry_run:
            with lock_writer(project.layout, "call canal unlearn again") as commit:
                new |= _write_and_register(work, decision, notice)
                remade = [name for name in work.old if name in work.wanted.config.stages]
                commit(["split", *(f"{step}@{stage}" for stage in remade for step in STAGE_STEPS)])
            save(project.layout.params, work.text, text)
    n_cells, n_summed, digest = _counts(work)
    old = {version.key for version in work.old.values()}
    newest = list(work.old)[-1]
    known, still = _labels(work, newest), _new_sums(work, newest).types
    holding = [one for one in project.store.versions() if one.key in old and not one.retired]
    return Unlearned(
        source=withdrawal.source,
        n_cells=n_cells,
        n_summed=n_summed,
        withdrawn=digest,
        versions={name: {"before": old.number, "after": new[name]} for name, old in work.old.items()},
        lost_types=tuple(name for name in known if name not in still),
        not_calibrated=_not_calibrated(work, newest, still),
        basis=dict(basis_checks(work.project, work.folders, work.remainders)),
        holding=tuple(one.number for one in holding),
        champion=next((one.number for one in holding if CHAMPION in one.aliases), None),
        seconds=round(time.perf_counter() - began, 2),
    )


def _prepare(project: Project, before: str, withdrawal: Withdrawal) -> _Work:
    """Return the stages to make again, with what remains of the cells; nothing is written."""
    config, text = project.config, before
    if withdrawal.source not in config.sources:
        raise HistoryError(
            f"no source {withdrawal.source!r} in params.yaml; there are {', '.join(config.sources)}"
        )
    own = [name for name, one in config.stages.items() if one.source == withdrawal.source]
    learned = [name for name in own if project.learned(name) is not None]
    if not learned:
        raise HistoryError(
            f"no stage of params.yaml has learned from {withdrawal.source}: nothing to unlearn. Exclude the "
            f"cells with sources.{withdrawal.source}.exclude before it does"
        )
    touched = [name for name in config.stages if {*config.ancestors(name), name} & set(learned)]
    old = {name: version for name in touched if (version := project.learned(name)) is not None}
    if withdrawal.whole:
        _refuse_irremovable(project, own, touched)
        text = without_stages(text, own, [name for name in old if name not in own])
    else:
        names = sorted(id_.partition(":")[2] for id_ in withdrawal.ids)
        saw = [BACKBONE] if _backbone_saw(project, own) else []
        text = with_withdrawal(text, withdrawal.source, (names, withdrawal.batch), [*saw, *old])
    wanted = Project(project.layout, parse(text))
    found = {name: verified(project.store, version) for name, version in old.items()}
    folders = {name: folder for name, (folder, _) in found.items()}
    keys = {name: key for name, (_, key) in found.items()}
    work = _Work(project, wanted, text, withdrawal, old, folders, keys)
    for name in learned:
        work.remainders[name] = remainder_of(project, name, folders[name], withdrawal)
    return work


def _backbone_saw(project: Project, stages: Sequence[str]) -> bool:
    """Whether the backbone's request names cells of one of these stages."""
    return bool({project.config.root_stage, *project.config.backbone.extra_stages} & set(stages))


def _refuse_irremovable(project: Project, own: Sequence[str], touched: Sequence[str]) -> None:
    """Refuse to take out whole stages that the lineage starts with, or on which nothing was learned."""
    if _backbone_saw(project, own):
        raise HistoryError(
            f"the lineage starts with {' and '.join(own)}: panel and backbone are of its cells. Begin a new "
            "lineage without the source; `canal impact` lists what has learned from it"
        )
    if set(touched) <= set(own):
        parent = project.config.stages[own[0]].parent
        raise HistoryError(
            f"nothing was learned on {' and '.join(own)}, so what remains is the version of {parent}: "
            f"promote it, and `canal retire` those of {' and '.join(own)}"
        )


def _counts(work: _Work) -> tuple[int, int, str]:
    """Return the number of withdrawn cells, of those in sums, and the digest of their contents."""
    gone = [one.gone for one in work.remainders.values()]
    summed = sum(int(table["set"].isin(SUMMED).sum()) for table in gone)
    contents = {digest for table in gone for digest in table["cell_digest"]}
    return sum(map(len, gone)), summed, json_digest(sorted(contents))


def _new_sums(work: _Work, stage: str) -> StageSums:
    """Return the sums of a stage's new version: the old ones, with remainders where cells have left."""
    names = (*work.project.config.ancestors(stage), stage)
    old = StageSums.load(work.folders[stage], names)
    if old is None:
        raise HistoryError(
            f"{stage} keeps no sums, and a network cannot unlearn: `canal sums backfill {stage}` adds sums"
        )
    stages = {
        name: work.remainders[name].sums if name in work.remainders else sums
        for name, sums in old.stages.items()
    }
    kept = {name: sums for name, sums in stages.items() if sums is not None}
    return StageSums(old.basis, kept, {name: old.missing.get(name, ()) for name in kept})


def _labels(work: _Work, stage: str) -> tuple[str, ...]:
    """Return the types of a stage's old version."""
    return read_names(work.folders[stage] / "model", LABELS)


def _not_calibrated(work: _Work, stage: str, types: Sequence[str]) -> tuple[str, ...]:
    """Return the types whose confidence fewer than `_CALIBRATES` of a stage's probe cells have a say in."""
    folder = work.folders[stage]
    cells = Probe.load(folder / PROBE, read_names(folder / "model", GENES)).cells
    gone = {name for one in work.remainders.values() for name in one.gone["cell_id"]}
    counts = Counter(
        type_ for id_, type_ in zip(cells.cell_ids, cells.cell_types, strict=True) if id_ not in gone
    )
    return tuple(name for name in types if counts[name] < _CALIBRATES)


def _write_and_register(work: _Work, decision: Decision, notice: Notice) -> dict[str, int | None]:
    """Write the new versions in a scratch project, register them, and restore them here.

    As long as params.yaml asks for the old versions, a second call does whatever a kill left undone.
    """
    remade = [name for name in work.old if name in work.wanted.config.stages]
    stages = [name for name in remade if work.wanted.learned(name) is None]
    with _scratch_project(work) as scratch:
        if work.wanted.learned(BACKBONE) is None:
            _write_backbone(work, scratch)
        for stage in stages:
            notice(f"{stage}: solving the sums of the remaining cells, and measuring the version")
            _write_stage(work, scratch, stage)
        if stages:
            registry_sync(work.wanted, decision.sign, scratch.layout, decision)
    new: dict[str, int | None] = {}
    for stage in remade:
        version = work.wanted.learned(stage)
        if version is None:
            raise HistoryError(f"{stage}: the new version was not registered; call canal unlearn again")
        _install(work.wanted, version)
        new[stage] = version.number
    return new


@contextmanager
def _scratch_project(work: _Work) -> Iterator[Project]:
    """Yield a scratch project with own models, metrics and splits; what is learned already is in them."""
    with work.project.mirrored("unlearn", ("models", "metrics", "splits")) as own:
        for stage in work.wanted.config.stages:
            version = work.project.learned(stage)
            if version is not None:
                _copy_split(work, own, stage, verified(work.project.store, version)[0])
        for stage in (BACKBONE, *work.wanted.config.stages):
            version = work.wanted.learned(stage)
            if version is not None:
                restore_model(work.wanted.store, version, own.model(stage))
                if stage != BACKBONE:
                    restore_metrics(work.wanted.store, version, own.metrics(stage))
        yield Project(own, work.wanted.config)


def _copy_split(work: _Work, own: Layout, stage: str, folder: Path) -> None:
    """Write a stage's split into the scratch project: the recorded one, without the withdrawn rows."""
    target = own.split(stage)
    if stage not in work.remainders:
        shutil.copyfile(folder / "split" / "cells.csv", target)
        shutil.copyfile(folder / "split" / "cells.json", target.with_suffix(".json"))
        return
    config = work.project.config
    earlier = {name: own.split(name) for name in config.ancestors(stage)}
    write_split(target, stage, work.remainders[stage].split, config.split, earlier)


def _write_backbone(work: _Work, scratch: Project) -> None:
    """Write the model folder of the lineage's start: without a network, since that saw the cells."""
    old = work.project.learned(BACKBONE)
    if old is None:
        raise HistoryError("the backbone is not learned as params.yaml describes it: run `make run` first")
    folder, key = verified(work.project.store, old)
    with new_folder(scratch.layout.model(BACKBONE)) as target:
        write_json(target / "history.json", {"method": "exact", "epochs": []})
        shutil.copyfile(folder / "panel.json", target / "panel.json")
        write_key(target, _facts(work, scratch, BACKBONE, key), None)


def _write_stage(work: _Work, scratch: Project, stage: str) -> None:
    """Write model and metrics of a stage's new version into the scratch project."""
    config, folder = work.wanted.config, work.folders[stage]
    sums = _new_sums(work, stage)
    labels = tuple(name for name in _labels(work, stage) if name in sums.types)
    parent, genes = config.stages[stage].parent, read_names(folder / "model", GENES)
    state = ParentState.none(len(genes))
    if parent != BACKBONE:
        before = scratch.layout.model(parent)
        state = ParentState.load(before, read_names(before / "model", GENES), config).widened(len(genes))
    batches = Sums.load(folder / OWN_BATCHES) if (folder / OWN_BATCHES).is_file() else None
    if stage in work.remainders:
        batches = work.remainders[stage].batches
    validation = _validation(work, scratch, stage, genes).of_types(labels)
    task = ExactTask(labels, genes, validation, state, sums, batches)
    artifacts = finish_exact(stage, task, config)
    with new_folder(scratch.layout.model(stage)) as target:
        artifacts.save(target)
        for name in _INPUTS:
            shutil.copytree(folder / name, target / name)
        if stage in work.remainders:
            _forget_labels(target / LABELS_FILE, set(work.remainders[stage].gone["cell_id"]))
        for suffix in (".csv", ".json"):
            shutil.copyfile(
                scratch.layout.split(stage).with_suffix(suffix), target / "split" / f"cells{suffix}"
            )
        facts = _facts(work, scratch, stage, work.keys[stage]) | sums_facts(artifacts.sums)
        write_key(target, facts, key_digest(scratch.layout.model(parent)))
    with new_folder(scratch.layout.metrics(stage)) as target:
        write_evaluation(target, evaluate_stage(scratch, stage))


def _forget_labels(path: Path, gone: set[str]) -> None:
    """Take the withdrawn cells out of those whose label the parent's sums contradict."""
    document = read_json(path) if path.is_file() else {}
    if "contradicted" in document:
        cells = document["contradicted"]["cells"]
        document["contradicted"]["cells"] = [one for one in cells if one["cell_id"] not in gone]
        write_json(path, document)


def _validation(work: _Work, scratch: Project, stage: str, genes: tuple[str, ...]) -> LabelledCells:
    """Return a stage's validation cells; where its prepared cells are gone, those of its probe set."""
    if scratch.available(stage):
        return scratch.cells(stage, "validation", genes)
    probe = Probe.load(work.folders[stage] / PROBE, genes).cells
    gone = set(work.remainders[stage].gone["cell_id"]) if stage in work.remainders else set()
    rows = [row for row, name in enumerate(probe.stages) if name == stage]
    return probe.take([row for row in rows if probe.cell_ids[row] not in gone])


def _facts(work: _Work, scratch: Project, stage: str, key: Key) -> dict[str, Any]:
    """Return the facts of a new version's key: the old version's inputs, the new request, and what left."""
    n_cells, n_summed, digest = _counts(work)
    old = work.project.learned(BACKBONE) if stage == BACKBONE else work.old[stage]
    left: dict[str, Any] = {"cells": digest, "n_cells": n_cells, "n_summed": n_summed}
    if work.withdrawal.whole:
        left["removed"] = {name: work.old[name].key for name in work.remainders}
    left |= {"version": old.key if old else "", "split": key.get("unlearned", key)["split"]}
    kept = {name: key[name] for name in _KEPT_FACTS if name in key}
    return kept | request_facts(scratch.layout, work.wanted.config, stage) | {"unlearned": left}


def _install(project: Project, version: Version) -> None:
    """Restore a version into models/, metrics/, scores/ and splits/."""
    layout, stage = project.layout, version.stage
    restore_model(project.store, version, layout.model(stage))
    restore_metrics(project.store, version, layout.metrics(stage))
    for suffix in (".csv", ".json"):
        restore_file(project.store, version, f"split/cells{suffix}", layout.split(stage).with_suffix(suffix))
    write_scores(layout, stage)


def retire_holding(project: Project, made: Unlearned, decision: Decision) -> tuple[int, ...]:
    """Retire the versions that hold the cells, except the champion; return their numbers."""
    numbers = tuple(number for number in made.holding if number != made.champion)
    for number in numbers:
        retire(project, str(number), decision)
    return numbers
