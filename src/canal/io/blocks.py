"""Read a matrix in blocks of cells: by threads ahead of use, or regrouped in one pass if stored by gene."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar, runtime_checkable

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from canal.core.errors import DataError


class ByCell(Protocol):
    """A matrix that is read in blocks of cells."""

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return cells ``start`` to ``stop`` as float32 CSR."""
        ...


class Matrix(Protocol):
    """A matrix of cells by genes on disk."""

    shape: tuple[int, int]

    def chunks(self, size: int) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (first row, float32 CSR of the next ``size`` rows); indices sorted, duplicates summed."""
        ...

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return rows ``start`` to ``stop`` as float32 CSR."""
        ...


@runtime_checkable
class ByEntries(Protocol):
    """A matrix that is stored by gene or in no order, and is read entry by entry."""

    shape: tuple[int, int]

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        ...

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values) of the stored values, a bounded number at a time."""
        ...


# The stored arrays of a CSR matrix, read and processed by threads while earlier cells are labelled.

_THREADS = 2
"""Reading threads; HDF5 serves one at a time, so more would wait."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The next cells of a CSR matrix, as stored and unchecked.

    Attributes
    ----------
    start : int
        Position of the first cell.
    indices, values : numpy.ndarray
        Columns and values of the stored entries, of the file's own types. They are gone once the work on
        these cells is done.
    pointers : numpy.ndarray
        int64 ``(n_cells + 1,)``: where each cell's entries begin, from 0 on.
    """

    start: int
    indices: np.ndarray
    values: np.ndarray
    pointers: np.ndarray

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.pointers) - 1


def read_ahead(
    arrays: tuple[Any, Any, np.ndarray], size: int, start: int, work: Callable[[StoredRows], T]
) -> Iterator[tuple[int, int, T]]:
    """Yield (first cell, cell behind the last, what ``work`` makes of them) of the next ``size`` cells.

    Threads read and work on the cells behind meanwhile.

    Parameters
    ----------
    arrays
        Indices and values, one-dimensional arrays of an HDF5 file or zarr store; and pointers, int64
        ``(n_cells_in_all + 1,)``, checked: they rise from 0 to the number of stored entries.
    size, start
        Cells at a time, and the first one.
    work
        Is called by other threads, for two pieces at a time.
    """
    indices, values, pointers = arrays
    n_cells = len(pointers) - 1
    firsts = range(start, n_cells, size)
    ends = np.minimum(np.array(firsts, dtype=np.int64) + size, n_cells)
    most = int((pointers[ends] - pointers[start:n_cells:size]).max(initial=0))
    room = [(np.empty(most, indices.dtype), np.empty(most, values.dtype)) for _ in range(_THREADS)]

    def done(number: int) -> tuple[int, int, T]:
        first, stop = firsts[number], int(ends[number])
        own = pointers[first : stop + 1]
        begin, end = int(own[0]), int(own[-1])
        into_indices, into_values = room[number % _THREADS]
        found = _filled(indices, begin, end, into_indices), _filled(values, begin, end, into_values)
        return first, stop, work(StoredRows(first, *found, own - begin))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="canal-read") as pool:
        coming: deque[Future[tuple[int, int, T]]] = deque()
        for number in range(len(firsts) + _THREADS):
            finished = coming.popleft().result() if number >= _THREADS else None
            if number < len(firsts):
                coming.append(pool.submit(done, number))  # the room of what finished is free
            if finished is not None:
                yield finished


def without_cache(group: Any, name: str) -> Any:
    """Return an array of a group; of an HDF5 file, one that is not compressed is read past HDF5's cache.

    Chunks that are stored as they are need no place to be unpacked to: to copy them there first takes as
    long as to read them.
    """
    node = group[name]
    if not isinstance(node, h5py.Dataset) or not node.chunks or node.id.get_create_plist().get_nfilters():
        return node
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    del node  # HDF5 applies the cache setting only if the array is not open elsewhere
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def _filled(node: Any, begin: int, end: int, into: np.ndarray) -> np.ndarray:
    """Read entries ``begin`` to ``end`` of an array, into the start of ``into`` where HDF5 allows."""
    if not isinstance(node, h5py.Dataset):
        found: np.ndarray = node[begin:end]
        return found
    if end > begin:
        node.read_direct(into, np.s_[begin:end], np.s_[: end - begin])
    return into[: end - begin]


# A matrix that is not stored by cell, regrouped in one pass with little memory.

_ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("value", np.float32)])
_BUCKET = 1 << 22
"""Approximate entries of a bucket: 48 MiB on disk, a few times that in memory while it is read."""
_MOST_BUCKETS = 400

Check = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
Undone = Callable[[np.ndarray], np.ndarray]


class RegroupedMatrix:
    """The chosen columns of a matrix, regrouped by cell; a ``with`` block frees its temporary files.

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
        n_cells, share = max(1, matrix.shape[0]), float(np.mean(columns >= 0)) if columns.size else 0.0
        per_cell = max(1.0, matrix.n_stored * share / n_cells)
        self._per_bucket = max(1, int(_BUCKET / per_cell), -(-n_cells // _MOST_BUCKETS))
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()
        try:
            self._fill(matrix, columns, counted, check)
        except OSError as error:
            self._stack.close()
            raise DataError(
                f"the temporary folder {tempfile.gettempdir()} has no space for the cells' values ({error}): "
                "free space, or name another folder with TMPDIR"
            ) from error
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> RegroupedMatrix:
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
            buckets = cells[kept] // self._per_bucket
            order = np.argsort(buckets, kind="stable")  # those of a bucket stay in the order they came
            kept = kept[order]
            entries = np.empty(len(kept), dtype=_ENTRY)
            entries["cell"] = cells[kept] % self._per_bucket
            entries["gene"], entries["value"] = columns[genes[kept]], values[kept]
            bounds = np.searchsorted(buckets[order], np.arange(n_buckets + 1))
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
