"""One row a cell, read from the cache or computed: the same bits either way.

`CachedRows` is what is asked; `RowFinder` knows in which segment, that some stage, run or process has left,
the row of each cell lies; `keep_missing` computes and keeps the rows that the cache lacks, once among all
processes, as far as there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from threading import RLock

import numpy as np

from canal.continual.cache_space import CacheSpace
from canal.continual.segments import (
    DamagedError,
    RowKind,
    Segment,
    SegmentRows,
    indexes,
    remove_segment,
    write_segment,
)
from canal.core.errors import DISK_FULL

Compute = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Gives the float32 row of each position asked for, in order; its bits may not depend on the others."""

ComputeCells = Callable[[Sequence[str]], Iterator[np.ndarray]]
"""Gives the float32 row of each cell asked for by its digest, in that order."""

_SPARSE = 0.5


class CachedRows:
    """The rows of a set of cells.

    Made, it computes and keeps what the cache lacks; see `keep_missing`. Cells beyond the cache's size are
    computed whenever they are asked for.

    Parameters
    ----------
    kind
        What a row is.
    cells
        The digest of each cell: equal digests, equal rows.
    compute
        Computes rows by their positions in ``cells``.
    space
        Where rows are kept; None: nowhere.
    key
        Names all that decides the rows but the cells.

    Raises
    ------
    TrainingError
        If the disk cannot hold what is to be kept.
    """

    def __init__(
        self, kind: RowKind, cells: Sequence[str], compute: Compute, space: CacheSpace | None, key: str
    ) -> None:
        self._kind, self._cells, self._compute = kind, tuple(cells), compute
        self._position = {cell: position for position, cell in enumerate(self._cells)}
        self._finder = None if space is None else RowFinder(kind, self._cells, space, key)
        self._keep()

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def kept(self) -> int:
        """How many of the cells lie on disk; the others are computed whenever they are asked for."""
        return 0 if self._finder is None else sum(cell in self._finder for cell in self._cells)

    def take(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows of the cells at ``positions``, float32 ``(len(positions), *shape)``.

        If a row proves damaged, its segment is removed and its cells are computed anew.
        """
        wanted = [int(position) for position in positions]
        rows = np.empty((len(wanted), *self._kind.shape), dtype=self._kind.stored)
        found = self._n_found
        missing = self._read(wanted, rows)
        if self._n_found < found:
            self._keep()
            missing = self._read(wanted, rows)
        if missing:
            computed = self._compute([wanted[place] for place in missing])
            for place, row in zip(missing, computed, strict=True):
                rows[place] = self._kind.encode(row)
        return self._kind.decode(rows)

    @property
    def _n_found(self) -> int:
        return 0 if self._finder is None else len(self._finder)

    def _keep(self) -> None:
        if self._finder is not None:
            keep_missing(self._finder, lambda cells: self._compute([self._position[c] for c in cells]))

    def _read(self, wanted: list[int], rows: np.ndarray) -> list[int]:
        """Fill in the rows that are stored and return the places of the others."""
        missing = []
        for place, position in enumerate(wanted):
            row = None if self._finder is None else self._finder.row(self._cells[position])
            if row is None:
                missing.append(place)
            else:
                rows[place] = row
        return missing


class RowFinder:
    """Stored rows of one key by the digest of their cell, for the cells that are wanted.

    Segments that hold a wanted cell are mapped and kept from being removed. Damaged ones are removed; their
    cells are then missing.

    Parameters
    ----------
    cells
        Digests of the wanted cells.
    """

    def __init__(self, kind: RowKind, cells: Iterable[str], space: CacheSpace, key: str) -> None:
        self.kind, self.space, self.key = kind, space, key
        self._wanted = tuple(dict.fromkeys(cells))
        self._known: dict[Path, Segment] = {}
        self._places: dict[str, tuple[SegmentRows, int]] = {}
        self._changing = RLock()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, cell: str) -> bool:
        return cell in self._places

    @property
    def missing(self) -> list[str]:
        """The wanted cells that no segment holds, each once, in order."""
        return [cell for cell in self._wanted if cell not in self._places]

    def row(self, cell: str) -> np.ndarray | None:
        """Return the stored row of ``cell``; None if there is none, or its segment just proved damaged."""
        if (where := self._places.get(cell)) is None:
            return None
        rows, place = where
        try:
            return rows.row(place)
        except DamagedError:
            self._drop(rows)
            return None

    def look(self) -> None:
        """Look for missing cells among the segments there are now."""
        with self._changing:
            listed = set(indexes(self.space.place(self.key)))
            self._known = {index: segment for index, segment in self._known.items() if index in listed}
            for index in listed - self._known.keys():
                try:
                    self._known[index] = Segment(index, self.kind)
                except (DamagedError, FileNotFoundError):
                    remove_segment(index)
            missing = set(self.missing)
            overlap = {index: len(missing.intersection(it.cells)) for index, it in self._known.items()}
            # The fullest first: where a cell has two copies, take the one in a segment that is needed anyway.
            for index in sorted(overlap, key=lambda index: (-overlap[index], index)):
                if not missing.isdisjoint(self._known[index].cells):
                    self.hold(self._known[index], missing)
                    missing -= self._places.keys()

    def hold(self, segment: Segment, cells: Set[str]) -> None:
        """Take the rows of ``cells`` from ``segment``, as far as it has them, and keep it on disk."""
        try:
            rows = SegmentRows(segment, self.kind)
        except (DamagedError, FileNotFoundError):
            remove_segment(segment.index)
            return
        self.space.use(segment)
        with self._changing:
            places = {cell: (rows, place) for place, cell in enumerate(segment.cells) if cell in cells}
            self._places = self._places | places

    def release_sparse(self) -> list[str]:
        """Let those segments be removed of which little is needed; return their wanted cells.

        A few cells of a bank would otherwise pin all of an old stage's segments. The rows can be read as
        before, and be copied, but their segments may be gone when the next process looks.
        """
        needed = Counter(rows for rows, _ in self._places.values())
        sparse = {rows for rows, n in needed.items() if n < _SPARSE * len(rows.segment.cells)}
        for rows in sparse:
            self.space.release(rows.segment)
        cells = [cell for cell in self._wanted if cell in self and self._places[cell][0] in sparse]
        for cell in cells:
            self.row(cell)  # verifies: what is damaged is then missing, and not copied
        return [cell for cell in cells if cell in self]

    def _drop(self, rows: SegmentRows) -> None:
        with self._changing:
            remove_segment(rows.segment.index)
            self.space.release(rows.segment)
            self._known.pop(rows.segment.index, None)
            self._places = {cell: where for cell, where in self._places.items() if where[0] is not rows}


def keep_missing(finder: RowFinder, compute: ComputeCells) -> None:
    """Compute what ``finder`` misses and keep it, a segment at a time: what is finished stays.

    Where another process computes rows of the same key, this one waits and finds them. Cells for which there
    is no room, even after all that nobody here uses is removed, stay missing.

    Raises
    ------
    TrainingError
        If the disk cannot hold what is to be kept: before anything is computed, unless others fill the disk.
    """
    finder.look()
    if finder.missing:
        _fill(finder, compute)
    finder.space.make_room(0)


def _fill(finder: RowFinder, compute: ComputeCells) -> None:
    space, kind = finder.space, finder.kind
    short = kind.segment_bytes(len(finder.missing)) > space.room
    moving = finder.release_sparse() if short else []
    n_rows = len(moving) + len(finder.missing)
    if n_bytes := min(space.room, kind.segment_bytes(n_rows)):
        space.require(n_bytes, f"the features of {n_rows:,} cells")
    while finder.missing:
        with space.writing(finder.key) as folder:
            finder.look()  # another process may have been here first
            wanted = [*moving, *finder.missing]
            chosen = wanted[: kind.rows_within(min(space.room, space.segment_bytes))]
            if not chosen:
                return
            space.make_room(kind.segment_bytes(len(chosen)))
            finder.hold(_write(finder, compute, folder, chosen), set(chosen))
        moving = moving[len(chosen) :]


def _write(finder: RowFinder, compute: ComputeCells, folder: Path, chosen: list[str]) -> Segment:
    try:
        return write_segment(folder, finder.kind, chosen, _rows(finder, compute, chosen))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        n_bytes = finder.kind.segment_bytes(len(chosen))
        raise finder.space.refusal(n_bytes, f"the features of {len(chosen):,} cells") from error


def _rows(finder: RowFinder, compute: ComputeCells, chosen: list[str]) -> Iterator[np.ndarray]:
    """Yield the rows to store: copies of those that lie in another segment, then the computed ones."""
    encode = finder.kind.encode
    missing = [cell for cell in chosen if cell not in finder]
    for cell in chosen[: len(chosen) - len(missing)]:
        row = finder.row(cell)
        yield encode(next(compute([cell]))) if row is None else row
    yield from map(encode, compute(missing))
