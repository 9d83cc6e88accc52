"""Reading an h5ad file as a stream, today's layout and those before anndata 0.7 alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.core.errors import DataError
from canal.data.features import NotGenes, not_genes
from canal.data.h5ad_matrices import Matrix, open_matrix
from canal.data.h5ad_tables import Table, listed, reading, text
from canal.data.hdf5 import open_hdf5

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def open_h5ad(path: Path) -> Iterator[H5adFile]:
    """Open an h5ad file for reading; nothing but tables' indices is read before it is asked for.

    Raises
    ------
    DataError
        As `canal.data.hdf5.open_hdf5`; or if the file holds no obs and var.
    """
    with open_hdf5(path) as file:
        with reading(path, "/"):
            cells = H5adFile(file, path)
        yield cells


class H5adFile:
    """An open h5ad file, or zarr store. ``layer`` is ``"X"``, ``"raw"`` or the name of a layer everywhere."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self.path = file, path
        self._obs = Table(file, path, "obs")
        self._tables = {"var": Table(file, path, "var")}
        self._not_genes: dict[str, NotGenes] = {}

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._obs.size

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns that describe cells."""
        return list(self._obs.columns)

    @property
    def layers(self) -> list[str]:
        """What `matrix` can be asked for."""
        with reading(self.path, "layers"):
            found = ["X"] if "X" in self._file else []
            found += ["raw"] if self._raw_prefix() else []
            return found + self._layer_names()

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix ``layer``, of shape (n_cells, n_genes).

        Raises
        ------
        DataError
            If there is none of that name (the message lists those there are) or its shape does not fit
            obs and var.
        """
        key = self._matrix_key(layer)
        return open_matrix(self._file, self.path, key, (self.n_cells, self._var(layer).size))

    def obs_names(self) -> list[str]:
        """Return the cells' names as the file has them."""
        return self._obs.names()

    def obs_column(self, name: str) -> pd.Series:
        """Return a column of obs as str, nulls as ``""``; raises `DataError` if it is not there."""
        return self._obs.column(name)

    def var_names(self, layer: str) -> list[str]:
        """Return the names of the genes of ``layer``; ``""`` for a feature that is no gene."""
        return self.not_genes(layer).blanked(self._var(layer).names())

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of the columns that describe the genes of ``layer``."""
        return list(self._var(layer).columns)

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return a column of the genes of ``layer`` as str, ``""`` for a feature that is no gene.

        Raises
        ------
        DataError
            If there is no such column.
        """
        column = self._var(layer).column(name)
        none = self.not_genes(layer)
        return column.where(none.is_gene, "") if none.kinds else column

    def not_genes(self, layer: str) -> NotGenes:
        """Return which features of ``layer`` are no genes."""
        if layer not in self._not_genes:
            table = self._var(layer)
            columns = {name: partial(table.column, name) for name in table.columns}
            self._not_genes[layer] = not_genes(table.size, columns)
        return self._not_genes[layer]

    def note(self, name: str) -> str:
        """Return the text stored as ``uns[name]``; raises `DataError` if there is none."""
        with reading(self.path, f"uns/{name}"):
            node = self._file[f"uns/{name}"]
            if node.shape != ():
                raise ValueError(f"expected one text, found an array of shape {node.shape}")
            return text(node[()])

    def _raw_prefix(self) -> str:
        """Return how raw's members begin: ``raw/`` today, ``raw.`` before 0.7, ``""`` without raw."""
        return next((prefix for prefix in ("raw/", "raw.") if f"{prefix}X" in self._file), "")

    def _layer_names(self) -> list[str]:
        if "layers" not in self._file:
            return []
        if hasattr(self._file["layers"], "dtype"):
            raise ValueError("expected a group of matrices, found an array")
        return sorted(self._file["layers"])

    def _muon(self) -> str:
        """Return how to take a modality out of a file of MuData; ``""`` for any other."""
        if "mod" not in self._file:
            return ""
        with reading(self.path, "mod"):
            kinds = [] if hasattr(self._file["mod"], "dtype") else sorted(self._file["mod"])
        chosen = "rna" if "rna" in kinds or not kinds else kinds[0]
        return (
            f". This is MuData, with the modalities {listed(kinds)}: write the one with expression to its "
            f"own file, with mudata.read({str(self.path)!r})[{chosen!r}].write_h5ad('{chosen}.h5ad')"
        )

    def _matrix_key(self, layer: str) -> str:
        if layer not in self.layers:
            raise DataError(
                f"{self.path}: no matrix {layer!r}; there are {listed(self.layers)}{self._muon()}"
            )
        if layer == "raw":
            return f"{self._raw_prefix()}X"
        return "X" if layer == "X" else f"layers/{layer}"

    def _var(self, layer: str) -> Table:
        self._matrix_key(layer)
        key = f"{self._raw_prefix()}var" if layer == "raw" else "var"
        if key not in self._tables:
            self._tables[key] = Table(self._file, self.path, key)
        return self._tables[key]
