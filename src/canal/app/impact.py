"""`canal impact`: the versions that learned from some cells, and how to learn again without them."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

from canal.annotation.records import read_log
from canal.app.project import Project
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.errors import CanalError, RegistryError
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.provenance.exposure import CellQuery as CellQuery
from canal.registry.provenance.exposure import CellsSeen, Exposure, MatchedCells, find_cells, find_exposures
from canal.registry.store.shown import read_shown

Document = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One step of a plan: a command to ``run``, lines of params.yaml to ``edit``, or a fact to ``know``."""

    kind: Literal["run", "edit", "know"]
    text: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Impact:
    """All versions, records and aliases that the chosen cells contributed to.

    Attributes
    ----------
    query : CellQuery
    found : MatchedCells
    exposures : sequence of Exposure
        Versions, parents first, including those only measured on the cells.
    same_bytes : dict
        Other sources that read the same file -> its SHA-256.
    records : sequence of dict
        Annotation records of versions that learned from the cells or were validated on them.
    unreadable : int
        Lines of the log of annotations that cannot be read.
    steps : sequence of Step
        The plan, in order.
    """

    query: CellQuery
    found: MatchedCells
    exposures: Sequence[Exposure]
    same_bytes: dict[str, str]
    records: Sequence[Document]
    unreadable: int
    steps: Sequence[Step]

    def to_json(self) -> Document:
        """Return a JSON document."""
        marked = affected(self.exposures)
        return {
            "format": 1,
            "source": self.query.source,
            "batch": self.query.batch,
            "cell": self.query.cell,
            "cells": len(self.found.cells),
            "same_content": sorted(self.found.same),
            "reserve": len(self.found.reserve),
            "same_bytes": self.same_bytes,
            "versions": [exposure.to_json() for exposure in self.exposures],
            "aliases": {
                alias: exposure.version.version.number
                for exposure in marked
                for alias in exposure.version.version.aliases
            },
            "annotations": [_short(record) for record in self.records],
            "unreadable_annotations": self.unreadable,
            "steps": [step.to_json() for step in self.steps],
        }


def impact(project: Project, query: CellQuery) -> Impact:
    """Return everything that a source, or a batch or a cell of it, contributed to.

    Raises
    ------
    RegistryError
        If no version has seen the cells, or a version's documents are not those that were registered.
    """
    cells_seen = CellsSeen(project.store)
    try:
        found = find_cells(cells_seen, query)
    except RegistryError as error:
        erased = any(one.erased for one in project.store.versions())
        raise RegistryError(f"{error}; {_ERASED}" if erased else str(error)) from error
    exposures = find_exposures(cells_seen, found)
    sources, names = project.config.sources, found.sources
    digests = {sources[name].sha256 for name in names if name in sources}
    log = read_log(project.layout.annotations)
    keys = {exposure.version.version.key for exposure in affected(exposures)}
    return Impact(
        query=query,
        found=found,
        exposures=exposures,
        same_bytes={
            name: one.sha256 for name, one in sources.items() if one.sha256 in digests and name not in names
        },
        records=log.of_versions(keys),
        unreadable=log.unreadable,
        steps=plan(project, query, found, exposures),
    )


def affected(exposures: Sequence[Exposure]) -> list[Exposure]:
    """Return the versions that the cells influenced: all but those only measured on them."""
    return [exposure for exposure in exposures if exposure.grade != "tested"]


def _short(record: Document) -> Document:
    """Return the fields that identify a record, and its number of cells."""
    return {
        "id": record.get("id"),
        "time": record.get("time"),
        "input": record.get("input"),
        "model": record["model"],
        "n_cells": record["n_cells"],
    }


# The plan to learn again without some cells: changes of params.yaml, and commands.

_LEARNING = ("tune", "finetune", "evaluate")
"""Steps that learn and measure a stage, as MLflow's runs name them."""
_ERASED = "versions were erased since, and of the cells that they held nothing is known (`canal ledger`)"
_WHO = '--by "YOUR NAME" --why "REASON"'


def plan(
    project: Project, query: CellQuery, found: MatchedCells, exposures: Sequence[Exposure]
) -> list[Step]:
    """Return the steps, in order, after which no serving version has learned from the chosen cells.

    Cells and batches are excluded and their stages learned again. The stages of a whole source are removed,
    since a stage without cells cannot pass the gate, and the stages after them are learned again.
    """
    config = project.config
    whole = query.batch is None and query.cell is None
    if not whole and not exposures and (stages := _settled(project, found)):
        why = (
            "nothing is to be learned again, and params.yaml stays as it is, for an `exclude` asks for "
            f"another {stages[0]}; name them there when {' or '.join(stages)} is learned again for another "
            "reason"
        )
        return [Step("know", "no version has learned from them, was judged by them or measured on them", why)]
    out = [stage for stage, one in config.stages.items() if one.source in found.sources] if whole else []
    narrowed = found.same if whole else found.ids
    names = {cell.partition(":")[0] for cell in narrowed} - (set(found.sources) if whole else set())
    steps = [*_rollback(project, exposures)]
    steps += _unlearning(project, query, found, exposures)
    corpora = set(config.backbone.unlabelled)
    if whole and corpora & set(found.sources):
        steps += _without_corpora(config, corpora & set(found.sources))
    elif whole:
        steps += _taken_out(config, out)
    steps += _excluded(config, query, found, sorted(names))
    again = [*_heirs(config, out), *(name for name, one in config.stages.items() if one.source in names)]
    seen = corpora & {*names, *(found.sources if whole else ())}
    if seen or set(again) & {BACKBONE, config.root_stage, *config.backbone.extra_stages}:
        again = [BACKBONE]  # it was pretrained on their cells
    else:  # the first on each branch
        again = [stage for stage in dict.fromkeys(again) if not set(config.ancestors(stage)) & set(again)]
    again = [] if whole and len(out) == len(config.stages) else again
    steps += _unavailable(config, again, out)
    steps += [
        Step("run", f"canal stage relearn {stage} --commit", f"a new branch of the lineage from {stage} on")
        for stage in again
    ]
    if again:
        steps.append(Step("run", "canal run", "learns and registers the new branch"))
        steps.append(Step("run", f"canal promote candidate {_WHO}", "the new branch serves, if it passes"))
    for exposure in affected(exposures):
        version = exposure.version.version
        here = version.model == project.store.names.model and not exposure.version.elsewhere
        if here and not version.retired:
            why = f"{version.stage}: it never serves again"
            steps.append(Step("run", f"canal retire {version.number} {_WHO}", why))
    steps.append(Step("run", "canal audit --all", "shows that none of them is in what was learned since"))
    return steps


def _settled(project: Project, found: MatchedCells) -> list[str]:
    """Return the stages that use the sources, if all of them are learned as params.yaml describes; else none.

    A stage that is still to be learned may use cells that no version has seen.
    """
    stages = [name for name, one in project.config.stages.items() if one.source in found.sources]
    try:
        return stages if all(project.learned(stage) for stage in stages) else []
    except CanalError:
        return []


def _rollback(project: Project, exposures: Sequence[Exposure]) -> Iterator[Step]:
    """Yield the rollback to a clean version, where the champion has learned from the cells."""
    marked = {exposure.version.version.key for exposure in exposures if exposure.grade != "tested"}
    versions = project.store.versions()
    if not any(CHAMPION in one.aliases and one.key in marked for one in versions):
        return
    clean = [one for one in versions if one.ready and not one.retired and one.key not in marked]
    if clean:
        newest = clean[-1]
        why = f"until then: version {newest.number} ({newest.stage}) has not learned from them"
        yield Step("run", f"canal rollback --to {newest.number} {_WHO}", why)
    else:
        what = "the champion has learned from them, and so has every other version"
        yield Step("know", what, "it serves until another one is promoted")


def _unlearning(
    project: Project, query: CellQuery, found: MatchedCells, exposures: Sequence[Exposure]
) -> Iterator[Step]:
    """Yield the quick way, where every version that learned from the cells keeps sums of them."""
    versions = [one.version for one in affected(exposures) if one.version.is_annotator]
    if len(found.sources) != 1 or not versions or not all(one.key.get("sums") for one in versions):
        return
    config, which = project.config, ""
    if set(found.sources) & set(config.backbone.unlabelled):
        return  # the networks that built on the backbone cannot forget, and sums hold nothing of the cells
    if query.batch is not None:
        which = f" --batch {shlex.quote(query.batch)}"
    elif query.cell is not None:
        which = " --cells FILE"
    elif not (own := [stage for stage, one in config.stages.items() if one.source in found.sources]) or (
        BACKBONE in (heirs := _heirs(config, own)) or not heirs
    ):
        return  # the lineage begins with these stages, or nothing was learned after them
    stages = list(dict.fromkeys(str(one.key["stage"]) for one in versions))
    learning = _seconds_of_learning(project, stages)
    beside = f"; learning {' and '.join(stages)} took {learning:,.0f} s" if learning else ""
    yield Step(
        "know",
        f"canal unlearn {found.sources[0]}{which} {_WHO}",
        "in place of the steps below, in seconds: versions that answer by the sums of what remains" + beside,
    )


def _seconds_of_learning(project: Project, stages: Sequence[str]) -> float:
    """Return how long the newest runs of the steps that learn these stages took, as MLflow recorded them."""
    newest: dict[tuple[str, str], float] = {}
    for run in sorted(read_shown(project.store).runs.values(), key=lambda run: run.started):
        which = (run.tags.get("canal.stage", ""), run.tags.get("canal.step", ""))
        if which[0] in stages and which[1] in _LEARNING and run.ended > run.started > 0:
            newest[which] = (run.ended - run.started) / 1000
    return sum(newest.values())


def _excluded(config: Config, query: CellQuery, found: MatchedCells, names: Sequence[str]) -> Iterator[Step]:
    """Yield the new ``exclude`` of each source, including what it excludes already."""
    for name in names:
        if name not in config.sources:
            yield Step(
                "know", f"params.yaml has no source {name} any more", "nothing is learned from it again"
            )
            continue
        before = config.sources[name].exclude
        by_batch = query.batch is not None and name in found.sources
        named = found.same if by_batch else found.ids
        mine = {cell.partition(":")[2] for cell in named if cell.startswith(f"{name}:")}
        cells = [*before.cells, *sorted(mine - set(before.cells))]
        batches = list(before.batches)
        if by_batch and query.batch is not None and query.batch not in batches:
            batches.append(query.batch)
        if (cells, batches) == (list(before.cells), list(before.batches)):
            yield Step("know", f"sources.{name}.exclude names them already", "nothing to change there")
        else:
            lines = ["sources:", f"  {name}:", "    exclude:"]
            for what, these in (("cells", cells), ("batches", batches)):
                if these:  # as JSON, which is YAML for any names
                    lines.append(f"      {what}: {json.dumps(these, ensure_ascii=True)}")
            yield Step("edit", "\n".join(lines), f"in params.yaml: what {name} excludes")


def _without_corpora(config: Config, out: Set[str]) -> Iterator[Step]:
    """Yield the change of params.yaml that removes unlabelled sources."""
    kept = [name for name in config.backbone.unlabelled if name not in out]
    lines = [f"# remove sources.{name}" for name in sorted(out)]
    lines += ["backbone:", f"  unlabelled: {json.dumps(kept)}"]
    yield Step("edit", "\n".join(lines), "in params.yaml: the backbone is pretrained without them")


def _taken_out(config: Config, out: Sequence[str]) -> Iterator[Step]:
    """Yield the change of params.yaml that removes stages and gives their children new parents."""
    if not out:
        yield Step("know", "no stage of params.yaml learns from it any more", "nothing to take out")
        return
    left = [stage for stage in config.stages if stage not in out]
    if not left:
        yield Step(
            "know", "every stage of params.yaml learns from it", "nothing is left to learn; begin anew"
        )
        return
    lines = [f"# remove stages.{stage}" for stage in out]
    lines += [f"# remove sources.{name}" for name in sorted({config.stages[stage].source for stage in out})]
    parents = _new_parents(config, out)
    changed = {stage: parent for stage, parent in parents.items() if parent != config.stages[stage].parent}
    if changed:
        lines += _rehung(config, changed)
    if (root := next(stage for stage, parent in parents.items() if parent == BACKBONE)) != config.root_stage:
        lines += ["panel:", f"  stage: {root}"]
    removed = [stage for stage in config.backbone.extra_stages if stage in out]
    if removed:
        kept = [stage for stage in config.backbone.extra_stages if stage not in out]
        lines += ["backbone:", f"  extra_stages: {json.dumps(kept)}"]
    yield Step("edit", "\n".join(lines), "in params.yaml: without the data set, a stage has nothing to learn")


def _rehung(config: Config, changed: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that give stages another parent; a first stage is not tuned and adds no genes."""
    for stage, parent in changed.items():
        if parent == BACKBONE and config.stages[stage].tune:
            yield f"# remove stages.{stage}.tune"
        if parent == BACKBONE and config.stages[stage].panel.grow:
            yield f"# remove stages.{stage}.panel"
    yield "stages:"
    yield from (f"  {stage}: {{parent: {parent}}}" for stage, parent in changed.items())


def _new_parents(config: Config, out: Sequence[str]) -> dict[str, str]:
    """Return the new parent of each remaining stage: its nearest remaining ancestor, with one root only."""
    parents: dict[str, str] = {}
    root: str | None = None
    for stage in config.stages:
        if stage in out:
            continue
        parent = config.stages[stage].parent
        while parent in out:
            parent = config.stages[parent].parent
        if parent == BACKBONE and root is not None:
            parent = root
        root = root or stage
        parents[stage] = parent
    return parents


def _heirs(config: Config, out: Sequence[str]) -> list[str]:
    """Return the children of removed stages; the backbone where it was pretrained on their cells."""
    if set(out) & {config.root_stage, *config.backbone.extra_stages}:
        return [BACKBONE]
    return [stage for stage, one in config.stages.items() if one.parent in out and stage not in out]


def _unavailable(config: Config, again: Sequence[str], out: Sequence[str]) -> Iterator[Step]:
    """Yield a warning for each source that is needed again and marked ``available: false``."""
    needed = [
        stage
        for stage in config.stages
        if stage not in out
        and (BACKBONE in again or set(again) & {*config.ancestors(stage), stage})
        and not config.sources[config.stages[stage].source].available
    ]
    for stage in needed:
        source = config.stages[stage].source
        yield Step(
            "know",
            f"stage {stage} is to be learned again, but its source {source} is marked available: false",
            "bring its file and set available: true, or take the stage out of params.yaml",
        )
