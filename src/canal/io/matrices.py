"""Read the matrices of an h5ad file or zarr store in blocks of rows: CSR, CSC and dense."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.core.errors import DataError
from canal.io.arrays import check_announced, check_chunks, reading, text, whole
from canal.io.blocks import Matrix, StoredRows, T, read_ahead, without_cache

_BLOCK = 1 << 20
"""Stored values of a CSC matrix held in memory at a time."""
_DENSE_BLOCK = 1 << 24
"""Values of a dense matrix held in memory at a time."""


def open_matrix(file: Any, path: Path, key: str, expected: tuple[int, int]) -> Matrix:
    """Return the matrix stored under ``key``, in any layout.

    ``file`` is an HDF5 file, or a zarr group that anndata wrote: both answer alike.

    Raises
    ------
    DataError
        If it is of no known layout, holds no numbers, contradicts itself, or is not of the shape
        ``expected``, the numbers of cells and genes.
    """
    with reading(path, key):
        node = file[key]
        if hasattr(node, "dtype"):
            _check_shape(node.shape, path, key, expected)
            return Dense(node, path)
        form = text(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", "")))
        shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
        kind = {"csr": Csr, "csc": Csc}.get(form.removesuffix("_matrix"))
        if kind is None or shape is None:
            raise DataError(f"{path}: {key!r} is neither dense nor CSR nor CSC (it says {form!r})")
        _check_shape(shape, path, key, expected)
        return kind(node, path, expected)


def _check_shape(shape: Any, path: Path, key: str, expected: tuple[int, int]) -> None:
    """Raise `DataError` where a matrix does not have the shape of obs and var, before reading it."""
    found = tuple(int(size) for size in shape)
    if found == expected:
        return
    if found == expected[::-1]:
        turned = f"{found[0]} genes by {found[1]} cells: it is transposed (anndata: write adata.T)"
        raise DataError(f"{path}: {key!r} is {turned}; obs has {expected[0]} rows, var has {expected[1]}")
    raise DataError(
        f"{path}: {key!r} is {' x '.join(map(str, found)) or 'a single value'}, "
        f"but there are {expected[0]} cells and {expected[1]} genes"
    )


class _Rows:
    """Base class that reads row blocks by ``_block``."""

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
        check_chunks(node, path, node.name)
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
    """Base class of CSR and CSC: three arrays, checked against each other."""

    def __init__(self, node: Any, path: Path, shape: tuple[int, int]) -> None:
        _check_numbers(node["data"])
        for name in ("indices", "indptr"):
            if node[name].dtype.kind not in "iu":
                raise ValueError(f"expected whole numbers in {name}, found values of type {node[name].dtype}")
        self._node, self._path, self._key, self.shape = node, path, node.name, shape
        self._data, self._indices = without_cache(node, "data"), without_cache(node, "indices")
        if min(shape) < 0:
            raise ValueError(f"the shape {shape} is none of a matrix")
        major, minor = shape if isinstance(self, Csr) else shape[::-1]
        stored = _check_sizes(self._data, self._indices, path, node.name, shape)
        self._pointers = whole(node["indptr"], path, f"{node.name}/indptr", major + 1).astype(np.int64)
        lengths = np.diff(self._pointers)
        if (lengths < 0).any() or self._pointers[[0, -1]].tolist() != [0, stored]:
            raise ValueError(f"indptr does not fit {stored} stored values of a matrix of shape {shape}")
        if (most := int(lengths.max(initial=0))) > minor:
            one, others = ("cell", "genes") if isinstance(self, Csr) else ("gene", "cells")
            raise ValueError(f"indptr gives {most:,} values to a {one}, and there are {minor:,} {others}")
        _check_missing(self._data, self._indices, self._pointers)

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
    """A CSR matrix: a block of rows is a slice."""

    def _block(self, start: int, stop: int) -> csr_matrix:
        first, last = self._pointers[start], self._pointers[stop]
        indices, values = self._stored(first, last)
        pointers = self._pointers[start : stop + 1] - first
        return csr_matrix((values, indices, pointers), shape=(stop - start, self.shape[1]))

    def ahead(self, size: int, start: int, work: Callable[[StoredRows], T]) -> Iterator[tuple[int, int, T]]:
        """Yield (first, stop, work on the rows as they are stored, unchecked); see `read_ahead`."""
        with reading(self._path, self._key):
            yield from read_ahead((self._indices, self._data, self._pointers), size, start, work)


class Csc(_Sparse):
    """A CSC matrix: converted once, block by block, into CSR arrays in unnamed temporary files."""

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
        """Return (indptr, indices, values) by row: one pass counts, one pass writes.

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
    """Return an array of ``size`` on disk that is deleted with its last reference."""
    if not size:
        return np.empty(0, dtype=dtype)
    with tempfile.TemporaryFile(prefix="canal-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=(size,))


def _check_sizes(data: Any, indices: Any, path: Path, name: str, shape: tuple[int, int]) -> int:
    """Return the number of stored values; raise for implausible numbers."""
    stored = int(data.shape[0]) if len(data.shape) == 1 else -1
    if stored < 0 or tuple(data.shape) != tuple(indices.shape):
        raise ValueError(f"data has the shape {tuple(data.shape)}, indices {tuple(indices.shape)}")
    if stored > shape[0] * shape[1]:
        raise ValueError(f"{stored:,} values are stored, and {shape[0]:,} x {shape[1]:,} have a place")
    for node, part in ((data, "data"), (indices, "indices")):
        check_chunks(node, path, f"{name}/{part}")
    check_announced(data, path, f"{name}/data", stored * (data.dtype.itemsize + indices.dtype.itemsize))
    return stored


def _check_missing(data: Any, indices: Any, pointers: np.ndarray) -> None:
    """Raise where a zarr array lacks chunks that cannot be zeros: zarr does not store chunks of zeros.

    A chunk of ``data`` that is not there was lost, or is one of stored zeros, which no one can tell. One of
    ``indices`` would give the first gene to each of its values: right only where each is of another cell.
    """
    lost = getattr(data, "nchunks", 0) - getattr(data, "nchunks_initialized", 0)
    if lost > 0:  # a shard that reaches over the end counts as whole
        raise ValueError(
            f"{lost} of {data.nchunks} chunks are not there: they were lost, or hold stored zeros alone "
            "(scipy: eliminate_zeros)"
        )
    if getattr(indices, "nchunks", 0) <= getattr(indices, "nchunks_initialized", 0):
        return
    step, before = int((getattr(indices, "shards", None) or indices.chunks)[0]), -1
    for start in range(0, indices.shape[0], step):
        found = indices[start : start + step]
        if found.any():
            continue
        owners = np.searchsorted(pointers, np.arange(start, start + len(found)), side="right") - 1
        if len(np.unique(owners)) < len(owners) or owners[0] == before:
            raise ValueError(
                f"{indices.nchunks - indices.nchunks_initialized} of {indices.nchunks} chunks are not there"
            )
        before = int(owners[-1])


def _check_numbers(node: Any) -> None:
    if node.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, found values of type {node.dtype}")


def _single(values: np.ndarray) -> np.ndarray:
    """Return ``values`` as float32; values out of range become infinite, which the gate rejects."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
