"""What `canal annotate` wrote, read again: its record, its labels, and its cells as they were read then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.columns import BEST_TYPE, IS_NOVEL, LOW_QUALITY, TYPE
from canal.annotation.naming import Naming, rename
from canal.annotation.output import TABLES
from canal.annotation.query import query_file
from canal.annotation.reading import Reading, begin
from canal.annotation.records import NOTE, Log, Record, genuine, parse_record, read_record
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.core.files import checked_path
from canal.io.formats import open_cells
from canal.io.h5ad import H5adFile
from canal.io.writer import original

if TYPE_CHECKING:
    import pandas as pd

    from canal.model.load import CellAnnotator

_TABLES = {"orthologs": "--orthologs", "aliases": "--aliases", "gene_map": "--gene-map"}
_AGREE = 0.95
"""Share of cells whose type must come out as it stands in the file; another machine rounds otherwise."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """An open labelled file.

    Attributes
    ----------
    file : H5adFile
    record : dict
        Which model labelled it, and how; see `canal.annotation.records`.
    types, best : numpy.ndarray
        Each cell's label and its likeliest known type, str ``(n_cells,)``.
    novel, empty : numpy.ndarray
        Whether the cell is novel, and whether it expresses none of the model's genes, bool ``(n_cells,)``.
    """

    file: H5adFile
    record: Record
    types: np.ndarray
    best: np.ndarray
    novel: np.ndarray
    empty: np.ndarray

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def asked(self) -> dict[str, Any]:
        """The options it was labelled with."""
        return dict(self.record["options"])

    def reading(self, annotator: CellAnnotator, naming: Naming) -> Reading:
        """Return how its values are read: as when it was labelled.

        Parameters
        ----------
        annotator
            The model that labelled it.
        naming
            The tables of gene names that were used then; species is taken from the record.

        Raises
        ------
        DataError
            If other tables were used, or the file cannot be read like that any more.
        """
        asked = self.asked
        column = asked.get("gene_column")
        query = query_file(self.file, asked.get("layer", "X"), column)
        query, _ = rename(query, annotator.genes, self._naming(naming), column is not None)
        least = float(asked.get("min_coverage", 0.0))
        return begin(query, annotator.genes, asked.get("values", "auto"), least, bool(asked.get("force")))

    def check_types(self, rows: np.ndarray, types: Sequence[str]) -> None:
        """Raise unless the model gives the cells at ``rows`` the likeliest types that stand in the file.

        Raises
        ------
        DataError
            If more than 5 % come out otherwise: values or genes were changed since.
        """
        same = float(np.mean(self.best[rows] == np.array(types, dtype=object)))
        if same < _AGREE:
            raise DataError(
                f"{self.path}: of {len(rows):,} cells looked at, {1 - same:.0%} are now of another type than "
                f"{BEST_TYPE} says, so genes or values were changed since they were labelled: label the file "
                "again with `canal annotate`"
            )

    def _naming(self, given: Naming) -> Naming:
        asked, told = self.asked, given.to_json()
        for table, option in _TABLES.items():
            was, now = asked.get(table), told.get(table)
            if (was or {}).get("sha256") != (now or {}).get("sha256"):
                used = f"{option} {was['name']} (sha256 {was['sha256'][:12]}...)" if was else f"no {option}"
                raise DataError(
                    f"{self.path} was labelled with {used}, found "
                    f"{now['name'] if now else 'none'}: give the same table again"
                )
        return replace(given, species=asked.get("species", "auto"))


@contextmanager
def open_labelled(path: Path) -> Iterator[Labelled]:
    """Open an h5ad file or zarr store that `canal annotate` wrote.

    Raises
    ------
    DataError
        If it was not labelled, its record was edited, or the labels are no longer those that were written.
    """
    if path.suffix in TABLES:
        raise DataError(
            f"{path}: expected a labelled h5ad file or zarr store, with the cells beside their labels"
        )
    with open_cells(path) as file:
        if not isinstance(file, H5adFile):
            raise DataError(f"{path}: expected a labelled h5ad file or zarr store, and this is none")
        noted = of_h5ad(file)
        record = noted.record
        if genuine(record) is False:
            raise DataError(
                f"{path}: its annotation record was edited since it was written, so it does not say which "
                "model labelled the file: label it again with `canal annotate`"
            )
        if why := noted.misfit():
            raise DataError(
                f"{path}: the labels are no longer those that were written: {why}; label it again"
            )
        columns = {name: _column(file, name) for name in (TYPE, BEST_TYPE, IS_NOVEL)}
        novel = columns[IS_NOVEL] == "True"
        quality = _column(file, LOW_QUALITY) if LOW_QUALITY in file.obs_columns else np.full(len(novel), "")
        yield Labelled(file, record, columns[TYPE], columns[BEST_TYPE], novel, quality == "True")


def _column(file: H5adFile, name: str) -> np.ndarray:
    values: np.ndarray = file.obs_column(name).to_numpy(dtype=object)
    return values


CSV, PARQUET = TABLES


# The record and the labels as they are now, of any format that was written.


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
    import pandas as pd

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
    types = pd.read_csv(path, usecols=[TYPE], dtype=str, keep_default_na=False)
    return _of_table(record, types.map(original))


def _of_parquet(path: Path) -> Noted:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=[TYPE] if TYPE in names else names[:1])  # of others, the number of rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: no readable Parquet file ({error}); it is damaged, was cut short, or of another format"
        ) from error
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


def _of_table(record: Record, table: pd.DataFrame) -> Noted:
    types = table[TYPE].astype(object).fillna("").astype(str).tolist() if TYPE in table else None
    return Noted(record, len(table), types, "the table")
