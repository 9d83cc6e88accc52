"""The stored arrays of a CSR matrix, read and worked on by threads while the cells before are answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import h5py
import numpy as np

_THREADS = 2
"""HDF5 reads for one of them at a time, so that more would wait for it."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The next cells of a CSR matrix, as they are stored: nothing of them was looked at.

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
    del node  # HDF5 heeds the wish only where nobody else holds the array open
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def _filled(node: Any, begin: int, end: int, into: np.ndarray) -> np.ndarray:
    """Return entries ``begin`` to ``end`` of an array, in the first places of ``into`` where HDF5 reads."""
    if not isinstance(node, h5py.Dataset):
        found: np.ndarray = node[begin:end]
        return found
    if end > begin:
        node.read_direct(into, np.s_[begin:end], np.s_[: end - begin])
    return into[: end - begin]
