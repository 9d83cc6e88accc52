"""Read the output of `canal annotate` back: its record, its labels, and its cells as they were read then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.columns import BEST_TYPE, CELL_TYPE, IS_NOVEL, LOW_QUALITY, named
from canal.annotation.naming import OWN_TABLE, Naming
from canal.annotation.options import Options
from canal.annotation.output import RECORDS, TABLES
from canal.annotation.places import text_in_uns
from canal.annotation.query import IN_MEMORY, query_file
from canal.annotation.reading import Reading, reading_for
from canal.annotation.records import (
    RECORD_KEY,
    Log,
    Record,
    find_record,
    genuine,
    key_of,
    parse_record,
    read_record,
    record_keys,
)
from canal.core.digests import file_digest
from canal.core.errors import DataError, no_such_file
from canal.core.files import checked_path
from canal.data.genes import MOUSE_TABLE
from canal.io.arrays import strings
from canal.io.formats import open_cells
from canal.io.h5ad import H5adFile
from canal.io.writer import original

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.model.load import CellAnnotator

_TABLES = {"orthologs": "--orthologs", "aliases": "--aliases", "gene_map": "--gene-map"}
_AGREE = 0.95
"""Share of cells whose predicted type must equal the file's; another machine may round differently."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """An open labelled file.

    Attributes
    ----------
    file : H5adFile
    record : dict
        Which model labelled the file, and how; see `canal.annotation.records`.
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
    def key(self) -> str:
        """What the names of its columns begin with."""
        return key_of(self.record)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the file was labelled with."""
        return dict(self.record["options"])

    def reading(self, annotator: CellAnnotator, naming: Naming) -> tuple[Reading, CellAnnotator]:
        """Return the cells as they were read when the file was labelled, and the annotator as it was then.

        Parameters
        ----------
        annotator
            The model that labelled the file.
        naming
            The tables of gene names that were used then; the species is taken from the record.

        Raises
        ------
        DataError
            If the tables differ from those that were used, or the file can no longer be read that way.
        """
        were = self.options
        options = Options(
            layer=were.get("layer", "X"),
            values=were.get("values", "auto"),
            gene_column=were.get("gene_column"),
            min_coverage=float(were.get("min_coverage", 0.0)),
            force=bool(were.get("force")),
            naming=self._naming(naming),
        )
        query = query_file(self.file, options.layer, options.gene_column)
        return reading_for(annotator, query, options)

    def check_types(self, rows: np.ndarray, types: Sequence[str]) -> None:
        """Raise unless the model predicts for the cells at ``rows`` the likeliest types in the file.

        Raises
        ------
        DataError
            If more than 5 % differ: values or genes were changed after labelling.
        """
        same = float(np.mean(self.best[rows] == np.array(types, dtype=object)))
        if same < _AGREE:
            raise DataError(
                f"{self.path}: for {1 - same:.0%} of the {len(rows):,} cells checked, the model predicts "
                f"another type than {named(BEST_TYPE, self.key)} holds, so genes or values were changed "
                "after the file was labelled: label the file again with `canal annotate`"
            )

    def _naming(self, given: Naming) -> Naming:
        options, tables = self.options, given.to_json()
        for table, option in _TABLES.items():
            was, now = options.get(table), tables.get(table)
            if (was or {}).get("sha256") != (now or {}).get("sha256"):
                used = f"{option} {was['name']} (sha256 {was['sha256'][:12]}...)" if was else f"no {option}"
                raise DataError(
                    f"{self.path} was labelled with {used}, found "
                    f"{now['name'] if now else 'none'}: give the same table again"
                )
        own = self.record.get("genes", {}).get("renamed", {}).get(OWN_TABLE)
        if own and own["sha256"] != (now_own := file_digest(MOUSE_TABLE)):
            raise DataError(
                f"{self.path} was labelled with another release of canal's table of mouse genes (expected "
                f"sha256 {own['sha256'][:12]}..., found {now_own[:12]}...): label the file again"
            )
        return replace(given, species=options.get("species", "auto"))


@contextmanager
def open_labelled(path: Path, key: str | None = None) -> Iterator[Labelled]:
    """Open an h5ad file or zarr store that `canal annotate` wrote.

    Parameters
    ----------
    path
        The file.
    key
        Under which key the labels stand; by default ``canal``, else the only one that has a record.

    Raises
    ------
    DataError
        If the file has no record, the record was edited, or labels were changed after they were written.
    """
    if path.suffix in TABLES:
        raise DataError(
            f"{path}: expected a labelled h5ad file or zarr store, which holds cells and labels; a table of "
            "labels holds no cells"
        )
    with open_cells(path) as file:
        if not isinstance(file, H5adFile):
            raise DataError(
                f"{path}: expected an h5ad file or zarr store that `canal annotate` wrote, found another "
                "format"
            )
        recorded = read_back_h5ad(file, key)
        record = recorded.record
        if genuine(record) is False:
            raise DataError(
                f"{path}: its annotation record was edited after it was written, so it does not prove which "
                "model labelled the file: label the file again with `canal annotate`"
            )
        if why := recorded.mismatch():
            raise DataError(
                f"{path}: the labels are no longer those that were written: {why}; label the file again"
            )
        names = {name: named(name, key_of(record)) for name in (CELL_TYPE, BEST_TYPE, IS_NOVEL, LOW_QUALITY)}
        low = names.pop(LOW_QUALITY)
        columns = {name: _column(file, one) for name, one in names.items()}
        novel = columns[IS_NOVEL] == "True"
        quality = _column(file, low) if low in file.obs_columns else np.full(len(novel), "")
        yield Labelled(file, record, columns[CELL_TYPE], columns[BEST_TYPE], novel, quality == "True")


def _column(file: H5adFile, name: str) -> np.ndarray:
    values: np.ndarray = file.obs_column(name).to_numpy(dtype=object)
    return values


CSV, PARQUET = TABLES


# The record and the current labels, from any format that `canal annotate` writes.


@dataclass(frozen=True)
class RecordedLabels:
    """A labelled file's record, and its labels.

    Attributes
    ----------
    record : dict
        See `canal.annotation.records`.
    n_cells : int
        Cells that the file holds now.
    types : sequence of str or None
        Each cell's label, ``""`` where the label was removed; None where the column was removed.
    where : str
        What holds the column, for messages: obs, or the table.
    others : tuple of str
        Other keys under which the file holds labels.
    """

    record: Record
    n_cells: int
    types: Sequence[str] | None
    where: str = "obs"
    others: tuple[str, ...] = ()

    def mismatch(self) -> str:
        """Return how the labels differ from the record's counts; empty where they agree."""
        if self.types is None:
            return f"{self.where} has no column {named(CELL_TYPE, key_of(self.record))} any more"
        if self.n_cells != self.record["n_cells"]:
            return f"the file holds {self.n_cells:,} cells, {self.record['n_cells']:,} were labelled"
        counts, written = dict(Counter(self.types)), self.record["cell_types"]
        wrong = sorted(name for name in {**counts, **written} if counts.get(name, 0) != written.get(name, 0))
        if not wrong:
            return ""
        return f"the number of cells differs for {len(wrong)} types, such as {wrong[:3]}"


def read_back(path: Path, log: Log | None = None, key: str | None = None) -> RecordedLabels:
    """Return the record and the labels of an h5ad file, zarr store, Parquet or CSV file.

    A CSV file cannot hold a record: its record is found in ``log`` by the file's SHA-256. An h5ad file or
    zarr store may hold several: ``key`` chooses, see `canal.annotation.records.read_record`; a table has one.

    Raises
    ------
    DataError
        If the file cannot be read, or has no record.
    """
    if path.suffix in TABLES and not checked_path(path).is_file():
        raise DataError(no_such_file(path, "`canal annotate IN -o OUT` writes one"))
    if path.suffix in TABLES:
        found = _read_back_csv(path, log) if path.suffix == CSV else _read_back_parquet(path)
        if key not in (None, key_of(found.record)):
            raise DataError(
                f"{path}: expected labels under {key!r}, found some under {key_of(found.record)!r}"
            )
        return found
    with open_cells(path) as file:
        if not isinstance(file, H5adFile):
            raise DataError(
                f"{path}: expected an output of `canal annotate` (h5ad file, zarr store, CSV or Parquet "
                "table), found another format: give the output, not the input"
            )
        return read_back_h5ad(file, key)


def read_back_h5ad(file: H5adFile, key: str | None = None) -> RecordedLabels:
    """Return the record and the labels of an open h5ad file or zarr store; raises as `read_record`."""
    record = read_record(file, key)
    column = named(CELL_TYPE, key_of(record))
    types = list(file.obs_column(column)) if column in file.obs_columns else None
    others = [one for one in record_keys(file.members("uns"), file.text_in_uns) if one != key_of(record)]
    return RecordedLabels(record, file.n_cells, types, others=tuple(others))


def read_back_adata(adata: AnnData, key: str | None = None) -> RecordedLabels:
    """Return the record and the labels of an AnnData in memory; raises as `read_record`."""
    text_of = partial(text_in_uns, adata)
    record = find_record(IN_MEMORY, adata.uns.keys(), text_of, key)
    column = named(CELL_TYPE, key_of(record))
    types = strings(adata.obs[column].to_numpy(dtype=object)).tolist() if column in adata.obs else None
    others = [one for one in record_keys(adata.uns.keys(), text_of) if one != key_of(record)]
    return RecordedLabels(record, adata.n_obs, types, others=tuple(others))


_NO_RECORD = (
    "If a model's file or one of the shelf did (--model FILE.zip), no record was kept: label again with -o "
    "labels.parquet or -o labelled.h5ad, which hold it"
)


def _read_back_csv(path: Path, log: Log | None) -> RecordedLabels:
    import pandas as pd

    digest = file_digest(path)
    if log is None:
        raise DataError(
            f"{path}: a CSV file holds no record of who labelled it. If a version of a project did, its "
            f"annotations.jsonl does: name the project with --root. {_NO_RECORD}"
        )
    record = log.of_output(digest)
    if record is None:
        raise DataError(
            f"{path}: none of the {len(log.records):,} records in annotations.jsonl names a CSV file with "
            f"SHA-256 {digest[:12]}...: the file was changed or made by another program, another project "
            f"labelled it (--root), or an older canal that did not record CSV files. {_NO_RECORD}"
        )
    column = named(CELL_TYPE, key_of(record))
    types = pd.read_csv(path, usecols=[column], dtype=str, keep_default_na=False)
    return _from_table(record, types.map(original))


def _read_back_parquet(path: Path) -> RecordedLabels:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            text = (file.schema_arrow.metadata or {}).get(RECORD_KEY.encode())
            if text is None and (path.parent.parent / RECORDS).is_file():
                folder = path.parent.parent
                raise DataError(
                    f"{path} is a partition of {folder}, which `canal annotate` labelled from several files: "
                    f"{folder / RECORDS} has the record of each, and the project's log, too (canal impact)"
                )
            if text is None:
                raise DataError(
                    f"{path}: its metadata hold no annotation record: `canal annotate` did not write this "
                    "file, or another program rewrote it without the metadata"
                )
            record = parse_record(text.decode("utf-8", "replace"))
            if isinstance(record, str):
                raise DataError(f"{path}: {RECORD_KEY!r} in its metadata is no annotation record: {record}")
            names, column = file.schema_arrow.names, named(CELL_TYPE, key_of(record))
            # Without labels any one column will do: only the number of rows is used.
            table = file.read(columns=[column] if column in names else names[:1])
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({error}); the file is damaged, cut short, or another format"
        ) from error
    return _from_table(record, table.to_pandas(ignore_metadata=True))


def _from_table(record: Record, table: pd.DataFrame) -> RecordedLabels:
    column = named(CELL_TYPE, key_of(record))
    types = table[column].astype(object).fillna("").astype(str).tolist() if column in table else None
    return RecordedLabels(record, len(table), types, "the table")
