"""What labels are written as: a copy of the input, a new h5ad file, or a table of the labels alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np

from canal.annotation.columns import PROBABILITIES, left_over, parted
from canal.annotation.records import NOTE, of_output
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.core.files import checked_path, new_file, new_folder
from canal.io.arrays import strings
from canal.io.formats import H5AD, ZARR, format_of, open_cells
from canal.io.hdf5 import edit_hdf5, open_hdf5
from canal.io.writer import Room, size_of, table_as_text, write_element, write_matrix, writing
from canal.io.zarr_store import copy_folder, edit_zarr, is_zarr

if TYPE_CHECKING:
    import pandas as pd

    from canal.io.formats import TabledFile

TABLES = (".csv", ".parquet")
_COPIES = (".h5ad", ".h5", ".hdf5", "")
"""How a labelled copy that is an HDF5 file may end: under .tsv or .loom nobody would look for one."""

_ORDER = "column-order"

Told = Callable[[str], None] | None


@dataclass(frozen=True)
class Output:
    """An output that may be written.

    Attributes
    ----------
    source, target : Path
    form : str
        The input's format.
    is_table : bool
        Whether only the labels are written.
    """

    source: Path
    target: Path
    form: str
    is_table: bool

    @classmethod
    def find(cls, source: Path, target: Path, only_obs: bool) -> Output:
        """Return the output that a target's name stands for.

        Raises
        ------
        DataError
            If the input is of no known format, or cannot become what the name stands for.
        """
        form, suffix = format_of(source), target.suffix
        if suffix in TABLES or only_obs:
            if suffix not in TABLES:
                raise DataError(f"{target}: a table of labels alone is {' or '.join(TABLES)}: name it so")
            return cls(source, target, form, is_table=True)
        if (form == ZARR) != (suffix == ".zarr") or (form != ZARR and suffix.lower() not in _COPIES):
            wanted = "OUT.zarr" if form == ZARR else "OUT.h5ad"
            raise DataError(
                f"{target}: the labelled copy of a {form} input is {wanted}; give that, or OUT.csv or "
                "OUT.parquet for the labels alone"
            )
        return cls(source, target, form, is_table=False)

    def write(self, columns: pd.DataFrame, note: str, on_whole: Callable[[str], None]) -> list[str]:
        """Write it, whole or not at all; return what an earlier labelling wrote and was left out.

        Raises
        ------
        DataError
            If that cannot be done.
        """
        if self.is_table:
            write_table(self.target, columns, note, on_whole, like=self.source)
            return []
        if self.form in (ZARR, H5AD):
            write = write_zarr_copy if self.form == ZARR else write_copy
            return write(self.source, self.target, columns, note, on_whole)
        with open_cells(self.source) as file:
            return write_new(cast("TabledFile", file), self.target, columns, note, on_whole)


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
        with open_hdf5(source) as file:  # compound tables are written anew
            tables = [file[key] for key in ("obs", "var") if isinstance(file.get(key), h5py.Dataset)]
            anew = sum(4 * node.nbytes + 64 * node.size * len(node.dtype.names or ()) for node in tables)
        Room(temporary).take(size_of(columns, note) + anew)
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
        root = temporary / "zarr.json"
        consolidated = root.is_file() and "consolidated_metadata" in root.read_text(encoding="utf-8")
        if consolidated or (temporary / ".zmetadata").is_file():
            zarr.consolidate_metadata(str(temporary))
        if on_whole is not None:
            on_whole(note)
    return gone


def _add_labels(file: Any, table: pd.DataFrame) -> list[str]:
    """Write what annotation says of each cell where it belongs, obs or obsm; return what was removed."""
    import pandas as pd

    columns, matrices = parted(table)
    gone = _remove_left_over(file, [str(name) for name in columns], list(matrices))
    obs = file["obs"]
    for name in columns:
        values = columns[name].array
        write_element(
            obs, str(name), values if isinstance(values, pd.Categorical) else columns[name].to_numpy()
        )
    order = _order_of(obs)
    _set_order(obs, order + [str(name) for name in columns if name not in order])
    if matrices and "obsm" not in file:
        write_element(file, "obsm", {})
    for key, matrix in matrices.items():
        write_element(file["obsm"], key, matrix)
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
        _set_order(obs, [name for name in order if name not in gone])
    if PROBABILITIES not in matrices and "obsm" in file and PROBABILITIES in file["obsm"]:
        del file["obsm"][PROBABILITIES]
        gone.append(f"obsm {PROBABILITIES}")
    return gone


def _order_of(obs: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in obs.attrs.get(_ORDER, [])]


def _set_order(obs: Any, order: list[str]) -> None:
    is_hdf5 = isinstance(obs, h5py.Group)
    obs.attrs[_ORDER] = np.array(order, dtype=h5py.string_dtype()) if is_hdf5 else order


def _add_note(file: Any, note: str) -> None:
    if "uns" not in file:
        write_element(file, "uns", {})
    write_element(file["uns"], NOTE, note)


def _modernise(file: h5py.File) -> None:
    """Write compound obs and var anew as groups, their categories taken from where they lay in uns."""
    used: set[str] = set()
    for key in ("obs", "var"):
        if isinstance(file[key], h5py.Dataset):
            table, categories = _table(file, key)
            used |= categories
            del file[key]
            write_element(file, key, table)
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


def write_table(
    target: Path, columns: pd.DataFrame, note: str, on_whole: Told = None, like: Path | None = None
) -> None:
    """Write the labels as CSV or, by the suffix, Parquet, whole or not at all; the first column is the cell.

    Parquet keeps the note in its metadata under ``canal``. CSV has no place for it: what ``on_whole`` is told
    then names the table by its digest; see `canal.annotation.records.of_output`. Names that begin as a
    formula does have an apostrophe before them: see `canal.io.writer.as_text`. Nobody may read the table who
    may not read ``like``, the file that its cells are from.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    table = columns.rename_axis(index="cell")
    with writing(target), new_file(target, like) as temporary:
        if target.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            arrow = pyarrow.Table.from_pandas(table)
            metadata = {**(arrow.schema.metadata or {}), NOTE.encode(): note.encode()}
            pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), temporary)
        else:
            table_as_text(table).to_csv(temporary, lineterminator="\n", float_format="%.6f")
            note = of_output(note, file_digest(temporary))
        if on_whole is not None:
            on_whole(note)


def write_new(
    source: TabledFile, target: Path, columns: pd.DataFrame, note: str, on_whole: Told = None
) -> list[str]:
    """Write cells of another format as h5ad, whole or not at all: obs, var, X and layers, labels and note.

    Matrices are written as float32 CSR, block by block: memory does not grow with cells. Columns of an
    earlier labelling are left out, and returned.

    Raises
    ------
    DataError
        If the source cannot be read any more, or the file cannot be written.
    """
    obs, var = source.tables()
    own, matrices = parted(columns)
    gone = left_over(obs, own)
    obs = obs.drop(columns=gone)
    for name in own:
        obs[str(name)] = own[name].array
    size = size_of(columns) + size_of(obs) + size_of(var, note)
    with writing(target), new_file(target, like=source.path) as temporary:
        Room(temporary).take(size)
        with h5py.File(temporary, "w") as file:
            room = Room(temporary)
            room.take(size)
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for key, element in (("obs", obs), ("var", var), ("uns", {NOTE: note}), ("obsm", matrices)):
                write_element(file, key, element)
            for key in ("varm", "obsp", "varp", "layers"):
                write_element(file, key, {})
            for layer in source.layers:
                write_matrix(file, "X" if layer == "X" else f"layers/{layer}", source.matrix(layer), room)
        with h5py.File(temporary, "r+"):
            pass  # closing gives back the room that was not used
        if on_whole is not None:
            on_whole(note)
    return gone
