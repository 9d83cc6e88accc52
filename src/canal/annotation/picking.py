"""A model's genes and the totals of cells that lie in a file, in one pass over what is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix

from canal.data.stored_rows import StoredRows

_PORTION = 1 << 18
"""Stored entries looked at together: they stay in the processor's cache for all that is asked of them."""
_WORTH = 4
"""A pass pays where at most one of so many columns is wanted."""
_INFINITE = np.float32(np.inf).view(np.uint32)
"""Bits of numbers from 0 on rise with them; those of negative ones and of NaN lie above, as whole numbers."""
_EXACT = 2.0**24
"""Whole numbers below have a float32 of their own, and so has every sum of them that is below."""


class Picker:
    """Takes a model's genes out of stored rows.

    Rows in which anything is unusual (an index out of order or twice, a value that is not finite, negative
    or, where it must be whole, is not) are left to who reads them by the book, and says what is wrong.

    Parameters
    ----------
    chosen
        ``(n_columns, n_panel_genes)``: 1 where a column contributes to a gene of the model.
    counted
        bool ``(n_columns,)``: whether a column belongs to a cell's total.
    whole
        Whether every value must be a whole number.
    totals
        Whether the cells' totals are wanted; only whole numbers are added up here, since their sum does not
        depend on their order.
    """

    def __init__(self, chosen: csr_matrix, counted: np.ndarray, whole: bool, totals: bool) -> None:
        wanted = np.flatnonzero(np.diff(chosen.indptr))
        narrow = csr_matrix(chosen[wanted])
        self._n_columns, self._n_genes = chosen.shape
        self._is_wanted = np.zeros(self._n_columns, dtype=bool)
        self._is_wanted[wanted] = True
        self._place = np.zeros(self._n_columns, dtype=np.int32)
        alone = len(np.unique(narrow.indices)) == narrow.nnz == len(wanted)
        self._narrow = None if alone else narrow
        self._place[wanted] = narrow.indices if alone else np.arange(len(wanted))
        self._weights = None if counted.all() else counted.astype(np.float32)
        self._whole, self._totals = whole, totals
        self.pays = len(wanted) * _WORTH <= self._n_columns and (whole or not totals)

    def pick(self, rows: StoredRows) -> tuple[csr_matrix, np.ndarray] | None:
        """Return (float32 values ``(n_cells, n_panel_genes)``, float64 totals), or None for unusual rows.

        Totals are 0 where they are not wanted.
        """
        totals = np.zeros(rows.n_cells)
        parts = []
        for first, stop in _portions(rows.pointers):
            begin, end = rows.pointers[first], rows.pointers[stop]
            pointers = rows.pointers[first : stop + 1] - begin
            indices, values = _native(rows.indices[begin:end]), _single(rows.values[begin:end])
            if not (self._in_order(indices, pointers) and self._sound(values)):
                return None
            if self._totals:
                summed = self._summed(indices, values, pointers)
                if summed is None:
                    return None
                totals[first:stop] = summed
            found = np.flatnonzero(self._is_wanted[indices.astype(np.intp, copy=False)])
            lengths = np.diff(np.searchsorted(found, pointers))
            parts.append((values[found], self._place[indices[found]], lengths))
        data, columns, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if self._narrow is None:
            return csr_matrix((data, columns, ends), shape=(rows.n_cells, self._n_genes)), totals
        block = csr_matrix((data, columns, ends), shape=(rows.n_cells, self._narrow.shape[0]))
        return csr_matrix(block @ self._narrow), totals

    def _in_order(self, indices: np.ndarray, pointers: np.ndarray) -> bool:
        """Return whether indices are columns of the matrix, and rise within each row."""
        if not indices.size:
            return True
        unsigned = indices.view(f"u{indices.dtype.itemsize}")  # what is negative is very large
        if unsigned.max() >= self._n_columns:
            return False
        rises = indices[:-1] < indices[1:]
        rises[pointers[(pointers > 0) & (pointers < len(indices))] - 1] = True
        return bool(rises.all())

    def _sound(self, values: np.ndarray) -> bool:
        """Return whether values are finite, not negative (nor -0) and, where they must be, whole."""
        if not values.size:
            return True
        if values.view(np.uint32).max() >= _INFINITE:
            return False
        return not self._whole or bool((np.rint(values) == values).all())

    def _summed(self, indices: np.ndarray, values: np.ndarray, pointers: np.ndarray) -> np.ndarray | None:
        """Return the rows' sums over the columns that count, None where float32 may not hold them."""
        if self._weights is not None:
            values = values * self._weights[indices.astype(np.intp, copy=False)]
        sums = np.zeros(len(pointers) - 1)
        filled = np.flatnonzero(np.diff(pointers))
        if filled.size:
            sums[filled] = np.add.reduceat(values, pointers[filled])
        return sums if sums.max(initial=0) < _EXACT else None


def _portions(pointers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of neighbouring rows with few entries together, at least one row."""
    first, n_rows = 0, len(pointers) - 1
    while first < n_rows:
        fits = int(np.searchsorted(pointers, pointers[first] + _PORTION, side="right")) - 1
        stop = min(max(fits, first + 1), n_rows)
        yield first, stop
        first = stop


def _single(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _native(indices: np.ndarray) -> np.ndarray:
    return indices.astype(indices.dtype.newbyteorder("="), copy=False)
