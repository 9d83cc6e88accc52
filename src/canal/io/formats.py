"""Detect the format of a file or folder of cells, open it, and detect changes of the file during a run.

Cells in an object store are read in place where their format lies in pieces that can be asked for (HDF5,
zarr), so that who labels a partition fetches little more than its cells. A table in text and a 10x folder
have to be read from their beginning: they are copied into the folder of temporary files for as long as they
are open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.core.errors import DataError, no_such_file, there_are
from canal.core.files import checked_path, scratch_folder
from canal.io.addresses import Address
from canal.io.arrays import ROW, check_announced, check_chunks, listed, reading, strings, whole
from canal.io.blocks import ByCell, ByEntries
from canal.io.h5ad import H5adFile, NotGenes, not_genes
from canal.io.hdf5 import open_hdf5, open_hdf5_stream
from canal.io.locations import shown_as
from canal.io.tenx import MtxFolder, TenxFile
from canal.io.text_table import is_text_table, named_as_text, open_text_table
from canal.io.zarr_store import MARKS, is_zarr, open_zarr, open_zarr_objects

if TYPE_CHECKING:
    import pandas as pd


class CellFile(Protocol):
    """The interface of an open file of cells in any format; ``layer`` names one of its matrices.

    ``assumed`` says what was assumed to read it, ``""`` where nothing was.
    """

    path: Path
    assumed: str

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        ...

    @property
    def layers(self) -> list[str]:
        """The names that `matrix` accepts."""
        ...

    def matrix(self, layer: str) -> ByCell | ByEntries:
        """Return a matrix, cells by genes."""
        ...

    def obs_names(self) -> list[str]:
        """Return the cells' names."""
        ...

    def var_names(self, layer: str) -> list[str]:
        """Return the genes' names; ``""`` for a column that is no gene."""
        ...

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of the columns that describe genes."""
        ...

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return a column that describes genes, as str; ``""`` for one that is no gene."""
        ...

    def not_genes(self, layer: str) -> NotGenes:
        """Return which columns of the matrix are no genes: antibodies, guides, spike-ins."""
        ...


class TabledFile(CellFile, Protocol):
    """The interface of a file that is not anndata's and can be written as h5ad."""

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return obs and var."""
        ...


_HDF5 = b"\x89HDF\r\n\x1a\n"
H5AD, ZARR, TENX, MTX, LOOM, TEXT = "h5ad", "zarr", "10x h5", "10x mtx folder", "loom", "text"
KNOWN = "h5ad, zarr, 10x .h5, a 10x folder of matrix.mtx, loom, and tables in text (.csv, .tsv, also .gz)"


def format_of(path: Path) -> str:
    """Return the format of a file or folder by its content; that of a table in text by its name.

    Raises
    ------
    DataError
        If there is nothing, or nothing of a known format.
    """
    if checked_path(path).is_dir():
        return _format_of_folder(path)
    if is_text_table(path):
        return TEXT
    with open_hdf5(path) as file:
        return _format_of_hdf5(file, path)


@contextmanager
def open_cells(path: Path | Address, panel: Collection[str] = ()) -> Iterator[CellFile]:
    """Open cells of any format that canal reads.

    Parameters
    ----------
    path
        A file or folder, or the address of one in an object store.
    panel
        The model's genes, by which a table in text tells its genes from its cells.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of no known format.
    """
    if isinstance(path, Address):
        with path.translated(), _open_objects(path, panel) as cells:
            yield cells
    elif checked_path(path).is_dir():
        yield MtxFolder(path) if _format_of_folder(path) == MTX else _zarr_cells(open_zarr(path), path)
    elif is_text_table(path):
        with open_text_table(path, panel) as table:
            yield table
    else:
        with open_hdf5(path) as file:
            yield _hdf5_cells(file, path)


@contextmanager
def _open_objects(address: Address, panel: Collection[str]) -> Iterator[CellFile]:
    objects, path = address.objects(), address.as_path()
    names = [one.name for one in objects]
    if not set(names).isdisjoint(MARKS):
        yield _zarr_cells(open_zarr_objects(address, objects), path)
    elif names != [""] or (named_as_text(path) and address.read(0, len(_HDF5)) != _HDF5):
        kept = [name for name in names if not name or MtxFolder.is_part(name)]
        with scratch_folder("cells") as folder:
            copy = folder / address.name
            if names != [""]:
                copy.mkdir()
            address.fetch(folder, kept)
            with shown_as(copy, address), open_cells(copy, panel) as cells:
                yield cells
    else:
        with address.open() as stream, open_hdf5_stream(stream, path) as file:
            yield _hdf5_cells(file, path)


def _zarr_cells(store: Any, path: Path) -> CellFile:
    with reading(path, "/"):
        return H5adFile(store, path)


def _hdf5_cells(file: h5py.File, path: Path) -> CellFile:
    readers: dict[str, Callable[[h5py.File, Path], CellFile]]
    readers = {H5AD: H5adFile, TENX: TenxFile, LOOM: LoomFile}
    reader = readers[_format_of_hdf5(file, path)]
    with reading(path, "/"):
        return reader(file, path)


def _format_of_folder(path: Path) -> str:
    if is_zarr(path):
        return ZARR
    if MtxFolder.found(path):
        return MTX
    raise DataError(
        f"{path}: neither a zarr store nor a 10x folder with matrix.mtx{MtxFolder.likely(path)}; "
        f"canal reads {KNOWN}"
    )


def _format_of_hdf5(file: h5py.File, path: Path) -> str:
    with reading(path, "/"):
        members = set(file)
        if {"row_attrs", "col_attrs", "matrix"} <= members:
            return LOOM
        if "obs" not in members and TenxFile.group_of(file):
            return TENX
    return H5AD  # and if it is none, its reader says what it lacks


# Telling that an input changed while it was read.


@dataclass(frozen=True)
class Fingerprint:
    """Name, inode, size and modification time of a file, or of every file in a folder.

    An object in a store has an ETag, which its bytes determine, in place of an inode.
    """

    path: Path | Address
    files: tuple[tuple[str, int | str, int, int], ...]

    @classmethod
    def of(cls, path: Path | Address) -> Fingerprint:
        """Return the present fingerprint of a file or folder.

        Raises
        ------
        DataError
            If the file is not there or cannot be looked at.
        """
        if isinstance(path, Address):
            return cls(path, tuple((one.name, one.etag, one.size, one.changed) for one in path.objects()))
        try:
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            seen = [(file, file.stat()) for file in files]
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise DataError(no_such_file(path) if gone else f"{path}: {error.strerror or error}") from error
        return cls(
            path,
            tuple((str(file.relative_to(path)), s.st_ino, s.st_size, s.st_mtime_ns) for file, s in seen),
        )

    def check(self) -> None:
        """Raise `DataError` if the file has changed since the fingerprint was taken."""
        if Fingerprint.of(self.path) != self:
            raise DataError(
                f"{self.path} changed while it was read, so labels could not be assigned to its cells; "
                "nothing was written: wait until the program that writes the file is done, then try again"
            )


# Loom: dense layers of genes by cells, read a block of cells at a time.

_CELLS, _GENES = ("CellID", "obs_names", "cell_id"), ("Gene", "var_names", "gene_name", "Accession")
_BLOCK = 1 << 24
"""Values in memory at a time."""


class LoomFile:
    """An open loom file: X is ``matrix``; attributes with one value for each cell or gene are read."""

    assumed = ""

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
        """The names that `matrix` accepts."""
        with reading(self.path, "layers"):
            layers = self._file.get("layers", ())
            return ["X", *sorted(name for name in layers if name)]

    def matrix(self, layer: str) -> LoomMatrix:
        """Return a layer, cells by genes; raises `DataError` if there is none of that name."""
        if layer not in self.layers:
            raise DataError(f"{self.path}: no matrix {layer!r}{there_are(layer, self.layers, show=listed)}")
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
            has = there_are(name, self._var, "genes have", listed)
            raise DataError(f"{self.path}: no column {name!r}{has}")
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
