"""Which cells a version learned from: bank and probe against the splits of its chain, no test cell in any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from canal.data.split import RESERVE, SUMMED
from canal.registry.checks.finding import Found, examples
from canal.registry.checks.member import BANK, LABELS, PROBE, SPLIT, Member, Rows

if TYPE_CHECKING:
    from canal.continual.cells import LabelledCells, StoredCells


@dataclass(frozen=True)
class Taught:
    """What a chain of stages was taught from.

    Attributes
    ----------
    splits : Mapping
        The cells of each stage whose split can be read.
    sources : Mapping
        The source of each stage.
    whole : bool
        Whether the chain goes back to its beginning; where it breaks off, older stages are unknown.
    """

    splits: Mapping[str, Rows]
    sources: Mapping[str, str]
    whole: bool


def check_cells(chain: Sequence[Member], found: Found) -> None:
    """Check the newest member of a chain (oldest first), whose ancestors are the others."""
    stages = [member for member in chain if member.taught]
    if not stages:
        return
    newest = stages[-1]
    for name, what in ((SPLIT, newest.split), (BANK, newest.bank), (PROBE, newest.probe)):
        readable = newest.intact(name) and (name == SPLIT or newest.genes is not None)
        if what is None and readable:
            found.wrong(newest.name, "cells", f"{name} cannot be read, or is of another panel than the model")
    splits = {member.stage: member.rows for member in stages if member.rows is not None}
    sources = {member.stage: str(member.key["data"]["source"]) for member in stages}
    taught = Taught(splits, sources, whole=chain[0].parent is None)
    found.counts["cells"] += len(splits.get(newest.stage, {}))
    _check_labels(newest, splits.get(newest.stage, {}), found)
    _check_leaks(stages, splits, found)
    if newest.bank is not None:
        _check_stored(newest, BANK, newest.bank.cells, taught, found)
        _check_bank(newest, newest.bank, splits, found)
        _check_handed_on(newest, stages[-2] if len(stages) > 1 else None, found)
    if newest.probe is not None:
        _check_stored(newest, PROBE, newest.probe.cells, taught, found)


def _check_labels(newest: Member, rows: Rows, found: Found) -> None:
    """Check that what was trained on has labels of the model, and that each new label has training cells."""
    if newest.labels is None:
        return
    taught = {kind for kind, _, _, chosen in rows.values() if chosen == "train"}
    if unknown := sorted(taught - set(newest.labels)):
        found.wrong(newest.name, "labels", f"{SPLIT} trains types that {LABELS} lacks: {examples(unknown)}")


def _check_leaks(stages: Sequence[Member], splits: Mapping[str, Rows], found: Found) -> None:
    """Check that no training or bank cell of the chain is held back by it, by id or by content.

    Two stages that share a cell in this way are the fault of the later one, which had to follow the other.
    """
    order = {member.stage: place for place, member in enumerate(stages)}
    held: dict[str, tuple[str, str]] = {}
    for stage, rows in splits.items():
        for cell, (_, _, digest, chosen) in rows.items():
            if chosen not in SUMMED:
                held[f"id {cell}"] = held[f"content {digest}"] = (stage, chosen)
    leaked: dict[tuple[str, str, str, str], list[str]] = {}
    for place, stage, cell in _trained(stages[-1], splits):
        row = splits.get(stage, {}).get(cell)
        other = held.get(f"id {cell}") or held.get(f"content {row[2]}" if row else "")
        if other is not None:
            leaked.setdefault((place, stage, *other), []).append(cell)
    for (place, stage, keeper, chosen), cells in sorted(leaked.items()):
        what = (
            f"{place}: {len(cells)} training cells of {stage} are {chosen} cells of {keeper} by id or "
            f"content: {examples(sorted(cells))}"
        )
        later = stages[-1] if place == BANK else stages[max(order[stage], order[keeper])]
        found.wrong(later.name, "cells", what)


def _trained(newest: Member, splits: Mapping[str, Rows]) -> Iterator[tuple[str, str, str]]:
    """Yield file, stage and id of every cell that the chain trained on."""
    for stage, rows in splits.items():
        for cell, (_, _, _, chosen) in rows.items():
            if chosen == "train" or (chosen == RESERVE and newest.key.get("sums")):
                yield SPLIT, stage, cell
    if newest.bank is not None:
        for cell, stage in zip(newest.bank.cells.cell_ids, newest.bank.cells.stages, strict=True):
            yield BANK, stage, cell


def _check_stored(newest: Member, name: str, cells: LabelledCells, taught: Taught, found: Found) -> None:
    """Check that stored cells stand in the split of the stage they claim, in its set, with its label."""
    wrong: dict[str, list[str]] = {}
    fields = (cells.cell_ids, cells.cell_types, cells.stages, cells.sources, cells.batches)
    for cell, kind, stage, source, batch in zip(*fields, strict=True):
        found.counts["cells"] += 1
        if stage in taught.splits:
            row = taught.splits[stage].get(cell)
            complaint = _complaint(name, stage, row, (kind, batch, source == taught.sources[stage]))
        else:
            known = stage in taught.sources or not taught.whole
            complaint = None if known else f"claim stage {stage}, which is not in the chain"
        if complaint is not None:
            wrong.setdefault(complaint, []).append(cell)
    for complaint, those in sorted(wrong.items()):
        what = f"{name}: {len(those)} cells {complaint}: {examples(sorted(those))}"
        found.wrong(newest.name, "cells", what)


def _complaint(
    name: str, stage: str, row: tuple[str, str, str, str] | None, claim: tuple[str, str, bool]
) -> str | None:
    """Return what is wrong with a stored cell, given its row in the split and what it claims to be."""
    kind, batch, own_source = claim
    wanted, shown = ("train", "training") if name == BANK else ("validation", "validation")
    if row is None:
        return f"are not in {SPLIT} of {stage}"
    if row[3] != wanted:
        return f"are {row[3]} cells of {stage}, not {shown} cells"
    if row[0] != kind:
        return f"have another label than in {SPLIT} of {stage}"
    if row[1] != batch or not own_source:
        return f"have another source or batch than in {SPLIT} of {stage}"
    return None


def _check_bank(newest: Member, bank: StoredCells, splits: Mapping[str, Rows], found: Found) -> None:
    """Check a bank's size, the share of each type and the ranks."""
    capacity, labels = int(newest.key["request"]["bank"]["capacity"]), newest.labels
    counts = Counter(bank.cells.cell_types)
    if len(bank.cells) > capacity:
        found.wrong(newest.name, "bank", f"{BANK} holds {len(bank.cells)} cells, its capacity is {capacity}")
    if labels:
        quota = capacity // len(labels)
        many = [f"{kind} ({n})" for kind, n in sorted(counts.items()) if n > quota]
        if many:
            found.wrong(newest.name, "bank", f"{BANK} holds more than {quota} cells of {examples(many)}")
    ranks = [] if bank.ranks is None else bank.ranks.tolist()
    seen: set[tuple[str, str, int]] = set()
    wrong = []
    candidates = Counter(
        (stage, kind)
        for stage, rows in splits.items()
        for kind, _, _, chosen in rows.values()
        if chosen == "train"
    )
    cells = bank.cells
    for cell, kind, stage, rank in zip(cells.cell_ids, cells.cell_types, cells.stages, ranks, strict=True):
        place = (stage, kind, rank)
        most = candidates.get((stage, kind), rank)
        if place in seen or not 1 <= rank <= most:
            wrong.append(f"{cell} (rank {rank} of {most})")
        seen.add(place)
    if wrong:
        what = f"{BANK}: {len(wrong)} cells have a rank that another has, or that their type cannot have"
        found.wrong(newest.name, "bank", f"{what}: {examples(wrong)}")


def _check_handed_on(newest: Member, parent: Member | None, found: Found) -> None:
    """Check that what a bank holds of older stages was in the parent's bank, with the same rank."""
    if newest.bank is None or parent is None or parent.bank is None:
        return
    before = set(_ranked(parent.bank))
    new = [
        cell
        for cell, stage, rank in _ranked(newest.bank)
        if stage != newest.stage and (cell, stage, rank) not in before
    ]
    if new:
        what = f"{BANK}: {len(new)} cells of older stages are not in {BANK} of {parent.name} with that rank"
        found.wrong(newest.name, "bank", f"{what}: {examples(sorted(new))}")


def _ranked(bank: StoredCells) -> list[tuple[str, str, int]]:
    ranks = [0] * len(bank.cells) if bank.ranks is None else bank.ranks.tolist()
    return list(zip(bank.cells.cell_ids, bank.cells.stages, ranks, strict=True))
