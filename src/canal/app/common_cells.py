"""Cells that are in both lineages of a merge: found by the digests of their content, and counted once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from canal.app.lineage_sides import Other, Own
from canal.app.project import Project
from canal.app.sharing import OverlapKey
from canal.core.digests import json_digest
from canal.core.errors import HistoryError, SumsError
from canal.data.split import SUMMED
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums, add_up

OVERLAPS = ("refuse", "once")
BY_CONTENT, KEYED, NOT_CHECKED = "content digests", "keyed digests", "not checked"
_EXAMPLES = 5

Here = Mapping[str, tuple[str, str]]
"""Digest of a cell's content -> its stage and its id in this project."""


@dataclass(frozen=True)
class Overlap:
    """What becomes of common cells: ``rule`` of `OVERLAPS`; ``key`` finds them in a bundle."""

    rule: str = "refuse"
    key: OverlapKey | None = None

    def __post_init__(self) -> None:
        if self.rule not in OVERLAPS:
            raise SumsError(f"--overlap is {' or '.join(OVERLAPS)}, found {self.rule[:40]!r}")


def without_common(
    project: Project, own: Own, other: Other, types: Mapping[str, str], how: Overlap
) -> tuple[StageSums, dict[str, Any]]:
    """Return the other's sums without cells that are here too, and what key.json says of them.

    A cell that validates or tests here counts as well: it would be measured on what learned from it.
    ``types`` are the other's types that have another name here.

    Raises
    ------
    SumsError
        If cells are in both and are not to be counted once, or no other cell is left.
    HistoryError
        If cells have to be subtracted whose prepared file is gone.
    """
    here = {
        digest: (stage, cell)
        for stage, split in own.splits.items()
        if split is not None
        for digest, cell in zip(split["cell_digest"], split["cell_id"], strict=True)
    }
    checked, common = _common(own, other, here, types, how.key)
    other, n_again = _without_repeated(own, other, common, how.rule)
    found: dict[str, Any] = {"checked": checked, "cells": n_again + sum(map(len, common.values()))}
    if not common:
        return other.sums, found
    contents = sorted({one for cells in common.values() for one, _ in cells})
    if how.rule != "once":
        counts = ", ".join(f"{len(cells):,} of {stage}" for stage, cells in common.items())
        raise SumsError(
            f"{found['cells']:,} summed cells of {other.name} are cells of {own.name} too ({counts}), such "
            f"as those with content digests {', '.join(one[:12] for one in contents[:_EXAMPLES])}: they "
            "would count twice. `--overlap once` leaves them out of what is added"
        )
    stages = dict(other.sums.stages)
    for stage, cells in common.items():
        rest = _subtracted(project, other.sums, stage, cells, here)
        if rest.types:
            stages[stage] = rest
        else:
            del stages[stage]
    if not stages:
        raise SumsError(f"all cells of {other.name} are in {own.name} already: there is nothing to add")
    found["left_out"] = json_digest(contents)
    missing = {stage: other.sums.missing.get(stage, ()) for stage in stages}
    return StageSums(other.sums.basis, stages, missing), found


def _without_repeated(own: Own, other: Other, common: Mapping[str, object], rule: str) -> tuple[Other, int]:
    """Return the other side without types of a stage whose very sums are here, and how many cells these have.

    So a bundle that was merged before is noticed, though nobody knows its cells, and so is another release of
    its version that leaves out other types. Stages whose common cells are known are left to these.
    """
    known = {digest for sums in own.sums.stages.values() for digest in sums.contents().values()}
    again: dict[str, Sums] = {}
    for stage, sums in other.sums.stages.items():
        fresh = [name for name, digest in sums.contents().items() if digest not in known]
        if stage not in common and len(fresh) < len(sums.types):
            again[stage] = sums.without(fresh)
    n_again = sum(one.n_cells for one in again.values())
    if again and rule != "once":
        raise SumsError(
            f"the sums of {', '.join(again)} of {other.name} are in {own.name} already, to the digit "
            f"({'; '.join(', '.join(one.types) for one in again.values())}): their {n_again:,} cells would "
            "count twice. `--overlap once` leaves them out of what is added"
        )
    left = {
        stage: sums.without(again[stage].types) if stage in again else sums
        for stage, sums in other.sums.stages.items()
    }
    left = {stage: sums for stage, sums in left.items() if sums.types}
    if not left:
        raise SumsError(f"all sums of {other.name} are in {own.name} already: there is nothing to add")
    missing = {stage: other.sums.missing.get(stage, ()) for stage in left}
    return replace(other, sums=StageSums(other.sums.basis, left, missing)), n_again


def _common(
    own: Own, other: Other, here: Here, types: Mapping[str, str], key: OverlapKey | None
) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """Return how common cells were looked for, and by stage the content and the type here of each."""
    found: dict[str, list[tuple[str, str]]] = {}
    if other.shared is not None:
        if key is None or other.shared.key is None:
            return NOT_CHECKED, found
        if key.name != other.shared.key:
            raise SumsError(f"{other.name} was made with another overlap key than this one: agree on one")
        contents = {key.of(content): content for content in here}
        for stage, by_type in other.shared.keyed.items():
            pairs = [(contents.get(one), name) for name, digests in by_type.items() for one in digests]
            found[stage] = [(content, types.get(name, name)) for content, name in pairs if content]
        checked = KEYED
    else:
        for stage, split in other.splits.items():
            if split is not None:
                rows = split[split["set"].isin(SUMMED) & split["cell_digest"].isin(here.keys())]
                names = [types.get(name, name) for name in rows["cell_type"]]
                found[stage] = list(zip(rows["cell_digest"], names, strict=True))
        checked = BY_CONTENT
    unknown = [one for splits in (own.splits, other.splits) for one in splits.values() if one is None]
    return NOT_CHECKED if unknown else checked, {stage: cells for stage, cells in found.items() if cells}


def _subtracted(
    project: Project, sums: StageSums, stage: str, cells: Sequence[tuple[str, str]], here: Here
) -> Sums:
    """Return the sums of the other's stage without cells (content, type) whose expression is here."""
    own = sums.stages[stage]
    if len(cells) == own.n_cells:
        return Sums.empty(sums.basis)
    gone = Sums.empty(sums.basis)
    for name in dict.fromkeys(here[content][0] for content, _ in cells):
        chosen = [(here[content][1], cell_type) for content, cell_type in cells if here[content][0] == name]
        if name not in project.config.stages or not project.available(name):
            raise HistoryError(
                f"{len(chosen):,} cells of {stage} are cells of {name} here, whose prepared file is gone, "
                "and only it tells what to subtract: restore it (dvc checkout, dvc pull), or merge where it "
                "lies"
            )
        values = project.prepared(name).expression([cell for cell, _ in chosen], sums.basis.genes)
        gone = gone.plus(add_up(sums.basis, [(values, [cell_type for _, cell_type in chosen])]))
    return own.minus(gone)
