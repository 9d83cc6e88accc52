"""The labelled copy of an h5ad file: the same bytes with a few more columns in obs and a note in uns."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import h5py
import numpy as np

from canal.annotation.columns import PROBABILITIES, left_over, parted
from canal.annotation.records import NOTE
from canal.core.errors import CanalError, DataError
from canal.core.files import checked_path, new_file, new_folder
from canal.data.h5ad_tables import strings
from canal.data.hdf5 import edit_hdf5, open_hdf5
from canal.data.zarr_store import copy_folder, edit_zarr, is_zarr

if TYPE_CHECKING:
    import pandas as pd

_ORDER = "column-order"
_SLACK = 1 << 20
"""Bytes for HDF5's own records."""


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise unless ``target`` may be written.

    Raises
    ------
    DataError
        If it is the source itself or lies in it, is a folder but no zarr store, or is there already and not
        to be replaced, or if either name is none that the system knows.
    """
    checked_path(source)
    checked_path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError(f"{target} is the input itself, which is never changed: give another output")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise DataError(f"{target} lies in the input, which is never changed: give another output")
    if target.is_dir() and not is_zarr(target):
        raise DataError(f"{target} is a folder: give the name of an h5ad file")
    if target.exists() and not overwrite:
        raise DataError(f"{target} is there already: remove it, give another output, or use --overwrite")


def write_copy(
    source: Path,
    target: Path,
    columns: pd.DataFrame,
    note: str,
    on_whole: Callable[[str], None] | None = None,
) -> list[str]:
    """Copy ``source`` to ``target``, whole or not at all, with ``columns`` in obs and ``note`` in uns.

    Probabilities of all types, where ``columns`` holds them, become one matrix in obsm. ``on_whole`` is told
    the note when all is written, just before the copy appears under its name. Columns of the same name are
    replaced; what an earlier labelling wrote and this one does not is left out, and returned. obs and var
    tables from before anndata 0.7 are written anew as today's anndata does it; a compound table takes no
    further column. Nobody may read the copy who may not read the source.

    Raises
    ------
    DataError
        If the copy cannot be written, say for want of space.
    """
    with writing(target), new_file(target, like=source) as temporary:
        shutil.copyfile(source, temporary)
        Room(temporary).take(size_of(columns, note) + _tables_size(source))
        with edit_hdf5(temporary) as file:
            _modernise(file)
            gone = _add_labels(file, columns)
            _add_note(file, note)
        if on_whole is not None:
            on_whole(note)
    return gone


def write_zarr_copy(
    source: Path,
    target: Path,
    columns: pd.DataFrame,
    note: str,
    on_whole: Callable[[str], None] | None = None,
) -> list[str]:
    """Copy a zarr store as `write_copy` copies an h5ad file; raises the same."""
    import zarr

    with writing(target), new_folder(target, like=source) as temporary:
        copy_folder(source, temporary)
        group = edit_zarr(temporary)
        gone = _add_labels(group, columns)
        _add_note(group, note)
        if "consolidated_metadata" in _root_of(temporary) or (temporary / ".zmetadata").is_file():
            zarr.consolidate_metadata(str(temporary))
        if on_whole is not None:
            on_whole(note)
    return gone


def _root_of(folder: Path) -> str:
    root = folder / "zarr.json"
    return root.read_text(encoding="utf-8") if root.is_file() else ""


class Room:
    """Disk space taken before HDF5 writes to it: HDF5 does not survive a disk that fills meanwhile.

    What was taken and not used is given back when the file is opened for writing and closed again.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._taken = path, path.stat().st_size

    def take(self, size: int) -> None:
        """Take ``size`` more bytes and some for HDF5's own; raises `OSError` where there are not so many."""
        with self._path.open("rb+") as stream:
            _allocate(stream, self._taken, size + _SLACK)
        self._taken += size + _SLACK


def _allocate(stream: BinaryIO, start: int, size: int) -> None:
    """Take bytes on disk behind ``start``; zeros are written where the system has no call for it (macOS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), start, size)
        return
    stream.seek(start)
    for done in range(0, size, _SLACK):
        stream.write(bytes(min(_SLACK, size - done)))


def size_of(table: pd.DataFrame, note: str = "") -> int:
    """Return a bound of the bytes that a table and a note take in HDF5."""
    size = int(table.memory_usage(index=True, deep=True).sum())
    return 2 * size + 64 * len(table) + 4 * len(note)


def _tables_size(source: Path) -> int:
    """Return a bound of what compound tables take when they are written anew."""
    with open_hdf5(source) as file:
        tables = [file[key] for key in ("obs", "var") if isinstance(file.get(key), h5py.Dataset)]
        return sum(4 * table.nbytes + 64 * table.size * len(table.dtype.names or ()) for table in tables)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `DataError` that names the output."""
    try:
        yield
    except CanalError:
        raise
    except Exception as error:  # HDF5 tells a full disk by RuntimeError or KeyError, too
        raise DataError(f"{target} cannot be written ({error}); nothing was left behind") from error


def _add_labels(file: Any, table: pd.DataFrame) -> list[str]:
    """Write what annotation says of each cell where it belongs, obs or obsm; return what was removed."""
    from anndata.io import write_elem

    columns, matrices = parted(table)
    gone = _remove_left_over(file, [str(name) for name in columns], list(matrices))
    _add_columns(file["obs"], columns)
    if matrices and "obsm" not in file:
        write_elem(file, "obsm", {})
    for name, matrix in matrices.items():
        write_elem(file["obsm"], name, matrix)
    return gone


def _remove_left_over(file: Any, columns: list[str], matrices: list[str]) -> list[str]:
    """Remove what an earlier labelling wrote and this one does not; return it, by name."""
    obs = file["obs"]
    order = _order_of(obs)
    gone = left_over([*order, *(name for name in obs.keys() if name not in order)], columns)  # noqa: SIM118
    for name in gone:
        del obs[name]
        if (categories := f"__categories/{name}") in obs:  # of anndata 0.7
            del obs[categories]
    if gone:
        order = [name for name in order if name not in gone]
        obs.attrs[_ORDER] = np.array(order, dtype=h5py.string_dtype()) if _is_h5(obs) else order
    if PROBABILITIES not in matrices and "obsm" in file and PROBABILITIES in file["obsm"]:
        del file["obsm"][PROBABILITIES]
        gone.append(f"obsm {PROBABILITIES}")
    return gone


def _add_columns(obs: Any, columns: pd.DataFrame) -> None:
    from anndata.io import write_elem

    for name in columns:
        write_elem(obs, str(name), _plain(columns[name]))
    order = _order_of(obs)
    order += [str(name) for name in columns if name not in order]
    obs.attrs[_ORDER] = np.array(order, dtype=h5py.string_dtype()) if _is_h5(obs) else order


def _order_of(obs: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in obs.attrs.get(_ORDER, [])]


def _is_h5(obs: Any) -> bool:
    return isinstance(obs, h5py.Group)


def _plain(column: pd.Series) -> Any:
    """Return what anndata writes a column of obs from: categories as they are, else an array."""
    import pandas as pd

    values = column.array
    return values if isinstance(values, pd.Categorical) else column.to_numpy()


def _add_note(file: Any, note: str) -> None:
    from anndata.io import write_elem

    if "uns" not in file:
        write_elem(file, "uns", {})
    write_elem(file["uns"], NOTE, note)


def _modernise(file: h5py.File) -> None:
    """Write compound obs and var anew as groups, their categories taken from where they lay in uns."""
    from anndata.io import write_elem

    used: set[str] = set()
    for key in ("obs", "var"):
        if isinstance(file[key], h5py.Dataset):
            table, categories = _table(file, key)
            used |= categories
            del file[key]
            write_elem(file, key, table)
    for name in sorted(used):
        del file[name]


def _table(file: h5py.File, key: str) -> tuple[pd.DataFrame, set[str]]:
    """Return a compound table with its types, and the keys of the categories it used."""
    import pandas as pd

    node = file[key]
    index, *names = node.dtype.names
    fields = {name: node.fields(name)[:] for name in names}
    keys = {name: f"uns/{name}_categories" for name in names if fields[name].dtype.kind in "iu"}
    keys = {name: path for name, path in keys.items() if path in file}
    columns: dict[str, Any] = {}
    for name, values in fields.items():
        if name in keys:
            categories = strings(np.atleast_1d(file[keys[name]][()])).tolist()
            columns[name] = pd.Categorical.from_codes(values.tolist(), pd.Index(categories))
        else:
            columns[name] = strings(values) if values.dtype.kind in "SO" else values
    rows = pd.Index(strings(node.fields(index)[:]), name=index)
    return pd.DataFrame(columns, index=rows), set(keys.values())
