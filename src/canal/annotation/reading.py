"""Read a query as expression in a model's genes, a block of cells at a time, in one pass where possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.coverage import Coverage, cover
from canal.annotation.naming import ambiguity_warning, rename
from canal.annotation.options import Options
from canal.annotation.query import Query
from canal.annotation.query_units import Units, check_block, check_entries, find_units
from canal.core.errors import DataError
from canal.data.expression import to_expression
from canal.data.genes import EXAMPLES, GeneMap, map_genes
from canal.data.units import PER_TEN_THOUSAND
from canal.io.arrays import listed
from canal.io.blocks import ByCell, ByEntries, RegroupedMatrix, StoredRows
from canal.io.matrices import Csr

if TYPE_CHECKING:
    from canal.model.load import CellAnnotator


@dataclass(frozen=True)
class Block:
    """A block of consecutive cells of a query.

    ``start`` is the position of the first; ``expression`` is float32 ``(n_cells, n_panel_genes)``; ``empty``
    marks the cells that express no gene of the model and so cannot be labelled; ``totals`` are the cells'
    counts over all genes, None where values are no counts.
    """

    start: int
    expression: np.ndarray
    empty: np.ndarray
    totals: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """A query with everything that is needed to read its expression.

    Attributes
    ----------
    query : Query
    panel : tuple of str
        The model's genes.
    genes : GeneMap
        The map from the query's columns to unique symbols.
    units : Units
        The units of its values.
    coverage : Coverage
    warnings : tuple of str
        Why labels are less certain.
    renamed : dict
        Genes found by another name; see `canal.annotation.naming.rename`.
    """

    query: Query
    panel: tuple[str, ...]
    genes: GeneMap
    units: Units
    coverage: Coverage
    warnings: tuple[str, ...]
    renamed: Mapping[str, Any]

    def blocks(self, size: int, start: int = 0) -> Iterator[Block]:
        """Yield blocks of ``size`` cells, from cell ``start`` on.

        Counts are scaled by the cell's total over all genes of the query, not over the panel. A matrix that
        is stored by gene is regrouped by cell first: see `canal.io.blocks`.

        Raises
        ------
        DataError
            If a value is not finite, negative or, where units are strict, no whole number.
        """
        with_totals = self.units.values == "counts" or self.units.depth != PER_TEN_THOUSAND
        for first, values, totals in self._raw_blocks(size, start, with_totals):
            block = self.units.scaled(self.query, values, totals, first)
            expression = to_expression(block, self.units.values, totals).toarray()
            counted = totals if self.units.values == "counts" else None
            yield Block(first, expression, ~(expression > 0).any(axis=1), counted)

    def values(self, size: int, start: int = 0) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield (first cell, values, totals) of the blocks of `blocks`, in the query's units, not expression.

        Values are float32 ``(n_cells, n_panel_genes)`` in the units of `units`, logarithms those of counts
        per 10,000; totals ``(n_cells,)`` are the divisors of the cells' counts.
        """
        for first, block, totals in self._raw_blocks(size, start, totals=True):
            yield first, self.units.scaled(self.query, block, totals, first), totals

    def of_all_genes(self) -> Reading:
        """Return the same reading with all genes of the query as its panel."""
        return replace(self, panel=self.genes.symbols)

    def _raw_blocks(
        self, size: int, start: int, totals: bool
    ) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield (first cell, panel genes of the next cells, totals); without ``totals`` they may be 0."""
        matrix = self.query.matrix
        if isinstance(matrix, ByEntries):
            yield from self._gathered(matrix, size, start)
            return
        picker = Picker(self._chosen, self._counted, self.units.strict, totals)
        if isinstance(matrix, Csr) and picker.pays:
            for first, stop, picked in matrix.ahead(size, start, picker.pick):
                if picked is None:
                    break
                yield first, *picked
                start = stop
        for first in range(start, self.query.n_cells, size):
            yield first, *self._row(matrix, first, min(first + size, self.query.n_cells))

    def _row(self, matrix: ByCell, first: int, stop: int) -> tuple[csr_matrix, np.ndarray]:
        """Return (panel genes, totals) of consecutive cells of a matrix stored by cell."""
        block = matrix.rows(first, stop)
        not_genes, genes_alone = self.query.not_genes, block
        if not_genes is not None and not_genes.kinds:  # antibodies may be in units of their own
            genes_alone = csr_matrix(block[:, np.flatnonzero(not_genes.is_gene)])
        check_block(self.query, genes_alone, first, whole=self.units.strict)
        weighed = csr_matrix((self.units.undone(block.data), block.indices, block.indptr), shape=block.shape)
        return csr_matrix(block @ self._chosen), weighed @ self._counted.astype(np.float64)

    def _gathered(
        self, matrix: ByEntries, size: int, start: int
    ) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield as `_raw_blocks` does for a matrix stored by gene; only panel genes are kept meanwhile."""
        chosen = self._chosen
        wanted = np.flatnonzero(np.diff(chosen.indptr))
        columns = np.full(matrix.shape[1], -1, dtype=np.int64)
        columns[wanted] = np.arange(len(wanted))

        not_genes = self.query.not_genes

        def check(cells: np.ndarray, genes: np.ndarray, values: np.ndarray) -> None:
            if not_genes is not None and not_genes.kinds:
                cells, values = cells[not_genes.is_gene[genes]], values[not_genes.is_gene[genes]]
            check_entries(self.query, cells, values, whole=self.units.strict)

        with RegroupedMatrix(matrix, columns, self._counted, check, self.units.undone) as gathered:
            narrow = chosen[wanted]
            for first, block in gathered.chunks(size, start):
                yield first, csr_matrix(block @ narrow), gathered.totals[first : first + block.shape[0]]

    @cached_property
    def _chosen(self) -> csr_matrix:
        """``(n_columns, n_panel_genes)``: 1 where a column contributes to a gene of the model."""
        position = {gene: i for i, gene in enumerate(self.genes.symbols)}
        picks = [(position[gene], i) for i, gene in enumerate(self.panel) if gene in position]
        rows, columns = np.array(picks, dtype=np.int64).reshape(-1, 2).T
        shape = (len(self.genes.symbols), len(self.panel))
        picker = csr_matrix((np.ones(len(picks), dtype=np.float32), (rows, columns)), shape=shape)
        return csr_matrix(self.genes.selector @ picker)

    @cached_property
    def _counted(self) -> np.ndarray:
        """Whether a column counts towards a cell's total: whether it has a name."""
        counted: np.ndarray = np.diff(self.genes.selector.indptr) > 0
        return counted


def reading_for(annotator: CellAnnotator, query: Query, options: Options) -> tuple[Reading, CellAnnotator]:
    """Return a query as a reading, and the annotator for cells of which its missing genes were not measured.

    Whoever reads cells for a model predicts by that annotator: the other one takes missing genes for silent.

    Raises
    ------
    DataError
        As `make_reading`.
    """
    reading = make_reading(query, annotator.genes, options)
    return reading, annotator.without(reading.coverage.missing)


def make_reading(query: Query, panel: Sequence[str], options: Options) -> Reading:
    """Return a query as a reading, its genes under the model's names, after checking genes and units.

    Parameters
    ----------
    query
        The cells.
    panel
        The model's genes.
    options
        Units, names of genes, and the share of the panel that the query must have.

    Raises
    ------
    DataError
        If the query has no cells, too few of the model's genes, or values of unknown units; or as
        `canal.annotation.naming.rename`.
    """
    if not query.n_cells:
        raise DataError(f"{query.name}: there are no cells to label")
    query, renamed = rename(query, panel, options.naming, options.gene_column is not None)
    try:
        coverage = cover(query, panel, options.min_coverage, options.force)
        units = find_units(query, options.values)
    except DataError as error:
        if ambiguous := ambiguity_warning(renamed):
            raise DataError(f"{error}; {ambiguous}") from error
        raise
    query = units.converted(query)
    # Counts of two columns for one gene add up; logarithms do not, so the first column is kept.
    genes = map_genes(query.genes, "sum" if units.values == "counts" else "refuse")
    repeated = ""
    if several := genes.repairs.get("duplicated_genes"):
        examples = listed(several["examples"], EXAMPLES)
        one = several["n"] == 1
        repeated = f"{several['n']} {'gene has' if one else 'genes have'} more than one column "
        repeated += f"({several['done']}), {'namely' if one else 'such as'} {examples}"
    features = "" if query.not_genes is None else query.not_genes.warning
    warnings = [text for text in (features, coverage.warning, *units.doubts, repeated) if text]
    return Reading(query, tuple(panel), genes, units, coverage, tuple(warnings), renamed)


# The model's genes and the totals of cells in a CSR file, in one pass over the stored entries.

_PORTION = 1 << 18
"""Stored entries processed together: they stay in the processor's cache for all operations."""
_WORTH = 4
"""One pass is faster where at most one in so many columns is wanted."""
_INFINITE = np.float32(np.inf).view(np.uint32)
"""As unsigned integers, bits of floats from 0 on rise with the value; negative numbers and NaN come after."""
_EXACT = 2.0**24
"""Whole numbers below this, and sums of them below this, are exact in float32."""


class Picker:
    """Selects a model's genes from stored rows.

    Irregular rows (an index out of order or repeated, a value that is not finite, negative or, where it must
    be whole, is not) are left to the general path, which converts them or reports the error.

    Parameters
    ----------
    chosen
        ``(n_columns, n_panel_genes)``: 1 where a column contributes to a gene of the model.
    counted
        bool ``(n_columns,)``: whether a column belongs to a cell's total.
    whole
        Whether every value must be a whole number.
    totals
        Whether the cells' totals are wanted; only whole numbers are summed here, since their sum does not
        depend on the order.
    """

    def __init__(self, chosen: csr_matrix, counted: np.ndarray, whole: bool, totals: bool) -> None:
        wanted = np.flatnonzero(np.diff(chosen.indptr))
        narrow = csr_matrix(chosen[wanted])
        self._n_columns, self._n_genes = chosen.shape
        self._is_wanted = np.zeros(self._n_columns, dtype=bool)
        self._is_wanted[wanted] = True
        self._target = np.zeros(self._n_columns, dtype=np.int32)
        alone = len(np.unique(narrow.indices)) == narrow.nnz == len(wanted)
        self._narrow = None if alone else narrow
        self._target[wanted] = narrow.indices if alone else np.arange(len(wanted))
        self._weights = None if counted.all() else counted.astype(np.float32)
        self._whole, self._totals = whole, totals
        self.pays = len(wanted) * _WORTH <= self._n_columns and (whole or not totals)

    def pick(self, rows: StoredRows) -> tuple[csr_matrix, np.ndarray] | None:
        """Return (float32 values ``(n_cells, n_panel_genes)``, float64 totals), or None for irregular rows.

        Totals are 0 where they are not wanted.
        """
        totals = np.zeros(rows.n_cells)
        parts = []
        for first, stop in _portions(rows.pointers):
            begin, end = rows.pointers[first], rows.pointers[stop]
            pointers = rows.pointers[first : stop + 1] - begin
            indices, values = rows.indices[begin:end], _single(rows.values[begin:end])
            indices = indices.astype(indices.dtype.newbyteorder("="), copy=False)
            if not (self._in_order(indices, pointers) and self._sound(values)):
                return None
            if self._totals:
                summed = self._summed(indices, values, pointers)
                if summed is None:
                    return None
                totals[first:stop] = summed
            chosen = np.flatnonzero(self._is_wanted[indices.astype(np.intp, copy=False)])
            lengths = np.diff(np.searchsorted(chosen, pointers))
            parts.append((values[chosen], self._target[indices[chosen]], lengths))
        data, columns, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if self._narrow is None:
            return csr_matrix((data, columns, ends), shape=(rows.n_cells, self._n_genes)), totals
        block = csr_matrix((data, columns, ends), shape=(rows.n_cells, self._narrow.shape[0]))
        return csr_matrix(block @ self._narrow), totals

    def _in_order(self, indices: np.ndarray, pointers: np.ndarray) -> bool:
        """Return whether indices are columns of the matrix, and rise within each row."""
        if not indices.size:
            return True
        unsigned = indices.view(f"u{indices.dtype.itemsize}")  # what is negative is very large
        if unsigned.max() >= self._n_columns:
            return False
        rises = indices[:-1] < indices[1:]
        rises[pointers[(pointers > 0) & (pointers < len(indices))] - 1] = True
        return bool(rises.all())

    def _sound(self, values: np.ndarray) -> bool:
        """Return whether values are finite, not negative (nor -0) and, where they must be, whole."""
        if not values.size:
            return True
        if values.view(np.uint32).max() >= _INFINITE:
            return False
        return not self._whole or bool((np.rint(values) == values).all())

    def _summed(self, indices: np.ndarray, values: np.ndarray, pointers: np.ndarray) -> np.ndarray | None:
        """Return the rows' sums over the columns that count, None where float32 may not hold them."""
        if self._weights is not None:
            values = values * self._weights[indices.astype(np.intp, copy=False)]
        sums = np.zeros(len(pointers) - 1)
        filled = np.flatnonzero(np.diff(pointers))
        if filled.size:
            sums[filled] = np.add.reduceat(values, pointers[filled])
        return sums if sums.max(initial=0) < _EXACT else None


def _portions(pointers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of neighbouring rows with few entries together, at least one row."""
    first, n_rows = 0, len(pointers) - 1
    while first < n_rows:
        fits = int(np.searchsorted(pointers, pointers[first] + _PORTION, side="right")) - 1
        stop = min(max(fits, first + 1), n_rows)
        yield first, stop
        first = stop


def _single(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)
