"""Audit of the cells that a version learned from: bank and probe sets against the splits of its chain.

No test cell is in any of them, and no excluded cell reappears, neither by id nor by content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from canal.config.params import Config
from canal.data.split import RESERVE, SUMMED, read_split
from canal.registry.audit.version_files import AuditLog, examples
from canal.registry.manifest.version_folder import cells_requests, corpus_tables
from canal.registry.provenance.registered import BANK, LABELS, PROBE, SPLIT, RegisteredVersion, Rows

if TYPE_CHECKING:
    import pandas as pd

    from canal.continual.cells import LabelledCells, StoredCells


@dataclass(frozen=True)
class LearnedFrom:
    """The cells that a chain of stages learned from.

    Attributes
    ----------
    splits : Mapping
        The cells of each stage whose split can be read.
    sources : Mapping
        The source of each stage.
    whole : bool
        Whether the chain goes back to the backbone; older stages of an incomplete chain are unknown.
    """

    splits: Mapping[str, Rows]
    sources: Mapping[str, str]
    whole: bool


def check_cells(chain: Sequence[RegisteredVersion], log: AuditLog) -> None:
    """Check the newest member of a chain (oldest first), whose ancestors are the others."""
    stages = [member for member in chain if member.is_annotator]
    if not stages:
        return
    newest = stages[-1]
    for name, what in ((SPLIT, newest.split), (BANK, newest.bank), (PROBE, newest.probe)):
        readable = newest.intact(name) and (name == SPLIT or newest.genes is not None)
        if what is None and readable:
            log.finding(newest.name, "cells", f"{name} cannot be read, or is of another panel than the model")
    splits = {member.stage: member.rows for member in stages if member.rows is not None}
    sources = {member.stage: str(member.key["data"]["source"]) for member in stages}
    learned_from = LearnedFrom(splits, sources, whole=chain[0].parent is None)
    log.counts["cells"] += len(splits.get(newest.stage, {}))
    _check_labels(newest, splits.get(newest.stage, {}), log)
    _check_leaks(stages, splits, log)
    _check_corpora(chain[0], newest, log)
    if newest.bank is not None:
        _check_stored(newest, BANK, newest.bank.cells, learned_from, log)
        _check_bank(newest, newest.bank, splits, log)
        _check_handed_on(newest, stages[-2] if len(stages) > 1 else None, log)
    if newest.probe is not None:
        _check_stored(newest, PROBE, newest.probe.cells, learned_from, log)


def _check_labels(newest: RegisteredVersion, rows: Rows, log: AuditLog) -> None:
    """Check that the model has a label for the cell type of every training cell."""
    if newest.labels is None:
        return
    learned_from = {cell_type for cell_type, _, _, chosen in rows.values() if chosen == "train"}
    if unknown := sorted(learned_from - set(newest.labels)):
        log.finding(newest.name, "labels", f"{SPLIT} trains types that {LABELS} lacks: {examples(unknown)}")


def _check_leaks(stages: Sequence[RegisteredVersion], splits: Mapping[str, Rows], log: AuditLog) -> None:
    """Check that no training or bank cell is a validation or test cell of the chain, by id or content.

    Where two stages share a cell in this way, the finding is about the later one.
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
        log.finding(later.name, "cells", what)


def _check_corpora(first: RegisteredVersion, newest: RegisteredVersion, log: AuditLog) -> None:
    """Check that no test cell of a stage is one that its backbone saw in an unlabelled source, by content."""
    tested = {row[2]: cell for cell, row in (newest.rows or {}).items() if row[3] == "test"}
    for source, cells in corpora_cells(first):
        log.counts["cells"] += len(cells)
        if leaked := sorted(tested[digest] for digest in set(cells["cell_digest"]) & tested.keys()):
            what = f"{len(leaked)} test cells pre-trained {first.name} in unlabelled {source}, by content"
            log.finding(newest.name, "cells", f"{SPLIT}: {what}: {examples(leaked)}")


def corpora_cells(member: RegisteredVersion) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each unlabelled source that a backbone was pretrained on, with the cells that it saw."""
    for source, table in corpus_tables(member.key).items():
        if member.intact(table):
            yield source, read_split(member.folder / table)


def _trained(newest: RegisteredVersion, splits: Mapping[str, Rows]) -> Iterator[tuple[str, str, str]]:
    """Yield file, stage and id of every training cell of the chain."""
    for stage, rows in splits.items():
        for cell, (_, _, _, chosen) in rows.items():
            if chosen == "train" or (chosen == RESERVE and newest.key.get("sums")):
                yield SPLIT, stage, cell
    if newest.bank is not None:
        for cell, stage in zip(newest.bank.cells.cell_ids, newest.bank.cells.stages, strict=True):
            yield BANK, stage, cell


def _check_stored(
    newest: RegisteredVersion, name: str, cells: LabelledCells, learned_from: LearnedFrom, log: AuditLog
) -> None:
    """Check that stored cells are in the split of their stage, in the right set, with the same label."""
    wrong: dict[str, list[str]] = {}
    fields = (cells.cell_ids, cells.cell_types, cells.stages, cells.sources, cells.batches)
    for cell, cell_type, stage, source, batch in zip(*fields, strict=True):
        log.counts["cells"] += 1
        if stage in learned_from.splits:
            row = learned_from.splits[stage].get(cell)
            complaint = _complaint(
                name, stage, row, (cell_type, batch, source == learned_from.sources[stage])
            )
        else:
            known = stage in learned_from.sources or not learned_from.whole
            complaint = None if known else f"claim stage {stage}, which is not in the chain"
        if complaint is not None:
            wrong.setdefault(complaint, []).append(cell)
    for complaint, those in sorted(wrong.items()):
        what = f"{name}: {len(those)} cells {complaint}: {examples(sorted(those))}"
        log.finding(newest.name, "cells", what)


def _complaint(
    name: str, stage: str, row: tuple[str, str, str, str] | None, claim: tuple[str, str, bool]
) -> str | None:
    """Return the fault of a stored cell, given its row in the split and the fields stored with it."""
    cell_type, batch, own_source = claim
    wanted, shown = ("train", "training") if name == BANK else ("validation", "validation")
    if row is None:
        return f"are not in {SPLIT} of {stage}"
    if row[3] != wanted:
        return f"are {row[3]} cells of {stage}, not {shown} cells"
    if row[0] != cell_type:
        return f"have another label than in {SPLIT} of {stage}"
    if row[1] != batch or not own_source:
        return f"have another source or batch than in {SPLIT} of {stage}"
    return None


def _check_bank(
    newest: RegisteredVersion, bank: StoredCells, splits: Mapping[str, Rows], log: AuditLog
) -> None:
    """Check a bank's size, the number of cells of each type, and the ranks."""
    capacity, labels = int(newest.key["request"]["bank"]["capacity"]), newest.labels
    counts = Counter(bank.cells.cell_types)
    if len(bank.cells) > capacity:
        log.finding(newest.name, "bank", f"{BANK} holds {len(bank.cells)} cells, its capacity is {capacity}")
    if labels:
        quota = capacity // len(labels)
        many = [f"{cell_type} ({n})" for cell_type, n in sorted(counts.items()) if n > quota]
        if many:
            log.finding(newest.name, "bank", f"{BANK} holds more than {quota} cells of {examples(many)}")
    ranks = [] if bank.ranks is None else bank.ranks.tolist()
    seen: set[tuple[str, str, int]] = set()
    wrong = []
    candidates = Counter(
        (stage, cell_type)
        for stage, rows in splits.items()
        for cell_type, _, _, chosen in rows.values()
        if chosen == "train"
    )
    cells = bank.cells
    for cell, cell_type, stage, rank in zip(
        cells.cell_ids, cells.cell_types, cells.stages, ranks, strict=True
    ):
        place = (stage, cell_type, rank)
        most = candidates.get((stage, cell_type), rank)
        if place in seen or not 1 <= rank <= most:
            wrong.append(f"{cell} (rank {rank} of {most})")
        seen.add(place)
    if wrong:
        what = f"{BANK}: {len(wrong)} cells have a rank that another has, or that their type cannot have"
        log.finding(newest.name, "bank", f"{what}: {examples(wrong)}")


def _check_handed_on(newest: RegisteredVersion, parent: RegisteredVersion | None, log: AuditLog) -> None:
    """Check that a bank's cells of older stages were in the parent's bank, with the same rank."""
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
        log.finding(newest.name, "bank", f"{what}: {examples(sorted(new))}")


def _ranked(bank: StoredCells) -> list[tuple[str, str, int]]:
    ranks = [0] * len(bank.cells) if bank.ranks is None else bank.ranks.tolist()
    return list(zip(bank.cells.cell_ids, bank.cells.stages, ranks, strict=True))


@dataclass
class Excluded:
    """The excluded cells (obs names) and batches of one source."""

    cells: set[str] = field(default_factory=set)
    batches: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.cells or self.batches)


Exclusions = Mapping[str, Excluded]
"""By source."""


@dataclass(frozen=True)
class HeldCell:
    """A cell that a version holds; its content digest is empty where no split has it any more."""

    place: str
    cell: str
    source: str
    batch: str
    digest: str

    def excluded(self, exclusions: Exclusions) -> bool:
        """Whether the cell or its batch is named as excluded."""
        mine = exclusions.get(self.source)
        if mine is None:
            return False
        return self.batch in mine.batches or self.cell.removeprefix(f"{self.source}:") in mine.cells


def check_exclusions(
    chains: Sequence[Sequence[RegisteredVersion]],
    all_members: Callable[[], Iterable[RegisteredVersion]],
    config: Config,
    log: AuditLog,
) -> None:
    """Check the newest member of each chain (oldest first) against past and present exclusions.

    A version that was learned after an exclusion was declared must not hold such a cell. In an older version
    the cell is a note.

    Parameters
    ----------
    all_members
        Returns all members, whose splits hold the contents of excluded cells; called only where something is
        excluded.
    """
    now = {
        name: Excluded(set(one.exclude.cells), set(one.exclude.batches))
        for name, one in config.sources.items()
    }
    pairs = [(chain, declared_exclusions(chain)) for chain in chains if chain[-1].is_annotator]
    if not any((*now.values(), *(one for _, declared in pairs for one in declared.values()))):
        return
    splits = [one for member in all_members() for one in _split_cells(member)]
    now_out = {one.digest for one in splits if one.excluded(now)}
    for chain, declared in pairs:
        then_out = {one.digest for one in splits if one.excluded(declared)}
        wrong: dict[str, list[str]] = {}
        later: dict[str, list[str]] = {}
        for one in _cells(chain):
            if one.excluded(declared) or one.digest in then_out:
                wrong.setdefault(one.place, []).append(one.cell)
            elif one.excluded(now) or one.digest in now_out:
                later.setdefault(one.place, []).append(one.cell)
        _report(chain[-1], wrong, later, log)


def _report(
    newest: RegisteredVersion, wrong: Mapping[str, list[str]], later: Mapping[str, list[str]], log: AuditLog
) -> None:
    for place, cells in wrong.items():
        names = examples(sorted(cells))
        what = f"{place}: {len(cells)} cells that were excluded before it was learned: {names}"
        log.finding(newest.name, "exclusion", what)
    for place, cells in later.items():
        what = (
            f"{place}: {len(cells)} cells that are excluded by now: {examples(sorted(cells))}; "
            "`canal impact` lists the exposed versions, `canal stage relearn` learns without the cells"
        )
        log.note(newest.name, "exclusion", what)


def declared_exclusions(chain: Sequence[RegisteredVersion]) -> dict[str, Excluded]:
    """Return the exclusions in the requests of a chain, by source."""
    declared: dict[str, Excluded] = {}
    for member in chain:
        for cells in cells_requests(member.key):
            exclude = cells["declaration"].get("exclude") or {}
            mine = declared.setdefault(str(cells["source"]), Excluded())
            mine.cells |= set(exclude.get("cells", ()))
            mine.batches |= set(exclude.get("batches", ()))
    return declared


def _cells(chain: Sequence[RegisteredVersion]) -> Iterator[HeldCell]:
    """Yield all cells of a chain's newest member (split, sums, bank, probe sets) and its unlabelled ones."""
    newest = chain[-1]
    yield from _split_cells(newest)
    for member in chain:
        if member.is_annotator and member.stage in newest.key.get("sums", {}):
            rows, place = member.rows or {}, f"sums of {member.stage}"
            summed = (one for one in _split_cells(member) if rows[one.cell][3] in SUMMED)
            yield from (replace(one, place=place) for one in summed)
    digests = {(member.stage, one.cell): one.digest for member in chain for one in _split_cells(member)}
    for place, stored in ((BANK, newest.bank), (PROBE, newest.probe)):
        if stored is None:
            continue
        cells = stored.cells
        for cell, stage, source, batch in zip(
            cells.cell_ids, cells.stages, cells.sources, cells.batches, strict=True
        ):
            yield HeldCell(place, cell, source, batch, digests.get((stage, cell), ""))
    backbone = chain[0]
    for source, table in corpora_cells(backbone):
        columns = (table[name] for name in ("cell_id", "batch", "cell_digest"))
        for cell, batch, digest in zip(*columns, strict=True):
            yield HeldCell(f"{source} of {backbone.name}", cell, source, batch, digest)


def _split_cells(member: RegisteredVersion) -> Iterator[HeldCell]:
    """Yield the cells of a member's split; none where it cannot be read."""
    if not member.is_annotator or member.split is None:
        return
    source = str(member.key["data"]["source"])
    columns = (member.split[name] for name in ("cell_id", "batch", "cell_digest"))
    for cell, batch, digest in zip(*columns, strict=True):
        yield HeldCell(SPLIT, cell, source, batch, digest)
