"""Cells in an HDF5 file of CellRanger, version 2 or 3: the matrix lies by cell, genes by barcodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from canal.data.h5ad_matrices import Csr, Matrix
from canal.data.h5ad_tables import listed, reading, strings
from canal.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

EXPRESSION = "Gene Expression"
"""What version 3 calls a feature that is a gene; antibodies and guides are none."""

_V3 = {"gene_ids": "features/id", "feature_types": "features/feature_type", "genome": "features/genome"}
_V2 = {"gene_ids": "genes"}


class Features:
    """The rows of a 10x matrix: symbols, and columns that describe them."""

    def __init__(self, path: Path, symbols: Sequence[str], columns: dict[str, list[str]]) -> None:
        if odd := [name for name, column in columns.items() if len(column) != len(symbols)]:
            raise DataError(
                f"{path}: {listed(odd)} do not have one value for each of {len(symbols)} features"
            )
        self._path, self.symbols, self.columns = path, list(symbols), columns

    def genes(self) -> list[str]:
        """Return the symbols; ``""`` for a feature that is no gene, so that it counts nowhere."""
        kinds = self.columns.get("feature_types", [])
        if not any(kind == EXPRESSION for kind in kinds):
            return list(self.symbols)
        return [name if kind == EXPRESSION else "" for name, kind in zip(self.symbols, kinds, strict=True)]

    def column(self, name: str) -> pd.Series:
        """Return a column as str; raises `DataError` if there is none of that name."""
        import pandas as pd

        if name not in self.columns:
            raise DataError(f"{self._path}: no column {name!r}; features have {listed(list(self.columns))}")
        genes = self.genes()
        values = [value if gene else "" for value, gene in zip(self.columns[name], genes, strict=True)]
        return pd.Series(values, name=name, dtype=object)

    def table(self) -> pd.DataFrame:
        """Return var as scanpy reads it: indexed by symbol."""
        import pandas as pd

        return pd.DataFrame(self.columns, index=pd.Index(self.symbols, dtype=object))


class TenxFile:
    """An open CellRanger file; it has one matrix, X."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path, self._node = path, self.group_of(file)
        with reading(path, self._node.name):
            self._barcodes = strings(self._node["barcodes"][:]).tolist()
            self.features = self._features()

    @staticmethod
    def group_of(file: h5py.File) -> Any:
        """Return the group with the matrix, or None; version 2 has one for each genome.

        Raises
        ------
        DataError
            If there are several genomes.
        """
        needed = {"barcodes", "data", "indices", "indptr", "shape"}
        groups = [node for node in file.values() if isinstance(node, h5py.Group) and needed <= set(node)]
        if len(groups) > 1:
            raise DataError(
                f"{file.filename}: there are matrices of {len(groups)} genomes, "
                f"{listed([node.name.lstrip('/') for node in groups])}: write one of them to its own file"
            )
        return groups[0] if groups else None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._barcodes)

    @property
    def layers(self) -> list[str]:
        """What `matrix` can be asked for."""
        return ["X"]

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix, cells by features; raises `DataError` if it is damaged."""
        only_x(self.path, layer)
        with reading(self.path, self._node.name):
            genes, cells = (int(size) for size in self._node["shape"][:])
            if (cells, genes) != (self.n_cells, len(self.features.symbols)):
                raise ValueError(
                    f"the matrix is {genes} x {cells}, but there are {len(self.features.symbols)} features "
                    f"and {self.n_cells} barcodes"
                )
            return Csr(self._node, self.path, (cells, genes))

    def obs_names(self) -> list[str]:
        """Return the barcodes."""
        return list(self._barcodes)

    def var_names(self, layer: str) -> list[str]:
        """Return the symbols of genes; ``""`` for a feature that is none."""
        return self.features.genes()

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of what describes features."""
        return list(self.features.columns)

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return what describes features, as str."""
        return self.features.column(name)

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return obs and var."""
        import pandas as pd

        return pd.DataFrame(index=pd.Index(self._barcodes, dtype=object)), self.features.table()

    def _features(self) -> Features:
        new = "features" in self._node
        keys = _V3 if new else _V2
        symbols = self._node["features/name" if new else "gene_names"][:]
        columns = {
            name: strings(self._node[key][:]).tolist() for name, key in keys.items() if key in self._node
        }
        return Features(self.path, strings(symbols).tolist(), columns)


def only_x(path: Path, layer: str) -> None:
    """Raise `DataError` unless ``layer`` is X: a file of 10x has no other."""
    if layer != "X":
        raise DataError(f"{path}: no matrix {layer!r}; there is 'X' alone")
