"""Write labels: as a copy of the input, as a new h5ad file, or as a table of the labels alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np

from canal.annotation.places import Places
from canal.annotation.records import RECORD_KEY, with_output_digest
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.core.files import checked_path, new_file, new_folder
from canal.core.packages import require
from canal.io.arrays import strings
from canal.io.formats import H5AD, ZARR, format_of, open_cells
from canal.io.hdf5 import edit_hdf5, open_hdf5
from canal.io.writer import DiskSpace, size_of, table_as_text, write_element, write_matrix, writing
from canal.io.zarr_store import copy_folder, edit_zarr, is_zarr

if TYPE_CHECKING:
    import pandas as pd

    from canal.io.formats import TabledFile

TABLES = (".csv", ".parquet")
RECORDS = "_records.json"
"""The annotation records of a folder into which several files were labelled."""
_COPIES = (".h5ad", ".h5", ".hdf5", "")
"""Suffixes allowed for a labelled HDF5 file: .tsv or .loom would suggest another format."""

_ORDER = "column-order"

OnComplete = Callable[[str], None] | None


@dataclass(frozen=True)
class Output:
    """An output, with its format checked.

    Attributes
    ----------
    source, target : Path
    form : str
        The input's format.
    is_table : bool
        Whether only a table of labels is written.
    panel : tuple of str
        The model's genes, by which a table of cells tells its genes from its cells.
    """

    source: Path
    target: Path
    form: str
    is_table: bool
    panel: tuple[str, ...] = ()

    def of_panel(self, panel: Sequence[str]) -> Output:
        """Return the same output for a model of these genes."""
        return replace(self, panel=tuple(panel))

    @classmethod
    def find(cls, source: Path, target: Path, only_obs: bool) -> Output:
        """Return the output for a target, by its suffix.

        Raises
        ------
        DataError
            If the input has an unknown format, or cannot be written in the format that the suffix names.
        """
        form, suffix = format_of(source), target.suffix
        if suffix in TABLES or only_obs:
            if suffix not in TABLES:
                raise DataError(
                    f"{target}: a table of labels alone (--only-obs) is written as {' or '.join(TABLES)}: "
                    "give an output with that suffix"
                )
            return cls(source, target, form, is_table=True)
        if (form == ZARR) != (suffix == ".zarr") or (form != ZARR and suffix.lower() not in _COPIES):
            wanted = "OUT.zarr" if form == ZARR else "OUT.h5ad"
            raise DataError(
                f"{target}: the labelled copy of a {form} input must be {wanted}; give such a name, "
                "or OUT.csv or OUT.parquet for the labels alone"
            )
        return cls(source, target, form, is_table=False)

    def write(self, columns: pd.DataFrame, record: str, on_complete: Callable[[str], None]) -> list[str]:
        """Write the output atomically; return the columns of an earlier annotation that were removed.

        Raises
        ------
        DataError
            If the output cannot be written.
        """
        if self.is_table:
            write_table(self.target, columns, record, on_complete, like=self.source)
            return []
        if self.form in (ZARR, H5AD):
            write = write_zarr_copy if self.form == ZARR else write_copy
            return write(self.source, self.target, columns, record, on_complete)
        with open_cells(self.source, self.panel) as file:
            return write_new(cast("TabledFile", file), self.target, columns, record, on_complete)


def check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raise unless ``target`` may be written.

    Raises
    ------
    DataError
        If the target is the source or inside it, is a folder but no zarr store, or exists and may not be
        replaced; or if either path is not valid on this system.
    """
    checked_path(source)
    if checked_path(target).exists() and source.exists() and target.samefile(source):
        raise DataError(f"{target} is the input itself, which is never changed: give another output")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise DataError(f"{target} is inside the input, which is never changed: give another output")
    if target.is_dir() and not is_zarr(target):
        raise DataError(f"{target} is a folder: give the name of an h5ad file")
    check_new(target, overwrite)


def check_new(target: Path, overwrite: bool) -> None:
    """Raise `DataError` if ``target`` exists and may not be replaced, or its path is not valid."""
    if checked_path(target).exists() and not overwrite:
        raise DataError(f"{target} exists already: remove it, give another output, or use --overwrite")
    if target.suffix.lower() == ".parquet":
        require("pyarrow", f"{target}")


def write_copy(
    source: Path,
    target: Path,
    columns: pd.DataFrame,
    record: str,
    on_complete: Callable[[str], None] | None = None,
) -> list[str]:
    """Copy ``source`` to ``target`` atomically, with ``columns`` in obs and ``record`` in uns.

    Probabilities and the embedding, where ``columns`` holds them, become matrices in obsm; uns also gets the
    colours of types. ``on_complete``
    receives the record when the copy is written, just before it is renamed into place. Columns of the same
    name are replaced; columns that an earlier annotation wrote and this one does not are removed, and
    returned. obs and var tables from before anndata 0.7 (compound tables, to which no column can be added)
    are converted to today's layout. The copy is readable only by users who may read the source.

    Raises
    ------
    DataError
        If the copy cannot be written, for example on a full disk.
    """
    with writing(target), new_file(target, like=source) as temporary:
        shutil.copyfile(source, temporary)
        with open_hdf5(source) as file:  # compound tables are converted, which takes space
            tables = [file[key] for key in ("obs", "var") if isinstance(file.get(key), h5py.Dataset)]
            converted = sum(4 * node.nbytes + 64 * node.size * len(node.dtype.names or ()) for node in tables)
        DiskSpace(temporary).take(size_of(columns, record) + converted)
        with edit_hdf5(temporary) as file:
            _convert_compound_tables(file)
            removed = _add_labels(file, columns, record)
        if on_complete is not None:
            on_complete(record)
    return removed


def write_zarr_copy(
    source: Path,
    target: Path,
    columns: pd.DataFrame,
    record: str,
    on_complete: Callable[[str], None] | None = None,
) -> list[str]:
    """Copy a zarr store as `write_copy` copies an h5ad file; raises the same."""
    import zarr

    with writing(target), new_folder(target, like=source) as temporary:
        copy_folder(source, temporary)
        group = edit_zarr(temporary)
        removed = _add_labels(group, columns, record)
        root = temporary / "zarr.json"
        consolidated = root.is_file() and "consolidated_metadata" in root.read_text(encoding="utf-8")
        if consolidated or (temporary / ".zmetadata").is_file():
            zarr.consolidate_metadata(str(temporary))
        if on_complete is not None:
            on_complete(record)
    return removed


def _add_labels(file: Any, table: pd.DataFrame, record: str) -> list[str]:
    """Write an annotation into obs, obsm and uns; return the names of what was stale and removed."""
    import pandas as pd

    places = Places.of(table, record)
    removed = _remove_stale(file, places)
    obs = file["obs"]
    for name in places.obs:
        values = places.obs[name].array
        write_element(
            obs, str(name), values if isinstance(values, pd.Categorical) else places.obs[name].to_numpy()
        )
    order = _order_of(obs)
    _set_order(obs, order + [str(name) for name in places.obs if name not in order])
    _add_members(file, "obsm", places.obsm)
    _add_members(file, "uns", places.uns)
    return removed


def _remove_stale(file: Any, places: Places) -> list[str]:
    """Remove what an earlier annotation wrote and this one does not; return the names, but not of colours."""
    obs = file["obs"]
    order = _order_of(obs)
    stale = places.stale_columns([*order, *(name for name in obs.keys() if name not in order)])  # noqa: SIM118
    for name in stale:
        del obs[name]
        if (categories := f"__categories/{name}") in obs:  # of anndata 0.7
            del obs[categories]
    if stale:
        _set_order(obs, [name for name in order if name not in stale])
    for group, find in (("obsm", places.stale_matrices), ("uns", places.stale_notes)):
        for name in find(file[group]) if group in file else ():
            del file[group][name]
            stale += [f"obsm {name}"] if group == "obsm" else []
    return stale


def _order_of(obs: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in obs.attrs.get(_ORDER, [])]


def _set_order(obs: Any, order: list[str]) -> None:
    is_hdf5 = isinstance(obs, h5py.Group)
    obs.attrs[_ORDER] = np.array(order, dtype=h5py.string_dtype()) if is_hdf5 else order


def _add_members(file: Any, group: str, members: Mapping[str, Any]) -> None:
    """Write members of a group, which is made where the file has none."""
    if members and group not in file:
        write_element(file, group, {})
    for name, element in members.items():
        write_element(file[group], name, _stored(element))


def _stored(element: Any) -> Any:
    """Return an element as anndata stores it: a list, such as one of colours, as an array."""
    return np.array(element) if isinstance(element, list) else element


def _convert_compound_tables(file: h5py.File) -> None:
    """Convert compound obs and var tables (anndata < 0.7) to groups, with their categories from uns."""
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
    """Return a compound table as a data frame, and the keys in uns of its categories."""
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
    target: Path, columns: pd.DataFrame, record: str, on_complete: OnComplete = None, like: Path | None = None
) -> None:
    """Write the labels as CSV or, by the suffix, Parquet, atomically; the first column is the cell's name.

    Parquet keeps the record in its metadata under ``canal``. CSV cannot hold it: the record that
    ``on_complete`` receives then names the table by its digest; see
    `canal.annotation.records.with_output_digest`. Names that begin like a formula get an apostrophe in front:
    see `canal.io.writer.as_text`. The table is readable only by users who may read ``like``, the input.

    Raises
    ------
    DataError
        If the table cannot be written.
    """
    table = columns.rename_axis(index="cell")
    with writing(target), new_file(target, like) as temporary:
        if target.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            arrow = pyarrow.Table.from_pandas(table)
            metadata = {**(arrow.schema.metadata or {}), RECORD_KEY.encode(): record.encode()}
            pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), temporary)
        else:
            table_as_text(table).to_csv(temporary, lineterminator="\n", float_format="%.6f")
            record = with_output_digest(record, file_digest(temporary))
        if on_complete is not None:
            on_complete(record)


def write_new(
    source: TabledFile, target: Path, columns: pd.DataFrame, record: str, on_complete: OnComplete = None
) -> list[str]:
    """Write cells of another format as h5ad, atomically: obs, var, X and layers, labels and record.

    Matrices are written as float32 CSR, block by block: memory does not grow with cells. Columns of an
    earlier annotation are left out, and returned.

    Raises
    ------
    DataError
        If the source can no longer be read, or the file cannot be written.
    """
    obs, var = source.tables()
    places = Places.of(columns, record)
    removed = places.stale_columns(obs)
    obs = obs.drop(columns=removed)
    for name in places.obs:
        obs[str(name)] = places.obs[name].array
    size = size_of(columns) + size_of(obs) + size_of(var, record)
    with writing(target), new_file(target, like=source.path) as temporary:
        DiskSpace(temporary).take(size)
        with h5py.File(temporary, "w") as file:
            room = DiskSpace(temporary)
            room.take(size)
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for key, element in (
                ("obs", obs),
                ("var", var),
                ("uns", {name: _stored(one) for name, one in places.uns.items()}),
                ("obsm", places.obsm),
            ):
                write_element(file, key, element)
            for key in ("varm", "obsp", "varp", "layers"):
                write_element(file, key, {})
            for layer in source.layers:
                write_matrix(file, "X" if layer == "X" else f"layers/{layer}", source.matrix(layer), room)
        with h5py.File(temporary, "r+"):
            pass  # closing frees space that was reserved and not used
        if on_complete is not None:
            on_complete(record)
    return removed
