"""Where the row of each cell lies: in which segment that some stage, run or process has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from threading import RLock

import numpy as np

from canal.continual.cache_space import CacheSpace
from canal.continual.segments import DamagedError, RowKind, Segment, SegmentRows, indexes, remove_segment

_SPARSE = 0.5


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
