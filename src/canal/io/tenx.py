"""Read 10x data sets: CellRanger's HDF5 files, and folders with matrix.mtx, barcodes and features."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import h5py
import numpy as np

from canal.core.errors import DataError, there_are
from canal.core.files import regular_file
from canal.io.arrays import EXAMPLES, ROW, listed, reading, strings, whole
from canal.io.blocks import Matrix
from canal.io.h5ad import NotGenes, not_genes
from canal.io.matrices import Csr
from canal.io.zarr_store import check_link

if TYPE_CHECKING:
    import pandas as pd


# What every form of a 10x data set has: barcodes, features, and one matrix, X.


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
            has = there_are(name, self.columns, "features have", listed)
            raise DataError(f"{self._path}: no column {name!r}{has}")
        return pd.Series(self.not_genes.blanked(self.columns[name]), name=name, dtype=object)

    def table(self) -> pd.DataFrame:
        """Return var as scanpy reads it: indexed by symbol."""
        import pandas as pd

        return pd.DataFrame(self.columns, index=pd.Index(self.symbols, dtype=object))


class Barcoded:
    """Base class of 10x data sets: barcodes, features, and one matrix, X."""

    assumed = ""

    def __init__(self, path: Path, barcodes: Sequence[str], features: Features) -> None:
        self.path, self.features = path, features
        self._barcodes = list(barcodes)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self._barcodes)

    @property
    def layers(self) -> list[str]:
        """The names that `matrix` accepts."""
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
    """Raise `DataError` unless ``layer`` is X, the only matrix of 10x."""
    if layer != "X":
        raise DataError(f"{path}: no matrix {layer!r}; there is 'X' alone")


# A 10x folder: matrix.mtx, features.tsv (once genes.tsv) and barcodes.tsv, or their .gz.

_LINES = 1 << 20
_MATRIX, _GENES, _CELLS = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)
_COLUMNS = ("gene_ids", "symbols", "feature_types")
_LONGEST = 1 << 16
"""Bytes of a line; a longer one is none of these files."""
_PER_VALUE = 200
"""Bytes of a line of the matrix, on the average; more are no numbers."""
_COMMENTS = 10_000
_ALWAYS, _TIMES = 1 << 28, 64
"""Bytes of a table that any file may unpack to, and how many more for each byte of it."""


class MtxFolder(Barcoded):
    """A folder of CellRanger or a similar program; it has one matrix, X."""

    def __init__(self, path: Path) -> None:
        self._matrix = MtxMatrix(_file(path, _MATRIX), path)
        barcodes = [row[0] for row in _rows(path, _CELLS)]
        rows = _rows(path, _GENES)
        symbols = [row[1] if len(row) > 1 else row[0] for row in rows]
        width = min((len(row) for row in rows), default=0)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS[:width]) if i != 1}
        super().__init__(path, barcodes, Features(path, symbols, columns if width > 1 else {}))
        if self._matrix.shape != (len(barcodes), len(symbols)):
            raise self._shape_error(len(symbols), len(barcodes))
        self._matrix.check_sizes()

    def _shape_error(self, n_genes: int, n_cells: int) -> DataError:
        cells, genes = self._matrix.shape
        found = f"{self.path}: the matrix is {genes} features of {cells} cells"
        if (cells, genes) == (n_genes, n_cells):
            return DataError(
                f"{self.path}: the matrix is transposed, {genes} cells by {cells} features, as kallisto "
                "and alevin write it: write it features by cells (scipy.io.mmwrite of the transposed matrix)"
            )
        if (n_genes - genes, n_cells - cells) in ((0, 1), (1, 0), (1, 1)):
            what = "barcodes" if n_cells > cells else "features"
            return DataError(
                f"{found}, but there are {n_genes} features and {n_cells} barcodes: the first line of {what} "
                "may name the columns, as R's write.table does; write it without (col.names=FALSE)"
            )
        return DataError(
            f"{found}, but there are {n_genes} features and {n_cells} barcodes: the files are "
            "from different folders, or one was cut short"
        )

    @staticmethod
    def found(path: Path) -> bool:
        """Return whether a folder holds a matrix."""
        return any((path / f"{_MATRIX[0]}{end}").is_file() for end in ("", ".gz"))

    @staticmethod
    def is_part(name: str) -> bool:
        """Return whether a name below a folder is that of a part of one, or resembles it."""
        return "/" not in name and name.removesuffix(".gz").endswith((*_MATRIX, *_GENES, *_CELLS))

    @staticmethod
    def likely(path: Path) -> str:
        """Return a hint about files whose names resemble those of a 10x folder; ``""`` without any."""
        ends = tuple(f"{name}{end}" for name in _MATRIX for end in ("", ".gz"))
        named = sorted(file.name for file in path.iterdir() if file.name.endswith(ends))
        if not named:
            return ""
        return (
            f", but there are {listed(named, EXAMPLES)}: put the files of one sample into a folder of their "
            "own, as matrix.mtx, features.tsv (or genes.tsv) and barcodes.tsv, each also .gz"
        )

    def matrix(self, layer: str) -> MtxMatrix:
        """Return the matrix, cells by features."""
        only_x(self.path, layer)
        return self._matrix


class MtxMatrix:
    """A MatrixMarket file of genes by cells: a line for each stored value, in any order."""

    def __init__(self, file: Path, path: Path) -> None:
        self._file, self._path = file, path
        with reading(file, "its head"), _opened(file) as stream:
            head = _line(stream).decode("ascii").lower().split()
            if head[:3] != ["%%matrixmarket", "matrix", "coordinate"] or head[4:] != ["general"]:
                raise ValueError(f"expected '%%MatrixMarket matrix coordinate … general', found {head[:5]}")
            if head[3] not in ("integer", "real"):
                raise ValueError(f"expected integer or real values, found {head[3]!r}")
            self._skipped = 1
            while (line := _line(stream)).startswith(b"%"):
                self._skipped += 1
                if self._skipped > _COMMENTS:
                    raise ValueError(f"more than {_COMMENTS:,} lines of comments")
            self._skipped += 1
            genes, cells, self._n_stored = (int(word) for word in line.split())
            if min(genes, cells, self._n_stored) < 0:
                raise ValueError(f"negative sizes {line!r}")
        self.shape = (cells, genes)

    def check_sizes(self) -> None:
        """Raise `DataError` where more values are announced than have a place."""
        cells, genes = self.shape
        if self._n_stored > cells * genes:
            raise DataError(
                f"{self._file}: {self._n_stored:,} values are announced, and {genes:,} features of {cells:,} "
                f"cells have places for {cells * genes:,}"
            )

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
        with reading(self._file, "its values"), _opened(self._file) as stream:
            for _ in range(self._skipped):
                _line(stream)
            parts = (
                pd.read_csv(
                    cast("IO[bytes]", _Lines(stream, (self._n_stored + _COMMENTS) * _PER_VALUE)),
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
                if not isinstance(part.index, pd.RangeIndex):
                    raise ValueError("expected three numbers a line: gene, cell, value; found more")
                cells, genes = part["cell"].to_numpy() - 1, part["gene"].to_numpy() - 1
                for what, found, limit in (("cell", cells, self.shape[0]), ("gene", genes, self.shape[1])):
                    if found.size and not 0 <= found.min() <= found.max() < limit:
                        raise ValueError(f"{what} {found.min() + 1}…{found.max() + 1}, expected 1…{limit}")
                done += len(part)
                if done > self._n_stored:
                    raise ValueError(f"{self._n_stored:,} values are announced, and more are there")
                with np.errstate(over="ignore"):
                    yield cells, genes, part["value"].to_numpy().astype(np.float32)
        if done != self._n_stored:
            raise DataError(
                f"{self._file}: {self._n_stored:,} values are announced, {done:,} are there: "
                "the file was cut short: fetch it again"
            )


class _Lines:
    """A stream for pandas: raises where a line is too long, or all lines together are."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream, self._left, self._since = stream, most, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as a file does."""
        part = self._stream.read(_LINES if size < 0 else min(size, _LINES))
        self._left -= len(part)
        first = part.find(b"\n")
        if self._since + (len(part) if first < 0 else first) > _LONGEST:
            raise ValueError(f"a line of more than {_LONGEST:,} bytes")
        begin = first + 1  # 0 where no line ends here
        while len(part) - begin > _LONGEST:
            if (end := part.rfind(b"\n", begin, begin + _LONGEST + 1)) < 0:
                raise ValueError(f"a line of more than {_LONGEST:,} bytes")
            begin = end + 1
        self._since = self._since + len(part) if first < 0 else len(part) - part.rfind(b"\n") - 1
        if self._left < 0:
            raise ValueError("far more text than the announced values need")
        return part

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)


def _file(path: Path, names: tuple[str, ...]) -> Path:
    wanted = [f"{name}{end}" for name in names for end in ("", ".gz")]
    found = next((path / name for name in wanted if (path / name).exists()), None)
    if found is None:
        raise DataError(f"{path}: expected one of {', '.join(wanted)} beside the matrix, found none")
    if found.is_symlink():
        check_link(path, path.resolve(), path.resolve() / found.name)
    return regular_file(found)


def _rows(path: Path, names: tuple[str, ...]) -> list[list[str]]:
    """Return the fields of each line; R's quotes are taken off where every field has them."""
    file = _file(path, names)
    most = left = _ALWAYS + _TIMES * file.stat().st_size
    rows = []
    with reading(file, "lines"), _opened(file) as stream:
        while line := _line(stream):
            rows.append(line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t"))
            if (left := left - ROW - len(line)) < 0:
                raise ValueError(f"lines that take more than {most:,} bytes")
    if rows and all(len(one) > 1 and one[0] == one[-1] == '"' for row in rows for one in row):
        return [[field[1:-1] for field in row] for row in rows]
    return rows


def _line(stream: IO[bytes]) -> bytes:
    line = stream.readline(_LONGEST + 1)
    if len(line) > _LONGEST:
        raise ValueError(f"a line of more than {_LONGEST:,} bytes")
    return line


def _opened(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", (gzip.open if file.suffix == ".gz" else open)(file, "rb"))


# An HDF5 file of CellRanger, version 2 or 3: the matrix lies by cell, genes by barcodes.

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
