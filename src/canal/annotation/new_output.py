"""Outputs that are no copy of the input: a new h5ad file, or a small table of the labels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.columns import left_over, parted
from canal.annotation.gathering import Gathered
from canal.annotation.output import Room, size_of, writing
from canal.annotation.records import NOTE, of_output
from canal.annotation.spreadsheet import table_as_text
from canal.core.digests import file_digest
from canal.core.files import new_file
from canal.data.h5ad_matrices import ByEntries

if TYPE_CHECKING:
    import pandas as pd

    from canal.annotation.query import ByCell, TabledFile

TABLES = (".csv", ".parquet")
_CELLS = 2000
_CHUNK = 1 << 16
_STORED = 8
"""Bytes of a stored value and its gene."""

Told = Callable[[str], None] | None


def write_table(
    target: Path, columns: pd.DataFrame, note: str, on_whole: Told = None, like: Path | None = None
) -> None:
    """Write the labels as CSV or, by the suffix, Parquet, whole or not at all; the first column is the cell.

    Parquet keeps the note in its metadata under ``canal``. CSV has no place for it: what ``on_whole`` is told
    then names the table by its digest; see `canal.annotation.records.of_output`. Names
    that begin as a formula does have an apostrophe before them: see `canal.annotation.spreadsheet`. Nobody
    may read the table who may not read ``like``, the file that its cells are from.

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
    from anndata.io import write_elem

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
            write_elem(file, "obs", obs)
            write_elem(file, "var", var)
            write_elem(file, "uns", {NOTE: note})
            write_elem(file, "obsm", matrices)
            for name in ("varm", "obsp", "varp", "layers"):
                write_elem(file, name, {})
            for layer in source.layers:
                _write_matrix(file, "X" if layer == "X" else f"layers/{layer}", source.matrix(layer), room)
        with h5py.File(temporary, "r+"):
            pass  # closing gives back the room that was not used
        if on_whole is not None:
            on_whole(note)
    return gone


def _write_matrix(file: h5py.File, key: str, matrix: ByCell | ByEntries, room: Room) -> None:
    group = file.create_group(key)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(matrix.shape)
    kinds = {"data": np.float32, "indices": np.int32}
    made: dict[str, Any] = {
        name: group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(_CHUNK,), dtype=kind)
        for name, kind in kinds.items()
    }
    pointers = [np.zeros(1, dtype=np.int64)]
    stored = 0
    for block in _blocks(matrix):
        room.take(block.nnz * _STORED + 8 * block.shape[0])
        for name, dataset in made.items():
            dataset.resize((stored + block.nnz,))
            dataset[stored:] = getattr(block, name)
        pointers.append(block.indptr[1:].astype(np.int64) + stored)
        stored += block.nnz
    group.create_dataset("indptr", data=np.concatenate(pointers))


def _blocks(matrix: ByCell | ByEntries) -> Iterator[csr_matrix]:
    if isinstance(matrix, ByEntries):
        everything = np.arange(matrix.shape[1])
        nothing = np.zeros(matrix.shape[1], dtype=bool)
        gathered = Gathered(
            matrix, everything, nothing, lambda cells, genes, values: None, lambda values: values
        )
        with gathered:
            for _, block in gathered.chunks(_CELLS):
                yield block
        return
    for start in range(0, matrix.shape[0], _CELLS):
        yield matrix.rows(start, min(start + _CELLS, matrix.shape[0]))
