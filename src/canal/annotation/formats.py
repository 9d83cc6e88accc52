"""Which format a file or folder of cells is of, and opening it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from canal.annotation.loom import LoomFile
from canal.annotation.mtx import MtxFolder
from canal.annotation.query import CellFile
from canal.annotation.tenx import TenxFile
from canal.core.errors import DataError
from canal.core.files import checked_path
from canal.data.h5ad import H5adFile
from canal.data.h5ad_tables import reading
from canal.data.hdf5 import open_hdf5
from canal.data.zarr_store import is_zarr, open_zarr

H5AD, ZARR, TENX, MTX, LOOM = "h5ad", "zarr", "10x h5", "10x mtx folder", "loom"
KNOWN = "h5ad, zarr, 10x .h5, a 10x folder of matrix.mtx, and loom"


def format_of(path: Path) -> str:
    """Return the format of a file or folder by what it holds, not by its name.

    Raises
    ------
    DataError
        If there is nothing, or nothing of a known format.
    """
    if checked_path(path).is_dir():
        if is_zarr(path):
            return ZARR
        if MtxFolder.found(path):
            return MTX
        raise DataError(
            f"{path}: neither a zarr store nor a 10x folder with matrix.mtx{MtxFolder.likely(path)}; "
            f"canal reads {KNOWN}"
        )
    with open_hdf5(path) as file, reading(path, "/"):
        members = set(file)
        if {"row_attrs", "col_attrs", "matrix"} <= members:
            return LOOM
        if "obs" not in members and TenxFile.group_of(file):
            return TENX
    return H5AD  # and if it is none, its reader says what it lacks


@contextmanager
def open_cells(path: Path) -> Iterator[CellFile]:
    """Open cells of any format that canal reads.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of no known format.
    """
    form = format_of(path)
    if form == MTX:
        yield MtxFolder(path)
    elif form == ZARR:
        store = open_zarr(path)
        with reading(path, "/"):
            zarr_cells = H5adFile(store, path)
        yield zarr_cells
    else:
        opened: dict[str, Callable[[h5py.File, Path], CellFile]]
        opened = {H5AD: H5adFile, TENX: TenxFile, LOOM: LoomFile}
        with open_hdf5(path) as file:
            with reading(path, "/"):
                cells = opened[form](file, path)
            yield cells
