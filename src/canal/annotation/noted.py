"""What `canal annotate` wrote, in any of its formats: its record, and the labels as they are now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from canal.annotation.columns import TYPE
from canal.annotation.formats import open_cells
from canal.annotation.new_output import TABLES
from canal.annotation.records import NOTE, Log, Record, parse_record, read_record
from canal.annotation.spreadsheet import original
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.core.files import checked_path
from canal.data.h5ad import H5adFile

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

CSV, PARQUET = TABLES


@dataclass(frozen=True)
class Noted:
    """A labelled file's record, and its labels.

    Attributes
    ----------
    record : dict
        See `canal.annotation.records`.
    n_cells : int
        Cells that the file holds now.
    types : sequence of str or None
        Each cell's label, ``""`` where it was taken out; None where there is no such column any more.
    where : str
        What the column would be one of: obs, or the table.
    """

    record: Record
    n_cells: int
    types: Sequence[str] | None
    where: str = "obs"

    def misfit(self) -> str:
        """Return why the labels are not those that the record counts; empty where they are."""
        if self.types is None:
            return f"{self.where} has no column {TYPE} any more"
        if self.n_cells != self.record["n_cells"]:
            return f"it holds {self.n_cells:,} cells, {self.record['n_cells']:,} were labelled"
        counts, written = dict(Counter(self.types)), self.record["cell_types"]
        wrong = sorted(name for name in {**counts, **written} if counts.get(name, 0) != written.get(name, 0))
        if not wrong:
            return ""
        return f"other numbers of cells of {len(wrong)} types than were written, such as {wrong[:3]}"


def read_noted(path: Path, log: Log | None = None) -> Noted:
    """Return the record and the labels of an h5ad file, zarr store, Parquet or CSV file.

    A CSV file has no place for a record: it is found in ``log`` by the file's SHA-256.

    Raises
    ------
    DataError
        If the file cannot be read, or there is no record of it.
    """
    if path.suffix in TABLES and not checked_path(path).is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == CSV:
        return _of_csv(path, log)
    if path.suffix == PARQUET:
        return _of_parquet(path)
    with open_cells(path) as file:
        if not isinstance(file, H5adFile):
            raise DataError(
                f"{path}: expected what `canal annotate` writes, an h5ad file, zarr store, CSV or Parquet "
                "table, and this is none: name its output, not its input"
            )
        return of_h5ad(file)


def of_h5ad(file: H5adFile) -> Noted:
    """Return the record and the labels of an open h5ad file or zarr store; raises as `read_record`."""
    record = read_record(file)
    types = list(file.obs_column(TYPE)) if TYPE in file.obs_columns else None
    return Noted(record, file.n_cells, types)


def _of_csv(path: Path, log: Log | None) -> Noted:
    digest = file_digest(path)
    if log is None:
        raise DataError(
            f"{path}: a CSV file has no place for an annotation record; it stands in annotations.jsonl of "
            "the project that labelled it: name that with --root"
        )
    record = log.of_output(digest)
    if record is None:
        raise DataError(
            f"{path}: none of the {len(log.records):,} records of annotations.jsonl is of a CSV file with "
            f"SHA-256 {digest[:12]}...: the file was changed or made by another program, another project "
            "labelled it (--root), or a canal that did not note CSV files yet"
        )
    import pandas as pd

    types = pd.read_csv(path, usecols=[TYPE], dtype=str, keep_default_na=False)
    return _of_table(record, types.map(original))


def _of_parquet(path: Path) -> Noted:
    table = _parquet(path)
    text = (table.schema.metadata or {}).get(NOTE.encode())
    if text is None:
        raise DataError(
            f"{path}: its metadata hold no annotation record, so `canal annotate` did not write this file, "
            "or a program that wrote it again left them out"
        )
    record = parse_record(text.decode("utf-8", "replace"))
    if isinstance(record, str):
        raise DataError(f"{path}: {NOTE!r} in its metadata is no annotation record: {record}")
    return _of_table(record, table.to_pandas(ignore_metadata=True))


def _parquet(path: Path) -> pyarrow.Table:
    """Return the labels, where there are any, and the number of rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [TYPE] if TYPE in names else names[:1]
            return file.read(columns=wanted)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: no readable Parquet file ({error}); it is damaged, was cut short, or of another format"
        ) from error


def _of_table(record: Record, table: pd.DataFrame) -> Noted:
    types = table[TYPE].astype(object).fillna("").astype(str).tolist() if TYPE in table else None
    return Noted(record, len(table), types, "the table")
