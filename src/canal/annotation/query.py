"""Cells to be labelled, read a block at a time: a file or an AnnData in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.annotation.gathering import picked
from canal.data.h5ad_matrices import ByEntries, Csc
from canal.data.h5ad_tables import listed, reading, strings
from canal.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

IN_MEMORY = "the AnnData"
_BLOCKS = 5
_BLOCK_CELLS = 40
_STORED = 1 << 20


class ByCell(Protocol):
    """A matrix that gives blocks of cells."""

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return cells ``start`` to ``stop`` as float32 CSR."""
        ...


class CellFile(Protocol):
    """An open file of cells, in whatever format; ``layer`` names one of its matrices everywhere."""

    path: Path

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        ...

    @property
    def layers(self) -> list[str]:
        """What `matrix` can be asked for."""
        ...

    def matrix(self, layer: str) -> ByCell | ByEntries:
        """Return a matrix, cells by genes."""
        ...

    def obs_names(self) -> list[str]:
        """Return the cells' names."""
        ...

    def var_names(self, layer: str) -> list[str]:
        """Return the genes' names; ``""`` for a column that is no gene."""
        ...

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of the columns that describe genes."""
        ...

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return a column that describes genes, as str."""
        ...


class TabledFile(CellFile, Protocol):
    """A file of a format that is not anndata's, which can be written as one that is."""

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return obs and var."""
        ...


@dataclass(frozen=True, eq=False)
class Query:
    """A matrix of cells with what a refusal has to tell of where it comes from.

    Attributes
    ----------
    name : str
        The file, or `IN_MEMORY`.
    layer : str
        Which matrix: X, raw or a layer's name.
    matrix : ByCell or ByEntries
        ``(n_cells, n_genes)``.
    genes : sequence of str
        Names of the columns, as they are taken for symbols.
    layers : sequence of str
        All matrices there are.
    columns : dict
        For each column of var a function that reads it.
    """

    name: str
    layer: str
    matrix: ByCell | ByEntries
    genes: Sequence[str]
    layers: Sequence[str]
    columns: Mapping[str, Callable[[], list[str]]]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @cached_property
    def sample(self) -> csr_matrix:
        """Up to 200 cells, evenly spread, float32 ``(n, n_genes)`` without stored zeros."""
        size = min(_BLOCK_CELLS, self.n_cells)
        starts = np.unique(np.linspace(0, self.n_cells - size, _BLOCKS).astype(np.int64)).tolist()
        if isinstance(self.matrix, ByEntries):
            cells = np.unique(np.concatenate([np.arange(start, start + size) for start in starts]))
            sample = picked(self.matrix, cells)
        else:
            sample = csr_matrix(vstack([self.matrix.rows(start, start + size) for start in starts]))
        sample.eliminate_zeros()
        return sample


def query_file(file: CellFile, layer: str, gene_column: str | None) -> Query:
    """Return the query that an open file is.

    Raises
    ------
    DataError
        If the file lacks the layer or the column.
    """

    def column(name: str) -> list[str]:
        return list(file.var_column(layer, name))

    with reading(file.path, layer):
        matrix = file.matrix(layer)
        genes = file.var_names(layer) if gene_column is None else column(gene_column)
        columns = {name: partial(column, name) for name in file.var_columns(layer)}
        return Query(str(file.path), layer, matrix, genes, file.layers, columns)


def query_adata(adata: AnnData, layer: str, gene_column: str | None) -> Query:
    """Return the query that an AnnData is; nothing of it is changed.

    Raises
    ------
    DataError
        If the AnnData lacks the layer or the column.
    """
    always = {"X": adata.X, "raw": adata.raw}
    layers = [*(name for name, there in always.items() if there is not None), *adata.layers]
    if layer not in layers:
        raise DataError(f"{IN_MEMORY}: no matrix {layer!r}; there are {listed(layers)}")
    values = {"X": lambda: adata.X, "raw": lambda: adata.raw.X}.get(layer, lambda: adata.layers[layer])()
    var = adata.raw.var if layer == "raw" else adata.var
    if gene_column is not None and gene_column not in var:
        raise DataError(f"{IN_MEMORY}: var has no column {gene_column!r}; it has {listed(list(var))}")

    def column(name: str) -> list[str]:
        return list(strings(var[name].to_numpy(dtype=object)))

    genes = list(strings(var.index.to_numpy(dtype=object))) if gene_column is None else column(gene_column)
    columns = {str(name): partial(column, name) for name in var}
    return Query(IN_MEMORY, layer, _matrix(values), genes, layers, columns)


def _matrix(values: Any) -> ByCell | ByEntries:
    """Return a matrix of an AnnData; one by gene is not sliced by cell, which would read all of it."""
    if getattr(values, "format", "") != "csc":
        return _InMemory(values)
    if not hasattr(values, "group"):
        return _InMemoryByGene(values)
    with reading(Path(IN_MEMORY), "X"):
        return Csc(values.group, Path(IN_MEMORY), (int(values.shape[0]), int(values.shape[1])))


class _InMemory:
    """Rows of any matrix that slices: dense, sparse, or an h5ad file that anndata holds open."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.shape: tuple[int, int] = (int(values.shape[0]), int(values.shape[1]))

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return rows ``start`` to ``stop`` as float32 CSR of their own."""
        block = self._values[start:stop]
        _check_numbers(block)
        result = csr_matrix(block, dtype=np.float32, copy=True)
        result.sum_duplicates()
        return result


class _InMemoryByGene:
    """A CSC matrix."""

    def __init__(self, values: Any) -> None:
        _check_numbers(values)
        self._values = values
        self.shape: tuple[int, int] = (int(values.shape[0]), int(values.shape[1]))

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        return int(self._values.indptr[-1])

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values), gene by gene."""
        held = self._values
        for start in range(0, self.n_stored, _STORED):
            stop = min(start + _STORED, self.n_stored)
            genes = np.searchsorted(held.indptr, np.arange(start, stop), side="right") - 1
            yield held.indices[start:stop], genes, held.data[start:stop].astype(np.float32)


def _check_numbers(values: Any) -> None:
    if np.dtype(values.dtype).kind not in "fiub":
        raise DataError(f"{IN_MEMORY}: expected numbers, found values of type {values.dtype}")
