"""A file that `canal annotate` labelled, read again: its record, its labels, and its cells as read then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.columns import BEST_TYPE, IS_NOVEL, LOW_QUALITY, TYPE
from canal.annotation.formats import open_cells
from canal.annotation.naming import Naming, rename
from canal.annotation.new_output import TABLES
from canal.annotation.noted import of_h5ad
from canal.annotation.query import query_file
from canal.annotation.reading import Reading, begin
from canal.annotation.records import Record, genuine
from canal.core.errors import DataError
from canal.data.h5ad import H5adFile

if TYPE_CHECKING:
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
