"""Writing a canonical h5ad file block by block: memory does not grow with cells, bytes do not vary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    import pandas as pd

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
        from anndata.io import write_elem

        self._group.attrs["shape"] = np.array([self._n_cells, self._n_genes], dtype=np.int64)
        for key, element in (("obs", obs), ("var", var), ("uns", dict(uns))):
            write_elem(self._file, key, element)
        for key in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(self._file, key, {})


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
