"""Cells in an HDF5 file of CellRanger, version 2 or 3: the matrix lies by cell, genes by barcodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from canal.annotation.barcoded import Barcoded, Features, only_x
from canal.core.errors import DataError
from canal.data.arrays import whole
from canal.data.h5ad_matrices import Csr, Matrix
from canal.data.h5ad_tables import listed, reading, strings

_V3 = {"gene_ids": "features/id", "feature_types": "features/feature_type", "genome": "features/genome"}
_V2 = {"gene_ids": "genes"}


class TenxFile(Barcoded):
    """An open CellRanger file; it has one matrix, X."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._node = self.group_of(file)
        with reading(path, self._node.name):
            barcodes = strings(whole(self._node["barcodes"], path, "barcodes")).tolist()
            features = self._features(path)
        super().__init__(path, barcodes, features)

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
            genomes = [node.name.lstrip("/") for node in groups]
            raise DataError(
                f"{file.filename}: there are matrices of {len(genomes)} genomes, {listed(genomes)}: write "
                "the one that the model knows to its own file, as with "
                f"scanpy.read_10x_h5(PATH, genome={genomes[0]!r}).write_h5ad(OUT)"
            )
        return groups[0] if groups else None

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix, cells by features; raises `DataError` if it is damaged."""
        only_x(self.path, layer)
        with reading(self.path, self._node.name):
            genes, cells = (int(size) for size in whole(self._node["shape"], self.path, "shape", 2))
            if (cells, genes) != (self.n_cells, len(self.features.symbols)):
                raise ValueError(
                    f"the matrix is {genes} x {cells}, but there are {len(self.features.symbols)} features "
                    f"and {self.n_cells} barcodes"
                )
            return Csr(self._node, self.path, (cells, genes))

    def _features(self, path: Path) -> Features:
        new = "features" in self._node
        keys = _V3 if new else _V2

        def texts(key: str) -> list[str]:
            return list(strings(whole(self._node[key], path, key)))

        columns = {name: texts(key) for name, key in keys.items() if key in self._node}
        return Features(path, texts("features/name" if new else "gene_names"), columns)
