"""What every form of a 10x data set has: barcodes, features, and one matrix, X."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.errors import DataError
from canal.data.features import NotGenes, not_genes
from canal.data.h5ad_tables import listed

if TYPE_CHECKING:
    import pandas as pd


class Features:
    """The rows of a 10x matrix: symbols, and columns that describe them."""

    def __init__(self, path: Path, symbols: Sequence[str], columns: dict[str, list[str]]) -> None:
        if odd := [name for name, column in columns.items() if len(column) != len(symbols)]:
            raise DataError(
                f"{path}: {listed(odd)} do not have one value for each of {len(symbols)} features"
            )
        self._path, self.symbols, self.columns = path, list(symbols), columns

    @cached_property
    def not_genes(self) -> NotGenes:
        """Which features are no genes, so that they count nowhere."""
        columns = {name: partial(self.columns.__getitem__, name) for name in self.columns}
        return not_genes(len(self.symbols), columns)

    def genes(self) -> list[str]:
        """Return the symbols; ``""`` for a feature that is no gene."""
        return self.not_genes.blanked(self.symbols)

    def column(self, name: str) -> pd.Series:
        """Return a column as str; raises `DataError` if there is none of that name."""
        import pandas as pd

        if name not in self.columns:
            raise DataError(f"{self._path}: no column {name!r}; features have {listed(list(self.columns))}")
        return pd.Series(self.not_genes.blanked(self.columns[name]), name=name, dtype=object)

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

    def not_genes(self, layer: str) -> NotGenes:
        """Return which features are no genes."""
        return self.features.not_genes

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return obs and var."""
        import pandas as pd

        return pd.DataFrame(index=pd.Index(self._barcodes, dtype=object)), self.features.table()


def only_x(path: Path, layer: str) -> None:
    """Raise `DataError` unless ``layer`` is X: a file of 10x has no other."""
    if layer != "X":
        raise DataError(f"{path}: no matrix {layer!r}; there is 'X' alone")
