"""Cells that may not be learned from any more: they never reappear, neither by id nor by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from canal.config.params import Config
from canal.data.split import SUMMED
from canal.registry.checks.finding import Found, examples
from canal.registry.checks.member import BANK, PROBE, SPLIT, Member


@dataclass
class Excluded:
    """What is excluded of one source: obs names of cells, and batches."""

    cells: set[str] = field(default_factory=set)
    batches: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.cells or self.batches)


Exclusions = Mapping[str, Excluded]
"""By source."""


@dataclass(frozen=True)
class Seen:
    """A cell as a version holds it; its content digest is empty where no split is left that knows it."""

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
    chains: Sequence[Sequence[Member]],
    everybody: Callable[[], Iterable[Member]],
    config: Config,
    found: Found,
) -> None:
    """Check the newest member of each chain (oldest first) against what is, and was, declared as excluded.

    A version that was learned after an exclusion was declared must not hold such a cell. An older one may:
    that it does is a note.

    Parameters
    ----------
    everybody
        Gives all members there are, whose splits tell the contents of excluded cells; asked only where
        something is excluded.
    """
    now = {
        name: Excluded(set(one.exclude.cells), set(one.exclude.batches))
        for name, one in config.sources.items()
    }
    pairs = [(chain, declared_in(chain)) for chain in chains if chain[-1].taught]
    if not any((*now.values(), *(one for _, declared in pairs for one in declared.values()))):
        return
    splits = [one for member in everybody() for one in _split_cells(member)]
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
        _tell(chain[-1], wrong, later, found)


def _tell(
    newest: Member, wrong: Mapping[str, list[str]], later: Mapping[str, list[str]], found: Found
) -> None:
    for place, cells in wrong.items():
        names = examples(sorted(cells))
        what = f"{place}: {len(cells)} cells that were excluded before it was learned: {names}"
        found.wrong(newest.name, "exclusion", what)
    for place, cells in later.items():
        what = (
            f"{place}: {len(cells)} cells that are excluded by now: {examples(sorted(cells))}; "
            "`canal impact` lists what they touched, `canal stage relearn` learns without them"
        )
        found.note(newest.name, "exclusion", what)


def declared_in(chain: Sequence[Member]) -> dict[str, Excluded]:
    """Return what the requests of a chain declare as excluded."""
    declared: dict[str, Excluded] = {}
    for member in chain:
        for cells in _cell_requests(member.key["request"]):
            exclude = cells["declaration"].get("exclude") or {}
            mine = declared.setdefault(str(cells["source"]), Excluded())
            mine.cells |= set(exclude.get("cells", ()))
            mine.batches |= set(exclude.get("batches", ()))
    return declared


def _cell_requests(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the requests for cells in a stage's request: one, or in a backbone's one for each stage."""
    cells = request.get("cells") or {}
    return [cells] if "declaration" in cells else list(cells.values())


def _cells(chain: Sequence[Member]) -> Iterator[Seen]:
    """Yield all cells that the newest member of a chain holds: its split, sums, bank and probe."""
    newest = chain[-1]
    yield from _split_cells(newest)
    for member in chain:
        if member.taught and member.stage in newest.key.get("sums", {}):
            yield from _summed_cells(member)
    digests = {(member.stage, one.cell): one.digest for member in chain for one in _split_cells(member)}
    for place, stored in ((BANK, newest.bank), (PROBE, newest.probe)):
        if stored is None:
            continue
        cells = stored.cells
        for cell, stage, source, batch in zip(
            cells.cell_ids, cells.stages, cells.sources, cells.batches, strict=True
        ):
            yield Seen(place, cell, source, batch, digests.get((stage, cell), ""))


def _summed_cells(member: Member) -> Iterator[Seen]:
    """Yield the cells of a member's split that were added up."""
    rows = member.rows or {}
    for one in _split_cells(member):
        if rows[one.cell][3] in SUMMED:
            yield replace(one, place=f"sums of {member.stage}")


def _split_cells(member: Member) -> Iterator[Seen]:
    """Yield the cells of a member's split; none where it cannot be read."""
    if not member.taught or member.split is None:
        return
    source = str(member.key["data"]["source"])
    columns = (member.split[name] for name in ("cell_id", "batch", "cell_digest"))
    for cell, batch, digest in zip(*columns, strict=True):
        yield Seen(SPLIT, cell, source, batch, digest)
