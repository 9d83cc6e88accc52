"""Reading an h5ad file as a stream, today's layout and those before anndata 0.7 alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from canal.data.h5ad_matrices import Matrix, open_matrix
from canal.data.h5ad_tables import Table, listed, reading, text
from canal.errors import DataError
from canal.files import checked_path

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def open_h5ad(path: Path) -> Iterator[H5adFile]:
    """Open an h5ad file for reading; nothing but tables' indices is read before it is asked for.

    Raises
    ------
    DataError
        If the file is missing, is no HDF5 file, was cut short, or holds no obs and var.
    """
    with open_hdf5(path) as file:
        yield H5adFile(file, path)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open any HDF5 file for reading.

    Raises
    ------
    DataError
        If the file is missing, is no HDF5 file, or was cut short.
    """
    if not checked_path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: no readable h5ad file ({error}); it is damaged, was cut short, or is of another format"
        ) from error
    with file:
        yield file


class H5adFile:
    """An open h5ad file, or zarr store. ``layer`` is ``"X"``, ``"raw"`` or the name of a layer everywhere."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self.path = file, path
        self._obs = Table(file, path, "obs")
        self._tables = {"var": Table(file, path, "var")}

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
        found = ["X"] if "X" in self._file else []
        found += ["raw"] if self._raw_prefix() else []
        return found + (sorted(self._file["layers"]) if "layers" in self._file else [])

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix ``layer``, of shape (n_cells, n_genes).

        Raises
        ------
        DataError
            If there is none of that name (the message lists those there are) or its shape does not fit
            obs and var.
        """
        key = self._matrix_key(layer)
        matrix = open_matrix(self._file, self.path, key)
        expected = (self.n_cells, self._var(layer).size)
        if matrix.shape != expected:
            raise DataError(
                f"{self.path}: {key!r} is {matrix.shape[0]} x {matrix.shape[1]}, "
                f"but there are {expected[0]} cells and {expected[1]} genes"
            )
        return matrix

    def obs_names(self) -> list[str]:
        """Return the cells' names as the file has them."""
        return self._obs.names()

    def obs_column(self, name: str) -> pd.Series:
        """Return a column of obs as str, nulls as ``""``; raises `DataError` if it is not there."""
        return self._obs.column(name)

    def var_names(self, layer: str) -> list[str]:
        """Return the names of the genes of ``layer``."""
        return self._var(layer).names()

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of the columns that describe the genes of ``layer``."""
        return list(self._var(layer).columns)

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return a column of the genes of ``layer`` as str; raises `DataError` if it is not there."""
        return self._var(layer).column(name)

    def note(self, name: str) -> str:
        """Return the text stored as ``uns[name]``; raises `DataError` if there is none."""
        with reading(self.path, f"uns/{name}"):
            return text(self._file[f"uns/{name}"][()])

    def _raw_prefix(self) -> str:
        """Return how raw's members begin: ``raw/`` today, ``raw.`` before 0.7, ``""`` without raw."""
        return next((prefix for prefix in ("raw/", "raw.") if f"{prefix}X" in self._file), "")

    def _matrix_key(self, layer: str) -> str:
        if layer not in self.layers:
            raise DataError(f"{self.path}: no matrix {layer!r}; there are {listed(self.layers)}")
        if layer == "raw":
            return f"{self._raw_prefix()}X"
        return "X" if layer == "X" else f"layers/{layer}"

    def _var(self, layer: str) -> Table:
        self._matrix_key(layer)
        key = f"{self._raw_prefix()}var" if layer == "raw" else "var"
        if key not in self._tables:
            self._tables[key] = Table(self._file, self.path, key)
        return self._tables[key]
