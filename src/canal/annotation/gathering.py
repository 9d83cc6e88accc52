"""A matrix that does not lie cell by cell, gathered into blocks of cells in one pass and little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np
from scipy.sparse import csr_matrix

from canal.core.errors import DataError
from canal.data.h5ad_matrices import ByEntries

_ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("value", np.float32)])
_BUCKET = 1 << 22
"""Entries of a bucket, about: 48 MiB on disk, a few times that in memory while it is read."""
_MOST_BUCKETS = 400

Check = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
Undone = Callable[[np.ndarray], np.ndarray]


class Gathered:
    """What was kept of a matrix, by cell; use it in a ``with`` block, which frees the temporary files.

    Cells are parted into buckets of neighbours, one unnamed temporary file each. One pass over the matrix
    throws each entry into its cell's bucket, so memory holds a block of entries, one bucket and 8 bytes a
    cell (its total), whatever the number of cells; the disk holds 12 bytes for each entry that is kept.

    Parameters
    ----------
    matrix
        Cells by genes.
    columns
        For each gene the column it becomes, or -1 where its entries are not kept.
    counted
        For each gene whether it belongs to a cell's total.
    check
        Is given (cells, genes, values) of each block and raises where a value is wrong.
    undone
        What values are before they add up to a total: say, the logarithm undone.
    """

    def __init__(
        self, matrix: ByEntries, columns: np.ndarray, counted: np.ndarray, check: Check, undone: Undone
    ) -> None:
        self._undone = undone
        self.shape = (matrix.shape[0], int(columns.max(initial=-1)) + 1)
        self.totals = np.zeros(self.shape[0])
        self._per_bucket = _cells_per_bucket(matrix, float(np.mean(columns >= 0)) if columns.size else 0.0)
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()
        try:
            self._fill(matrix, columns, counted, check)
        except OSError as error:
            self._stack.close()
            raise DataError(
                f"the temporary folder {tempfile.gettempdir()} does not hold the cells' values ({error}): "
                "make room, or name another one with TMPDIR"
            ) from error
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def chunks(self, size: int, start: int = 0) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (first cell, float32 CSR of the next ``size`` cells), from cell ``start`` on."""
        held, bucket = csr_matrix((0, self.shape[1]), dtype=np.float32), -1
        while start < self.shape[0]:
            if start // self._per_bucket != bucket:
                bucket = start // self._per_bucket
                held = self._bucket(bucket)
            first = start - bucket * self._per_bucket
            stop = min(first + size, held.shape[0])
            yield start, held[first:stop]
            start += stop - first

    def _fill(self, matrix: ByEntries, columns: np.ndarray, counted: np.ndarray, check: Check) -> None:
        n_buckets = -(-self.shape[0] // self._per_bucket)
        self._files = [
            self._stack.enter_context(tempfile.TemporaryFile(prefix="canal-"))  # noqa: SIM115
            for _ in range(n_buckets)
        ]
        for cells, genes, values in matrix.entries():
            check(cells, genes, values)
            weights = np.where(counted[genes], self._undone(values), 0.0)
            self.totals += np.bincount(cells, weights=weights, minlength=self.shape[0])
            kept = np.flatnonzero(columns[genes] >= 0)
            self._throw(cells[kept], columns[genes[kept]], values[kept])

    def _throw(self, cells: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Append entries to their cells' buckets, in the order they came."""
        buckets = cells // self._per_bucket
        order = np.argsort(buckets, kind="stable")
        entries = np.empty(len(cells), dtype=_ENTRY)
        entries["cell"] = (cells % self._per_bucket)[order]
        entries["gene"], entries["value"] = columns[order], values[order]
        bounds = np.searchsorted(buckets[order], np.arange(len(self._files) + 1))
        for bucket in np.flatnonzero(np.diff(bounds)):
            self._files[bucket].write(entries[bounds[bucket] : bounds[bucket + 1]].tobytes())

    def _bucket(self, number: int) -> csr_matrix:
        """Return the cells of a bucket; entries of one cell and gene add up."""
        file = self._files[number]
        file.seek(0)
        entries = np.frombuffer(file.read(), dtype=_ENTRY)
        n = min(self._per_bucket, self.shape[0] - number * self._per_bucket)
        block = csr_matrix(
            (entries["value"], (entries["cell"], entries["gene"])), shape=(n, self.shape[1]), dtype=np.float32
        )
        block.sum_duplicates()
        return block


def picked(matrix: ByEntries, cells: np.ndarray) -> csr_matrix:
    """Return some cells, float32 ``(len(cells), n_genes)``, after one pass; ``cells`` are in rising order."""
    parts = []
    for found, genes, values in matrix.entries():
        at = np.minimum(np.searchsorted(cells, found), max(0, len(cells) - 1))
        wanted = np.flatnonzero(cells[at] == found)
        parts.append((at[wanted], genes[wanted], values[wanted]))
    shape = (len(cells), matrix.shape[1])
    if not parts:
        return csr_matrix(shape, dtype=np.float32)
    rows, columns, data = (np.concatenate(part) for part in zip(*parts, strict=True))
    return csr_matrix((data, (rows, columns)), shape=shape, dtype=np.float32)


def _cells_per_bucket(matrix: ByEntries, share: float) -> int:
    n_cells = max(1, matrix.shape[0])
    per_cell = max(1.0, matrix.n_stored * share / n_cells)
    return max(1, int(_BUCKET / per_cell), -(-n_cells // _MOST_BUCKETS))
