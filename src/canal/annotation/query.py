"""The cells to label, from a file or an AnnData in memory, as one interface that reads blocks of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.core.errors import DataError, there_are
from canal.io.arrays import EXAMPLES, listed, reading, strings
from canal.io.blocks import ByCell, ByEntries, picked
from canal.io.formats import CellFile
from canal.io.h5ad import COLUMNS, NotGenes, not_genes
from canal.io.hdf5 import check_open, open_hdf5
from canal.io.locations import Location, location
from canal.io.matrices import Csc

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

IN_MEMORY = "the AnnData"
_BLOCKS = 5
_BLOCK_CELLS = 40
_STORED = 1 << 20


@dataclass(frozen=True, eq=False)
class Query:
    """A matrix of cells, with the names that messages need.

    Attributes
    ----------
    name : str
        The file, or `IN_MEMORY`.
    layer : str
        Which matrix: X, raw or a layer's name.
    matrix : ByCell or ByEntries
        ``(n_cells, n_genes)``.
    genes : sequence of str
        Names of the matrix's columns.
    layers : sequence of str
        The names of all matrices.
    columns : dict
        For each column of var a function that reads it.
    cells : callable
        Reads the cells' names.
    not_genes : NotGenes or None
        Columns of the matrix that are not genes; their names are ``""``.
    """

    name: str
    layer: str
    matrix: ByCell | ByEntries
    genes: Sequence[str]
    layers: Sequence[str]
    columns: Mapping[str, Callable[[], list[str]]]
    cells: Callable[[], Sequence[str]] = tuple
    not_genes: NotGenes | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @cached_property
    def sample(self) -> csr_matrix:
        """Up to 200 cells, evenly spread, float32 ``(n, n_genes)`` without stored zeros; genes alone."""
        size = min(_BLOCK_CELLS, self.n_cells)
        starts = np.unique(np.linspace(0, self.n_cells - size, _BLOCKS).astype(np.int64)).tolist()
        if isinstance(self.matrix, ByEntries):
            cells = np.unique(np.concatenate([np.arange(start, start + size) for start in starts]))
            sample = picked(self.matrix, cells)
        else:
            sample = csr_matrix(vstack([self.matrix.rows(start, start + size) for start in starts]))
        if self.not_genes is not None and self.not_genes.kinds:
            sample = csr_matrix(sample[:, np.flatnonzero(self.not_genes.is_gene)])
        sample.eliminate_zeros()
        return sample


def query_file(file: CellFile, layer: str, gene_column: str | None) -> Query:
    """Return an open file as a query.

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
        none = file.not_genes(layer)
        return Query(str(file.path), layer, matrix, genes, file.layers, columns, file.obs_names, none)


def query_adata(adata: AnnData, layer: str, gene_column: str | None) -> Query:
    """Return an AnnData as a query; the AnnData is not changed.

    Raises
    ------
    DataError
        If the AnnData lacks the layer or the column.
    """
    check_adata(adata)
    always = {"X": adata.X, "raw": adata.raw}
    layers = [*(name for name, matrix in always.items() if matrix is not None), *adata.layers]
    if layer not in layers:
        raise DataError(f"{IN_MEMORY}: no matrix {layer!r}{there_are(layer, layers, show=listed)}")
    values = {"X": lambda: adata.X, "raw": lambda: adata.raw.X}.get(layer, lambda: adata.layers[layer])()
    var = adata.raw.var if layer == "raw" else adata.var
    if gene_column is not None and gene_column not in var:
        has = there_are(gene_column, var, "it has", listed)
        raise DataError(f"{IN_MEMORY}: var has no column {gene_column!r}{has}")

    def read(name: str) -> list[str]:
        return list(strings(var[name].to_numpy(dtype=object)))

    none = not_genes(len(var), {name: partial(read, name) for name in COLUMNS if name in var})

    def column(name: str) -> list[str]:
        return none.blanked(read(name))

    own = none.blanked(strings(var.index.to_numpy(dtype=object)).tolist())
    genes = own if gene_column is None else column(gene_column)
    columns = {str(name): partial(column, name) for name in var}
    cells: Callable[[], list[str]] = partial(list, adata.obs_names)
    return Query(IN_MEMORY, layer, _matrix(values), genes, layers, columns, cells, none)


_EXPRESSION = ("rna", "gex", "gene expression")
"""What the modality with expression is called in MuData."""


def given_cells(given: Any, write: bool = False) -> AnnData | Location:
    """Return what a user handed over as an AnnData in memory, or as path or address of a file or folder.

    A pandas DataFrame is read as cells by genes; of MuData (recognised by ``mod``, so that it need not be
    installed) the modality with expression is taken: the only one, or the one called rna.

    Raises
    ------
    DataError
        If it is nothing of this, values of a DataFrame are no numbers, or no single modality can be the one
        with expression; with ``write`` also if labels cannot be written into it.
    """
    import pandas as pd
    from anndata import AnnData

    if write and isinstance(given, str | Path | pd.DataFrame):
        raise DataError(
            f"write=True writes into an AnnData, found {type(given).__qualname__}: leave it out and use the "
            "table that is returned; `canal annotate IN -o OUT` writes a labelled copy of a file"
        )
    if isinstance(given, str | Path):
        return location(given) if isinstance(given, str) else given
    if isinstance(given, pd.DataFrame):
        _check_table(given)
        cells = AnnData(given.to_numpy(dtype=np.float32, na_value=np.nan))
        cells.obs_names, cells.var_names = given.index.astype(str), given.columns.astype(str)
        return cells
    if isinstance(getattr(given, "mod", None), Mapping) and not isinstance(given, AnnData):
        given = _modality(given)
    check_adata(given)
    adata: AnnData = given
    return adata


def _check_table(table: pd.DataFrame) -> None:
    """Raise unless a table holds numbers alone, with one name for each cell and gene."""
    if table.columns.nlevels > 1 or table.index.nlevels > 1:
        raise DataError("the table: expected one name for each cell and gene, found several levels of names")
    kinds = dict(zip(map(str, table.columns), table.dtypes, strict=True))
    if wrong := [f"{name} ({kind})" for name, kind in kinds.items() if kind.kind not in "fiub"]:
        raise DataError(
            f"the table: expected numbers alone, cells by genes, found other values in {len(wrong):,} of "
            f"{table.shape[1]:,} columns: {listed(wrong, 5)}: leave these columns out"
        )
    names = table.index.astype(str)
    if (again := names[names.duplicated()]).size:
        raise DataError(
            f"the table: expected each cell's name once in its index, found {again.size:,} names again, such "
            f"as {listed(list(again), EXAMPLES)}: the table may be of several samples: give their cells "
            "different names"
        )
    if nameless := [str(i) for i in np.flatnonzero(table.index.isna() | (names.str.strip() == ""))]:
        raise DataError(
            f"the table: expected a name for each cell in its index, found {len(nameless):,} without, such "
            f"as at {listed(nameless, EXAMPLES)}: name them"
        )


def _modality(mdata: Any) -> Any:
    kinds = [str(name) for name in mdata.mod]
    chosen = kinds if len(kinds) == 1 else [name for name in kinds if name.casefold() in _EXPRESSION]
    if len(chosen) != 1:
        raise DataError(
            f"expected one modality with expression (called rna), found {listed(kinds)}: give the one to "
            "label, as mdata.mod[NAME]"
        )
    return mdata.mod[chosen[0]]


def check_adata(adata: Any) -> None:
    """Raise unless ``adata`` is an AnnData, in memory or backed.

    Raises
    ------
    DataError
        With the type of the object, and how to convert it.
    """
    import pandas as pd
    from anndata import AnnData

    kind = f"{type(adata).__module__.split('.')[0]}.{type(adata).__qualname__}"
    if not isinstance(adata, AnnData):
        raise DataError(
            f"expected an AnnData, found {kind}: give cells by genes as anndata.AnnData, a pandas DataFrame, "
            "or the path of a file"
        )
    if not isinstance(adata.obs, pd.DataFrame) or not isinstance(adata.var, pd.DataFrame):
        raise DataError(
            "expected an AnnData in memory, found one that is read lazily: give adata.to_memory()"
        )
    if adata.isbacked:
        path = Path(str(adata.filename))
        if adata.file.is_open:
            check_open(adata.file._file, path)
        else:
            with open_hdf5(path):
                pass  # anndata opens it again by itself


def _matrix(values: Any) -> ByCell | ByEntries:
    """Return a matrix of an AnnData; CSC is read by gene, since slicing cells would scan all of it."""
    if type(values).__module__.split(".")[0] == "dask":
        raise DataError(f"{IN_MEMORY}: its matrix is read lazily (dask): give adata.to_memory()")
    if getattr(values, "ndim", 2) != 2 or not hasattr(values, "dtype"):
        raise DataError(
            f"{IN_MEMORY}: expected a matrix of cells by genes, found {type(values).__qualname__}"
        )
    if isinstance(values, np.ma.MaskedArray):
        raise DataError(f"{IN_MEMORY}: its matrix is masked: fill it first, for example by values.filled(0)")
    if hasattr(values, "indptr") and not hasattr(values, "group"):
        _check_sparse(values)
    if getattr(values, "format", "") != "csc":
        return _InMemory(values)
    if not hasattr(values, "group"):
        return _InMemoryByGene(values)
    with reading(Path(IN_MEMORY), "X"):
        return Csc(values.group, Path(IN_MEMORY), (int(values.shape[0]), int(values.shape[1])))


def _check_sparse(values: Any) -> None:
    """Raise where a sparse matrix is inconsistent: scipy does not check, and reads beyond its arrays."""
    major, minor = values.shape if values.format == "csr" else values.shape[::-1]
    pointers, indices = np.asarray(values.indptr), np.asarray(values.indices)
    sound = (
        len(pointers) == major + 1
        and pointers[0] == 0
        and bool((np.diff(pointers) >= 0).all())
        and pointers[-1] <= min(len(indices), len(values.data))
        and (not indices.size or (indices.min() >= 0 and indices.max() < minor))
    )
    if not sound:
        raise DataError(
            f"{IN_MEMORY}: its sparse matrix of {values.shape[0]:,} x {values.shape[1]:,} is damaged: "
            "indices or indptr do not fit its shape (scipy: check_format)"
        )


class _InMemory:
    """Rows of any matrix that can be sliced: dense, sparse, or backed by a file."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.shape: tuple[int, int] = (int(values.shape[0]), int(values.shape[1]))

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return a copy of rows ``start`` to ``stop`` as float32 CSR."""
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
