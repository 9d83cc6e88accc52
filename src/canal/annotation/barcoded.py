"""What every form of a 10x data set has: barcodes, features, and one matrix, X."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from canal.data.h5ad_tables import listed
from canal.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

EXPRESSION = "Gene Expression"
"""What version 3 calls a feature that is a gene; antibodies and guides are none."""


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


class Barcoded:
    """Cells that are called by their barcodes, with features for genes."""

    def __init__(self, path: Path, barcodes: Sequence[str], features: Features) -> None:
        self.path, self.features = path, features
        self._barcodes = list(barcodes)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._barcodes)

    @property
    def layers(self) -> list[str]:
        """What `matrix` can be asked for."""
        return ["X"]

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


def only_x(path: Path, layer: str) -> None:
    """Raise `DataError` unless ``layer`` is X: a file of 10x has no other."""
    if layer != "X":
        raise DataError(f"{path}: no matrix {layer!r}; there is 'X' alone")
