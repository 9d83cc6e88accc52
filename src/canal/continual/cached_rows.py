"""One row a cell, read from the cache or computed: the same bits either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from canal.continual.cache_space import CacheSpace
from canal.continual.row_finder import RowFinder
from canal.continual.row_keeper import keep_missing
from canal.continual.segments import RowKind

Compute = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Gives the float32 row of each position asked for, in order; its bits may not depend on the others."""


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
