"""Cells in a 10x folder: matrix.mtx, features.tsv (once genes.tsv) and barcodes.tsv, or their .gz."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from canal.annotation.barcoded import Barcoded, Features, only_x
from canal.data.h5ad_tables import reading
from canal.errors import DataError

_LINES = 1 << 20
_MATRIX, _GENES, _CELLS = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)
_COLUMNS = ("gene_ids", "symbols", "feature_types")


class MtxFolder(Barcoded):
    """A folder of CellRanger or of like programs; it has one matrix, X."""

    def __init__(self, path: Path) -> None:
        self._matrix = MtxMatrix(_file(path, _MATRIX), path)
        barcodes = [row[0] for row in _rows(path, _CELLS)]
        rows = list(_rows(path, _GENES))
        symbols = [row[1] if len(row) > 1 else row[0] for row in rows]
        width = min((len(row) for row in rows), default=0)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS[:width]) if i != 1}
        super().__init__(path, barcodes, Features(path, symbols, columns if width > 1 else {}))
        if self._matrix.shape != (len(barcodes), len(symbols)):
            raise DataError(
                f"{path}: the matrix is {self._matrix.shape[1]} features of {self._matrix.shape[0]} cells, "
                f"but there are {len(symbols)} features and {len(barcodes)} barcodes: the files are "
                "not of one folder, or one was cut short"
            )

    @staticmethod
    def found(path: Path) -> bool:
        """Return whether a folder holds a matrix."""
        return any((path / f"{_MATRIX[0]}{end}").is_file() for end in ("", ".gz"))

    def matrix(self, layer: str) -> MtxMatrix:
        """Return the matrix, cells by features."""
        only_x(self.path, layer)
        return self._matrix


class MtxMatrix:
    """A MatrixMarket file of genes by cells: a line for each stored value, in any order."""

    def __init__(self, file: Path, path: Path) -> None:
        self._file, self._path = file, path
        with reading(file, "its head"), _opened(file) as stream:
            head = stream.readline().decode("ascii").lower().split()
            if head[:3] != ["%%matrixmarket", "matrix", "coordinate"] or head[4:] != ["general"]:
                raise ValueError(f"expected '%%MatrixMarket matrix coordinate … general', found {head[:5]}")
            if head[3] not in ("integer", "real"):
                raise ValueError(f"expected integer or real values, found {head[3]!r}")
            self._skipped = 1
            while (line := stream.readline()).startswith(b"%"):
                self._skipped += 1
            self._skipped += 1
            genes, cells, self._n_stored = (int(word) for word in line.split())
            if min(genes, cells, self._n_stored) < 0:
                raise ValueError(f"negative sizes {line!r}")
        self.shape = (cells, genes)

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        return self._n_stored

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values), in the file's order.

        Raises
        ------
        DataError
            If there are fewer or more values than announced, or one lies outside the matrix.
        """
        import pandas as pd

        done = 0
        with reading(self._file, f"the lines behind {done:,} values"), _opened(self._file) as stream:
            for _ in range(self._skipped):
                stream.readline()
            parts = (
                pd.read_csv(
                    stream,
                    sep=r"\s+",
                    header=None,
                    names=["gene", "cell", "value"],
                    dtype={"gene": np.int64, "cell": np.int64, "value": np.float64},
                    chunksize=_LINES,
                    na_filter=False,
                )
                if self._n_stored
                else ()
            )
            for part in parts:
                cells, genes = part["cell"].to_numpy() - 1, part["gene"].to_numpy() - 1
                for what, found, limit in (("cell", cells, self.shape[0]), ("gene", genes, self.shape[1])):
                    if found.size and not 0 <= found.min() <= found.max() < limit:
                        raise ValueError(f"{what} {found.min() + 1}…{found.max() + 1}, expected 1…{limit}")
                done += len(part)
                with np.errstate(over="ignore"):
                    yield cells, genes, part["value"].to_numpy().astype(np.float32)
        if done != self._n_stored:
            raise DataError(
                f"{self._file}: {self._n_stored:,} values are announced, {done:,} are there: "
                "the file was cut short: fetch it again"
            )


def _file(path: Path, names: tuple[str, ...]) -> Path:
    wanted = [f"{name}{end}" for name in names for end in ("", ".gz")]
    found = next((path / name for name in wanted if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path}: expected one of {', '.join(wanted)} beside the matrix, found none")
    return found


def _rows(path: Path, names: tuple[str, ...]) -> Iterator[list[str]]:
    file = _file(path, names)
    with reading(file, "lines"), _opened(file) as stream:
        for line in stream:
            yield line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t")


def _opened(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", (gzip.open if file.suffix == ".gz" else open)(file, "rb"))
