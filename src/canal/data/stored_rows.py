"""The stored arrays of a CSR matrix, read by a thread while the cells before are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The next cells of a CSR matrix, as they are stored: nothing of them was looked at.

    Attributes
    ----------
    start : int
        Position of the first cell.
    indices, values : numpy.ndarray
        Columns and values of the stored entries, of the file's own types. They are gone once the next
        cells are asked for.
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
    indices: Any, values: Any, pointers: np.ndarray, size: int, start: int = 0
) -> Iterator[StoredRows]:
    """Yield the next ``size`` cells of a matrix, from cell ``start`` on; those behind are read meanwhile.

    Parameters
    ----------
    indices, values
        One-dimensional arrays of an HDF5 file or zarr store.
    pointers
        int64 ``(n_cells_in_all + 1,)``, checked: they rise from 0 to the number of stored entries.
    size, start
        Cells at a time, and the first one.
    """
    n_cells = len(pointers) - 1
    firsts = np.arange(start, n_cells, size)
    most = int((pointers[np.minimum(firsts + size, n_cells)] - pointers[firsts]).max(initial=0))
    # One pair of arrays is looked at while the other is filled.
    held = [(np.empty(most, indices.dtype), np.empty(most, values.dtype)) for _ in range(2)]

    def read(number: int) -> StoredRows:
        first, (into_indices, into_values) = int(firsts[number]), held[number % 2]
        own = pointers[first : first + size + 1]
        begin, end = int(own[0]), int(own[-1])
        return StoredRows(
            first,
            _filled(indices, begin, end, into_indices),
            _filled(values, begin, end, into_values),
            own - begin,
        )

    with ThreadPoolExecutor(1, thread_name_prefix="canal-read") as reader:
        coming = reader.submit(read, 0) if len(firsts) else None
        for number in range(len(firsts)):
            assert coming is not None  # noqa: S101 - there is one for each number
            rows = coming.result()
            coming = reader.submit(read, number + 1) if number + 1 < len(firsts) else None
            yield rows


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
