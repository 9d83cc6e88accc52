"""Cells in a loom file: dense layers of genes by cells, read a block of cells at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.core.errors import DataError
from canal.data.arrays import ROW, check_announced, check_chunks, whole
from canal.data.features import NotGenes, not_genes
from canal.data.h5ad_tables import listed, reading, strings

if TYPE_CHECKING:
    import pandas as pd

_CELLS, _GENES = ("CellID", "obs_names", "cell_id"), ("Gene", "var_names", "gene_name", "Accession")
_BLOCK = 1 << 24
"""Values in memory at a time."""


class LoomFile:
    """An open loom file: X is ``matrix``; what has one value a cell or gene is read, the rest is left."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path, self._file = path, file
        with reading(path, "matrix"):
            node = file["matrix"]
            self._n_genes, self._n_cells = (int(size) for size in node.shape)
            check_announced(node, path, "matrix", (self._n_genes + self._n_cells) * ROW)
        self._obs = self._attributes("col_attrs", self._n_cells)
        self._var = self._attributes("row_attrs", self._n_genes)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._n_cells

    @property
    def layers(self) -> list[str]:
        """What `matrix` can be asked for."""
        with reading(self.path, "layers"):
            layers = self._file.get("layers", ())
            return ["X", *sorted(name for name in layers if name)]

    def matrix(self, layer: str) -> LoomMatrix:
        """Return a layer, cells by genes; raises `DataError` if there is none of that name."""
        if layer not in self.layers:
            raise DataError(f"{self.path}: no matrix {layer!r}; there are {listed(self.layers)}")
        with reading(self.path, layer):
            node = self._file["matrix" if layer == "X" else f"layers/{layer}"]
            return LoomMatrix(node, self.path, (self._n_cells, self._n_genes))

    def obs_names(self) -> list[str]:
        """Return the cells' names; their numbers where the file has none."""
        return self._names(self._obs, _CELLS, self._n_cells)

    def var_names(self, layer: str) -> list[str]:
        """Return the genes' names; ``""`` for a feature that is no gene."""
        return self.not_genes(layer).blanked(self._names(self._var, _GENES, self._n_genes))

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of what describes genes."""
        return list(self._var)

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return what describes genes, as str."""
        import pandas as pd

        if name not in self._var:
            raise DataError(f"{self.path}: no column {name!r}; genes have {listed(list(self._var))}")
        return pd.Series(self.not_genes(layer).blanked(strings(self._var[name])), name=name, dtype=object)

    def not_genes(self, layer: str) -> NotGenes:
        """Return which features are no genes."""
        return not_genes(
            self._n_genes, {name: partial(strings, column) for name, column in self._var.items()}
        )

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return obs and var."""
        import pandas as pd

        tables = []
        for columns, known, n in ((self._obs, _CELLS, self._n_cells), (self._var, _GENES, self._n_genes)):
            shown = {name: strings(v) if v.dtype.kind in "SO" else v for name, v in columns.items()}
            tables.append(pd.DataFrame(shown, index=pd.Index(self._names(columns, known, n), dtype=object)))
        return tables[0], tables[1]

    def _names(self, columns: dict[str, np.ndarray], known: Sequence[str], n: int) -> list[str]:
        name = next((name for name in known if name in columns), None)
        return [str(i) for i in range(n)] if name is None else strings(columns[name]).tolist()

    def _attributes(self, key: str, n: int) -> dict[str, np.ndarray]:
        with reading(self.path, key):
            nodes = {name: node for name, node in self._file[key].items() if isinstance(node, h5py.Dataset)}
            fitting = {name: node for name, node in nodes.items() if node.shape == (n,)}
            return {name: whole(node, self.path, f"{key}/{name}") for name, node in fitting.items()}


class LoomMatrix:
    """A dense dataset of genes by cells."""

    def __init__(self, node: Any, path: Path, shape: tuple[int, int]) -> None:
        if not isinstance(node, h5py.Dataset) or node.shape != shape[::-1]:
            raise ValueError(f"expected {shape[1]} genes by {shape[0]} cells, found {node!r}")
        if node.dtype.kind not in "fiub":
            raise ValueError(f"expected numbers, found values of type {node.dtype}")
        check_chunks(node, path, node.name)
        self._node, self._path, self.shape = node, path, shape

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return cells ``start`` to ``stop`` as float32 CSR."""
        step = max(1, _BLOCK // max(1, self.shape[1]))
        with reading(self._path, self._node.name), np.errstate(over="ignore"):
            parts = [
                csr_matrix(self._node[:, first : min(first + step, stop)].astype(np.float32).T)
                for first in range(start, stop, step)
            ]
        return csr_matrix(vstack(parts)) if parts else csr_matrix((0, self.shape[1]), dtype=np.float32)
