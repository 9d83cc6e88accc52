"""From a query to expression in a model's own genes, a block of cells at a time; one pass where it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.naming import Coverage, cover
from canal.annotation.query import Query
from canal.annotation.query_units import Units, check_block, check_entries, find_units
from canal.core.errors import DataError
from canal.data.expression import to_expression
from canal.data.genes import EXAMPLES, GeneMap, map_genes
from canal.data.units import PER_TEN_THOUSAND
from canal.io.arrays import listed
from canal.io.blocks import ByCell, ByEntries, Gathered, StoredRows
from canal.io.matrices import Csr


@dataclass(frozen=True)
class Block:
    """The next cells of a query.

    ``start`` is the position of the first; ``expression`` float32 ``(n_cells, n_panel_genes)``; ``empty``
    tells the cells of which no gene of the model is expressed: nothing can be said of them.
    """

    start: int
    expression: np.ndarray
    empty: np.ndarray


@dataclass(frozen=True, eq=False)
class Reading:
    """A query that can be read, and how.

    Attributes
    ----------
    query : Query
    panel : tuple of str
        The model's genes.
    genes : GeneMap
        From the query's columns to unique symbols.
    units : Units
        What its values are.
    coverage : Coverage
    warnings : tuple of str
        What makes labels less certain.
    """

    query: Query
    panel: tuple[str, ...]
    genes: GeneMap
    units: Units
    coverage: Coverage
    warnings: tuple[str, ...]

    def blocks(self, size: int, start: int = 0) -> Iterator[Block]:
        """Yield the next ``size`` cells, from cell ``start`` on, until all were given.

        Counts are scaled by the cell's total over all genes of the query, not over the panel. A matrix that
        does not lie by cell is gathered first: see `canal.io.blocks`.

        Raises
        ------
        DataError
            If a value is not finite, negative or, where units are strict, no whole number.
        """
        asked = self.units.values == "counts" or self.units.depth != PER_TEN_THOUSAND
        for first, found, totals in self._pieces(size, start, asked):
            block = self.units.scaled(self.query, found, totals, first)
            expression = to_expression(block, self.units.values, totals).toarray()
            yield Block(first, expression, ~(expression > 0).any(axis=1))

    def values(self, size: int, start: int = 0) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield as `blocks` does, but (first cell, values, totals): the query's own units, not expression.

        Values are float32 ``(n_cells, n_panel_genes)`` in the units of `units`, logarithms those of counts
        per 10,000; totals ``(n_cells,)`` are what the cells' counts are scaled by.
        """
        for first, block, totals in self._pieces(size, start, totals=True):
            yield first, self.units.scaled(self.query, block, totals, first), totals

    def of_all_genes(self) -> Reading:
        """Return the same reading with every gene of the query for its panel."""
        return replace(self, panel=self.genes.symbols)

    def _pieces(self, size: int, start: int, totals: bool) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield (first cell, panel genes of the next cells, totals); totals not asked for may be 0."""
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
        """Return (panel genes, totals) of neighbouring cells of a matrix that lies by cell."""
        block = matrix.rows(first, stop)
        none, judged = self.query.not_genes, block
        if none is not None and none.kinds:  # antibodies may be in units of their own
            judged = csr_matrix(block[:, np.flatnonzero(none.is_gene)])
        check_block(self.query, judged, first, whole=self.units.strict)
        weighed = csr_matrix((self.units.undone(block.data), block.indices, block.indptr), shape=block.shape)
        return csr_matrix(block @ self._chosen), weighed @ self._counted.astype(np.float64)

    def _gathered(
        self, matrix: ByEntries, size: int, start: int
    ) -> Iterator[tuple[int, csr_matrix, np.ndarray]]:
        """Yield as `_pieces` does; only columns of panel genes are kept on the way."""
        chosen = self._chosen
        wanted = np.flatnonzero(np.diff(chosen.indptr))
        columns = np.full(matrix.shape[1], -1, dtype=np.int64)
        columns[wanted] = np.arange(len(wanted))

        none = self.query.not_genes

        def check(cells: np.ndarray, genes: np.ndarray, values: np.ndarray) -> None:
            if none is not None and none.kinds:
                cells, values = cells[none.is_gene[genes]], values[none.is_gene[genes]]
            check_entries(self.query, cells, values, whole=self.units.strict)

        with Gathered(matrix, columns, self._counted, check, self.units.undone) as gathered:
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
        """Whether a column belongs to a cell's total: it has a name."""
        counted: np.ndarray = np.diff(self.genes.selector.indptr) > 0
        return counted


def begin(query: Query, panel: Sequence[str], wish: str, min_coverage: float, force: bool = False) -> Reading:
    """Find out how a query is to be read.

    Parameters
    ----------
    query
        The cells.
    panel
        The model's genes.
    wish
        Units, or auto; see `canal.annotation.query_units.find_units`.
    min_coverage
        Share of the panel that the query must have.
    force
        Whether cells are labelled with a smaller share, too.

    Raises
    ------
    DataError
        If it has no cells, too few of the model's genes, or values of no known units.
    """
    if not query.n_cells:
        raise DataError(f"{query.name}: there are no cells to label")
    coverage = cover(query, panel, min_coverage, force)
    units = find_units(query, wish)
    query = units.converted(query)
    # Counts of two columns for one gene add up; logarithms do not, so their first column stands.
    genes = map_genes(query.genes, "sum" if units.values == "counts" else "refuse")
    repeated = ""
    if several := genes.repairs.get("duplicated_genes"):
        examples = listed(several["examples"], EXAMPLES)
        repeated = f"{several['n']} genes have more than one column ({several['done']}), such as {examples}"
    none = "" if query.not_genes is None else query.not_genes.warning
    warnings = [text for text in (none, coverage.warning, *units.doubts, repeated) if text]
    return Reading(query, tuple(panel), genes, units, coverage, tuple(warnings))


# A model's genes and the totals of cells that lie in a file, in one pass over what is stored.

_PORTION = 1 << 18
"""Stored entries looked at together: they stay in the processor's cache for all that is asked of them."""
_WORTH = 4
"""A pass pays where at most one of so many columns is wanted."""
_INFINITE = np.float32(np.inf).view(np.uint32)
"""Bits of numbers from 0 on rise with them; those of negative ones and of NaN lie above, as whole numbers."""
_EXACT = 2.0**24
"""Whole numbers below have a float32 of their own, and so has every sum of them that is below."""


class Picker:
    """Takes a model's genes out of stored rows.

    Rows in which anything is unusual (an index out of order or twice, a value that is not finite, negative
    or, where it must be whole, is not) are left to who reads them by the book, and says what is wrong.

    Parameters
    ----------
    chosen
        ``(n_columns, n_panel_genes)``: 1 where a column contributes to a gene of the model.
    counted
        bool ``(n_columns,)``: whether a column belongs to a cell's total.
    whole
        Whether every value must be a whole number.
    totals
        Whether the cells' totals are wanted; only whole numbers are added up here, since their sum does not
        depend on their order.
    """

    def __init__(self, chosen: csr_matrix, counted: np.ndarray, whole: bool, totals: bool) -> None:
        wanted = np.flatnonzero(np.diff(chosen.indptr))
        narrow = csr_matrix(chosen[wanted])
        self._n_columns, self._n_genes = chosen.shape
        self._is_wanted = np.zeros(self._n_columns, dtype=bool)
        self._is_wanted[wanted] = True
        self._place = np.zeros(self._n_columns, dtype=np.int32)
        alone = len(np.unique(narrow.indices)) == narrow.nnz == len(wanted)
        self._narrow = None if alone else narrow
        self._place[wanted] = narrow.indices if alone else np.arange(len(wanted))
        self._weights = None if counted.all() else counted.astype(np.float32)
        self._whole, self._totals = whole, totals
        self.pays = len(wanted) * _WORTH <= self._n_columns and (whole or not totals)

    def pick(self, rows: StoredRows) -> tuple[csr_matrix, np.ndarray] | None:
        """Return (float32 values ``(n_cells, n_panel_genes)``, float64 totals), or None for unusual rows.

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
            found = np.flatnonzero(self._is_wanted[indices.astype(np.intp, copy=False)])
            lengths = np.diff(np.searchsorted(found, pointers))
            parts.append((values[found], self._place[indices[found]], lengths))
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
