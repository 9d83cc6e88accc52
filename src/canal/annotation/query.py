"""Cells to be labelled, read a block at a time: an h5ad file or an AnnData in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.data.h5ad_tables import listed, strings
from canal.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

    from canal.data.h5ad import H5adFile
    from canal.data.h5ad_matrices import Matrix

IN_MEMORY = "the AnnData"


@dataclass(frozen=True, eq=False)
class Query:
    """A matrix of cells with what a refusal has to tell of where it comes from.

    Attributes
    ----------
    name : str
        The file, or `IN_MEMORY`.
    layer : str
        Which matrix: X, raw or a layer's name.
    matrix : Matrix
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
    matrix: Matrix
    genes: Sequence[str]
    layers: Sequence[str]
    columns: Mapping[str, Callable[[], list[str]]]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]


def query_file(file: H5adFile, layer: str, gene_column: str | None) -> Query:
    """Return the query that an open file is.

    Raises
    ------
    DataError
        If the file lacks the layer or the column.
    """
    matrix = file.matrix(layer)
    genes = file.var_names(layer) if gene_column is None else list(file.var_column(layer, gene_column))

    def column(name: str) -> list[str]:
        return list(file.var_column(layer, name))

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
    return Query(IN_MEMORY, layer, _InMemory(values), genes, layers, columns)


class _InMemory:
    """Rows of any matrix that slices: dense, sparse, or an h5ad file that anndata holds open."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.shape: tuple[int, int] = (int(values.shape[0]), int(values.shape[1]))

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return rows ``start`` to ``stop`` as float32 CSR of their own."""
        block = self._values[start:stop]
        kind = np.dtype(block.dtype).kind
        if kind not in "fiub":
            raise DataError(f"{IN_MEMORY}: expected numbers, found values of type {block.dtype}")
        result = csr_matrix(block, dtype=np.float32, copy=True)
        result.sum_duplicates()
        return result

    def chunks(self, size: int) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (first row, float32 CSR of the next ``size`` rows)."""
        for start in range(0, self.shape[0], size):
            yield start, self.rows(start, min(start + size, self.shape[0]))
