"""Writing cells: h5ad files block by block, room for them taken before, texts that are no formulas."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from canal.core.errors import CanalError, DataError
from canal.io.blocks import ByEntries, RegroupedMatrix

if TYPE_CHECKING:
    import pandas as pd

    from canal.io.blocks import ByCell
    from canal.io.locations import Location

_CHUNK = 1 << 16
"""Values in one compressed piece of the file."""


class H5adWriter:
    """An h5ad file under construction, as anndata reads it: rows are appended, tables close it."""

    def __init__(self, path: Path, n_genes: int) -> None:
        self._file = h5py.File(path, "w", track_order=False)
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = self._file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        self._data = _growing(group, "data", np.float32)
        self._indices = _growing(group, "indices", np.int32)
        self._pointers = _growing(group, "indptr", np.int64)
        _append(self._pointers, np.zeros(1, dtype=np.int64))
        self._group, self._n_genes, self._n_cells = group, n_genes, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, block: csr_matrix) -> None:
        """Add the rows of ``block`` (n, n_genes) float32."""
        _append(self._pointers, block.indptr[1:].astype(np.int64) + len(self._data))
        _append(self._data, block.data)
        _append(self._indices, block.indices)
        self._n_cells += block.shape[0]

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, str]) -> None:
        """Write the tables; the file is an AnnData from here on."""
        self._group.attrs["shape"] = np.array([self._n_cells, self._n_genes], dtype=np.int64)
        for key, element in (("obs", obs), ("var", var), ("uns", dict(uns))):
            write_element(self._file, key, element)
        for key in ("layers", "obsm", "obsp", "varm", "varp"):
            write_element(self._file, key, {})


def _growing(group: h5py.Group, name: str, dtype: type) -> h5py.Dataset:
    return group.create_dataset(
        name,
        shape=(0,),
        maxshape=(None,),
        dtype=dtype,
        chunks=(_CHUNK,),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
        track_times=False,
    )


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = len(dataset)
    dataset.resize((start + len(values),))
    dataset[start:] = values


# What a copy of cells or a new file of them is written by: elements, and room on the disk.

_SLACK = 1 << 20
"""Bytes for HDF5's own records."""


def write_element(group: Any, key: str, element: Any) -> None:
    """Write a table, an array, a text or a mapping into a group of HDF5 or zarr, as anndata does."""
    from anndata.io import write_elem

    write_elem(group, key, element)


class DiskSpace:
    """Disk space taken before HDF5 writes to it: HDF5 does not survive a disk that fills meanwhile.

    What was taken and not used is given back when the file is opened for writing and closed again.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._taken = path, path.stat().st_size

    def take(self, size: int) -> None:
        """Take ``size`` more bytes and some for HDF5's own; raises `OSError` where there are not so many."""
        size += _SLACK
        with self._path.open("rb+") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), self._taken, size)
            else:  # macOS has no call for it
                stream.seek(self._taken)
                for done in range(0, size, _SLACK):
                    stream.write(bytes(min(_SLACK, size - done)))
        self._taken += size


def size_of(table: pd.DataFrame, note: str = "") -> int:
    """Return a bound of the bytes that a table and a note take in HDF5."""
    size = int(table.memory_usage(index=True, deep=True).sum())
    return 2 * size + 64 * len(table) + 4 * len(note)


@contextmanager
def writing(target: Location) -> Iterator[None]:
    """Turn what the disk refuses into a `DataError` that names the output."""
    try:
        yield
    except CanalError:
        raise
    except Exception as error:  # HDF5 tells a full disk by RuntimeError or KeyError, too
        raise DataError(f"{target} cannot be written ({error}); nothing was left behind") from error


_CELLS = 2000
_STORED = 8
"""Bytes of a stored value and its gene."""


def write_matrix(file: h5py.File, key: str, matrix: ByCell | ByEntries, room: DiskSpace) -> None:
    """Write a matrix as float32 CSR, a block of cells at a time; memory does not grow with cells."""
    group = file.create_group(key)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(matrix.shape)
    kinds = {"data": np.float32, "indices": np.int32}
    made: dict[str, Any] = {
        name: group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(_CHUNK,), dtype=kind)
        for name, kind in kinds.items()
    }
    pointers = [np.zeros(1, dtype=np.int64)]
    stored = 0
    for block in _blocks(matrix):
        room.take(block.nnz * _STORED + 8 * block.shape[0])
        for name, dataset in made.items():
            dataset.resize((stored + block.nnz,))
            dataset[stored:] = getattr(block, name)
        pointers.append(block.indptr[1:].astype(np.int64) + stored)
        stored += block.nnz
    group.create_dataset("indptr", data=np.concatenate(pointers))


def _blocks(matrix: ByCell | ByEntries) -> Iterator[csr_matrix]:
    if isinstance(matrix, ByEntries):
        everything = np.arange(matrix.shape[1])
        nothing = np.zeros(matrix.shape[1], dtype=bool)
        gathered = RegroupedMatrix(
            matrix, everything, nothing, lambda cells, genes, values: None, lambda values: values
        )
        with gathered:
            for _, block in gathered.chunks(_CELLS):
                yield block
        return
    for start in range(0, matrix.shape[0], _CELLS):
        yield matrix.rows(start, min(start + _CELLS, matrix.shape[0]))


# Text that a spreadsheet takes for text: names from a file may begin as a formula does.

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_MARKED = re.compile(r"'+[=+\-@\t\r]")


def as_text(value: str) -> str:
    """Return a text with an apostrophe before it where a spreadsheet would take it for a formula.

    What already begins with apostrophes before such a sign gets one more, so `original` is exact.
    """
    return f"'{value}" if _FORMULA.match(value) else value


def original(value: str) -> str:
    """Return the text that `as_text` was given."""
    return value[1:] if _MARKED.match(value) else value


def table_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts, row names included, are as `as_text` makes them; numbers stay numbers."""
    import pandas as pd

    def text(value: object) -> object:
        return as_text(value) if isinstance(value, str) else value

    shown = table.copy(deep=False)
    for place, name in enumerate(table.columns):
        column = table.iloc[:, place]
        if isinstance(column.dtype, pd.CategoricalDtype):
            values = column.cat.rename_categories(text)
        elif column.dtype == object:
            values = column.map(text)
        else:
            continue
        shown[name] = values
    names = [text(name) for name in table.index]
    shown.index = pd.Index(names, name=table.index.name, dtype=table.index.dtype)
    return shown
