"""The matrices of an h5ad file or zarr store, read a block of rows at a time: CSR, CSC and dense."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.data.h5ad_tables import reading, text
from canal.errors import DataError

_BLOCK = 1 << 20
"""Stored values of a CSC matrix held in memory at a time."""
_DENSE_BLOCK = 1 << 24
"""Values of a dense matrix held in memory at a time."""


class Matrix(Protocol):
    """Cells by genes on disk."""

    shape: tuple[int, int]

    def chunks(self, size: int) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (first row, float32 CSR of the next ``size`` rows); indices sorted, duplicates summed."""
        ...

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return rows ``start`` to ``stop`` as float32 CSR."""
        ...


@runtime_checkable
class ByEntries(Protocol):
    """A matrix whose cells do not lie together: by gene, or in no order at all."""

    shape: tuple[int, int]

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        ...

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values) of the stored values, a bounded number at a time."""
        ...


def open_matrix(file: Any, path: Path, key: str) -> Matrix:
    """Return the matrix stored under ``key``, whatever its layout.

    ``file`` is an HDF5 file, or a zarr group that anndata wrote: both answer alike.

    Raises
    ------
    DataError
        If it is of no known layout, holds no numbers, or contradicts itself.
    """
    with reading(path, key):
        node = file[key]
        if hasattr(node, "dtype"):
            return Dense(node, path)
        form = text(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
        shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
        kind = {"csr": Csr, "csc": Csc}.get(form.removesuffix("_matrix"))
        if kind is None or shape is None:
            raise DataError(f"{path}: {key!r} is neither dense nor CSR nor CSC (it says {form!r})")
        return kind(node, path, (int(shape[0]), int(shape[1])))


class _Rows:
    """Reading row blocks on top of ``_block``."""

    shape: tuple[int, int]
    _path: Path
    _key: str

    def chunks(self, size: int) -> Iterator[tuple[int, csr_matrix]]:
        for start in range(0, self.shape[0], size):
            yield start, self.rows(start, min(start + size, self.shape[0]))

    def rows(self, start: int, stop: int) -> csr_matrix:
        with reading(self._path, self._key):
            block = self._block(start, stop)
            block.sum_duplicates()
            return block

    def _block(self, start: int, stop: int) -> csr_matrix:
        raise NotImplementedError


class Dense(_Rows):
    """A plain two-dimensional dataset."""

    def __init__(self, node: Any, path: Path) -> None:
        _check_numbers(node)
        if node.ndim != 2:
            raise ValueError(f"expected two dimensions, found shape {node.shape}")
        self._node, self._path, self._key = node, path, node.name
        self.shape = (int(node.shape[0]), int(node.shape[1]))

    def _block(self, start: int, stop: int) -> csr_matrix:
        step = max(1, _DENSE_BLOCK // max(1, self.shape[1]))
        parts = [
            csr_matrix(_single(self._node[first : min(first + step, stop)]))
            for first in range(start, max(stop, start + 1), step)
        ]
        return parts[0] if len(parts) == 1 else csr_matrix(vstack(parts))


class _Sparse(_Rows):
    """What CSR and CSC share: three arrays, checked against each other."""

    def __init__(self, node: Any, path: Path, shape: tuple[int, int]) -> None:
        _check_numbers(node["data"])
        self._node, self._path, self._key, self.shape = node, path, node.name, shape
        self._data, self._indices = node["data"], node["indices"]
        self._pointers = node["indptr"][:].astype(np.int64)
        if min(shape) < 0:
            raise ValueError(f"the shape {shape} is none of a matrix")
        major = shape[0] if isinstance(self, Csr) else shape[1]
        stored = int(min(self._data.shape[0], self._indices.shape[0]))
        rising = bool(np.all(np.diff(self._pointers) >= 0))
        if len(self._pointers) != major + 1 or not rising or self._pointers[[0, -1]].tolist() != [0, stored]:
            raise ValueError(f"indptr does not fit {stored} stored values of a matrix of shape {shape}")
        _check_chunks(self._data, self._indices)

    def _stored(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices, values) of the stored entries ``start`` to ``stop``; indices are in range."""
        limit = self.shape[1] if isinstance(self, Csr) else self.shape[0]
        indices = self._indices[start:stop].astype(np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < limit:
            raise ValueError(
                f"indices reach from {indices.min()} to {indices.max()}, expected 0..{limit - 1}"
            )
        return indices, _single(self._data[start:stop])


class Csr(_Sparse):
    """Compressed by cell: a block of rows is a slice."""

    def _block(self, start: int, stop: int) -> csr_matrix:
        first, last = self._pointers[start], self._pointers[stop]
        indices, values = self._stored(first, last)
        pointers = self._pointers[start : stop + 1] - first
        return csr_matrix((values, indices, pointers), shape=(stop - start, self.shape[1]))


class Csc(_Sparse):
    """Compressed by gene: turned once, block by block, into CSR arrays in unnamed temporary files."""

    def __init__(self, node: Any, path: Path, shape: tuple[int, int]) -> None:
        super().__init__(node, path, shape)
        self._turned: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def _block(self, start: int, stop: int) -> csr_matrix:
        if self._turned is None:
            self._turned = self._turn()
        pointers, indices, values = self._turned
        first, last = pointers[start], pointers[stop]
        parts = (
            np.array(values[first:last]),
            np.array(indices[first:last]),
            pointers[start : stop + 1] - first,
        )
        return csr_matrix(parts, shape=(stop - start, self.shape[1]))

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        return int(self._pointers[-1])

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values), gene by gene."""
        total = self.n_stored
        for start in range(0, total, _BLOCK):
            with reading(self._path, self._key):
                cells, values = self._stored(start, min(start + _BLOCK, total))
            yield cells, self._genes(start, len(cells)), values

    def _genes(self, start: int, n: int) -> np.ndarray:
        genes: np.ndarray = np.searchsorted(self._pointers, np.arange(start, start + n), side="right") - 1
        return genes

    def _turn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (indptr, indices, values) by row: one pass counts, one pass places.

        Genes are visited in order, so that a row's indices come out sorted.
        """
        total = int(self._pointers[-1])
        counts = np.zeros(self.shape[0] + 1, dtype=np.int64)
        for start in range(0, total, _BLOCK):
            rows, _ = self._stored(start, min(start + _BLOCK, total))
            counts[1:] += np.bincount(rows, minlength=self.shape[0])
        pointers = np.cumsum(counts)
        indices, values = _scratch(total, np.int32), _scratch(total, np.float32)
        free = pointers[:-1].copy()
        for start in range(0, total, _BLOCK):
            rows, block = self._stored(start, min(start + _BLOCK, total))
            genes = self._genes(start, len(rows))
            order = np.argsort(rows, kind="stable")
            filled = np.bincount(rows, minlength=self.shape[0])
            within = np.arange(len(rows)) - np.repeat(np.cumsum(filled) - filled, filled)
            places = free[rows[order]] + within
            indices[places], values[places] = genes[order], block[order]
            free += filled
        return pointers, indices, values


def _scratch(size: int, dtype: type) -> np.ndarray:
    """Return an array of ``size`` on disk that vanishes with its last user."""
    if not size:
        return np.empty(0, dtype=dtype)
    with tempfile.TemporaryFile(prefix="canal-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=(size,))


def _check_chunks(*nodes: Any) -> None:
    """Raise where a zarr array lacks chunks: they would be read as zeros, which no one stored."""
    for node in nodes:
        if getattr(node, "nchunks_initialized", 0) < getattr(node, "nchunks", 0):
            raise ValueError(
                f"{node.nchunks - node.nchunks_initialized} of {node.nchunks} chunks are not there"
            )


def _check_numbers(node: Any) -> None:
    if node.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, found values of type {node.dtype}")


def _single(values: np.ndarray) -> np.ndarray:
    """Return ``values`` as float32; what does not fit becomes infinite, which the gate refuses."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
