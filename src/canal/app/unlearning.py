"""`canal unlearn`: register versions without some cells, from the sums of what remains.

The sums of a stage are whole numbers, so the sums of the remaining cells are those of all cells minus those
of the withdrawn ones, byte for byte what a lineage without these cells has on the same basis. No network can
forget like this: the new versions answer by their sums alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from canal.app.backfilling import lock_writer
from canal.app.hooks import Event, announce
from canal.app.project import Project
from canal.app.promoting import retire
from canal.app.remaking import (
    alone,
    copy_split,
    figures_ahead,
    kept_facts,
    register,
    scratch_project,
    state_before,
    take_over,
    validation_cells,
    write_backbone,
    write_version,
)
from canal.app.withdrawing import Remainder, Unlearned, basis_checks, remainder_of
from canal.app.withdrawing import Withdrawal as Withdrawal
from canal.app.withdrawing import read_names_of_cells as read_names_of_cells
from canal.config.branches import with_withdrawal, without_stages
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.config.yaml_file import parse
from canal.continual.bank import PROBE, Probe
from canal.continual.stage import ExactTask, finish_exact
from canal.core.digests import json_digest
from canal.core.errors import HistoryError, there_are
from canal.core.progress import doing
from canal.data.split import SUMMED, write_split
from canal.memory.stage_sums import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model.annotator import GENES, LABELS
from canal.model.storage import read_names
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.manifest.stage_request import request_facts
from canal.registry.manifest.version_folder import Key, key_digest, read_key
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.promotion import Decision as Decision
from canal.registry.store.database import Version
from canal.registry.versions.history import verified

Notice = Callable[[str], None]

_CALIBRATES = 20
"""Probe cells of a type that a statement on its confidence needs at least."""


@dataclass(frozen=True)
class _Work:
    """Everything an unlearning has found out before it writes anything.

    ``texts`` are those of params.yaml, before and after it.
    """

    project: Project
    wanted: Project
    texts: tuple[str, str]
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
    `canal run` finds them learned. Old versions stay as they are. A second call completes an interrupted one.

    Raises
    ------
    HistoryError
        If no stage of the lineage learned from the cells, a stage keeps no sums, or sums of single cells need
        a prepared file that is gone.
    ConfigError
        If params.yaml is changed meanwhile.
    """
    began = time.perf_counter()
    project.store.update_paths()
    with alone(project, dry_run) as (current, before):
        work = _prepare(current, before, withdrawal)
        new: dict[str, int | None] = dict.fromkeys(work.old)
        if not dry_run:
            new |= _write_and_register(work, decision, notice)
    n_cells, n_summed, digest = _counts(work)
    old = {version.key for version in work.old.values()}
    newest = list(work.old)[-1]
    known, still = _labels(work, newest), _new_sums(work, newest).types
    holding = [one for one in project.store.versions() if one.key in old and not one.retired]
    made = Unlearned(
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
    if not dry_run:
        numbers, model = {number for number in new.values() if number is not None}, project.store.names.model
        entries = [
            one
            for one in ledger_of(project.store).entries()
            if one.kind == "register" and one.model == model and one.version in numbers
        ]
        announce(project, Event("unlearn", decision.by, decision.why, newest, entries, made.to_json()))
    return made


@doing("finding what remains without the cells")
def _prepare(project: Project, before: str, withdrawal: Withdrawal) -> _Work:
    """Return the stages to make again, with what remains of the cells; nothing is written."""
    config, text = project.config, before
    if withdrawal.source not in config.sources:
        raise HistoryError(
            f"no source {withdrawal.source!r} in params.yaml{there_are(withdrawal.source, config.sources)}"
        )
    if withdrawal.source in config.backbone.unlabelled:
        raise HistoryError(
            f"{withdrawal.source} pre-trained the backbone, without labels: its cells are in no sums, and a "
            "network cannot unlearn. Leave them out (sources.NAME.exclude, or backbone.unlabelled) and learn "
            f"the lineage again: `canal impact {withdrawal.source}` lists the steps"
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
    work = _Work(project, wanted, (before, text), withdrawal, old, folders, keys)
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
    old = StageSums.load(work.folders[stage], work.project.config.summed_stages(stage))
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


def _write_and_register(work: _Work, decision: Decision, notice: Notice) -> dict[str, int]:
    """Write the new versions in a scratch project, register them, restore them here, change params.yaml last.

    As long as params.yaml asks for the old versions, a second call does whatever a kill left undone.
    """
    remade = [name for name in work.old if name in work.wanted.config.stages]
    stages = [name for name in remade if work.wanted.learned(name) is None]
    with lock_writer(work.project.store, "call canal unlearn again") as commit:
        with scratch_project(work.project, work.wanted, "unlearn", partial(_write_split, work)) as scratch:
            if work.wanted.learned(BACKBONE) is None:
                write_backbone(work.project, scratch, _left(work, BACKBONE))
            with figures_ahead(scratch) as figures:
                for stage in stages:
                    notice(f"{stage}: solving the sums of the remaining cells, and measuring the version")
                    _write_stage(work, scratch, stage)
                    figures.begin(stage)
                # a kill may have left a version without an entry
                register(work.wanted, scratch, decision, figures.folder)
        return take_over(work.wanted, work.texts, remade, commit)


def _write_split(work: _Work, own: Layout, stage: str, folder: Path) -> None:
    """Write a stage's split into the scratch project: the recorded one, without the withdrawn rows."""
    if stage not in work.remainders:
        copy_split(own, stage, folder)
        return
    config = work.project.config
    earlier = {name: own.split(name) for name in config.ancestors(stage)}
    write_split(own.split(stage), stage, work.remainders[stage].split, config.split, earlier)


@doing("solving the sums of the remaining cells, and measuring the version")
def _write_stage(work: _Work, scratch: Project, stage: str) -> None:
    """Write model and metrics of a stage's new version into the scratch project."""
    config, folder = work.wanted.config, work.folders[stage]
    sums = _new_sums(work, stage)
    labels = tuple(name for name in _labels(work, stage) if name in sums.types)
    genes = read_names(folder / "model", GENES)
    batches = Sums.load(folder / OWN_BATCHES) if (folder / OWN_BATCHES).is_file() else None
    gone: set[str] = set()
    if stage in work.remainders:
        batches = work.remainders[stage].batches
        gone = set(work.remainders[stage].gone["cell_id"])
    validation = validation_cells(scratch, stage, folder, genes, gone).of_types(labels)
    state = state_before(scratch, stage, len(genes))
    task = ExactTask(labels, genes, validation, state, sums, batches)
    facts = _facts(work, scratch, stage)
    parent = key_digest(scratch.layout.model(config.stages[stage].parent))
    write_version(scratch, stage, finish_exact(stage, task, config), folder, facts, parent)


def _facts(work: _Work, scratch: Project, stage: str) -> dict[str, Any]:
    """Return the facts of a new version's key: the old version's inputs, the new request, and what left."""
    kept = kept_facts(work.keys[stage])
    return kept | request_facts(scratch.layout, work.wanted.config, stage) | _left(work, stage)


def _left(work: _Work, stage: str) -> dict[str, Any]:
    """Return what key.json says of the cells that left a stage, or the backbone."""
    n_cells, n_summed, digest = _counts(work)
    old = work.project.learned(BACKBONE) if stage == BACKBONE else work.old[stage]
    key = read_key(verified(work.project.store, old)[0]) if stage == BACKBONE and old else work.keys[stage]
    left: dict[str, Any] = {"cells": digest, "n_cells": n_cells, "n_summed": n_summed}
    if work.withdrawal.whole:
        left["removed"] = {name: work.old[name].key for name in work.remainders}
    left |= {"version": old.key if old else "", "split": key.get("unlearned", key)["split"]}
    return {"unlearned": left}


def retire_holding(project: Project, made: Unlearned, decision: Decision) -> tuple[int, ...]:
    """Retire the versions that hold the cells, except the champion; return their numbers."""
    numbers = tuple(number for number in made.holding if number != made.champion)
    for number in numbers:
        retire(project, str(number), decision)
    return numbers
