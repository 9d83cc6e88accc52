"""From a query to expression in a model's own genes, a block of cells at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.coverage import Coverage, cover
from canal.annotation.gathering import Gathered
from canal.annotation.picking import Picker
from canal.annotation.query import ByCell, Query
from canal.annotation.units import Units, check_block, check_entries, find_units
from canal.core.errors import DataError
from canal.data.expression import to_expression
from canal.data.genes import EXAMPLES, GeneMap, map_genes
from canal.data.h5ad_matrices import ByEntries, Csr
from canal.data.h5ad_tables import listed
from canal.data.units import PER_TEN_THOUSAND


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
        does not lie by cell is gathered first: see `canal.annotation.gathering`.

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
        check_block(self.query, self._genes_alone(block), first, whole=self.units.strict)
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

    def _genes_alone(self, block: csr_matrix) -> csr_matrix:
        """Return what is judged of a block: antibodies may be in units of their own."""
        none = self.query.not_genes
        return block if none is None or not none.kinds else csr_matrix(block[:, np.flatnonzero(none.is_gene)])

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
        Units, or auto; see `canal.annotation.units.find_units`.
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
    none = "" if query.not_genes is None else query.not_genes.warning
    warnings = [text for text in (none, coverage.warning, *units.doubts, _repeated(genes)) if text]
    return Reading(query, tuple(panel), genes, units, coverage, tuple(warnings))


def _repeated(genes: GeneMap) -> str:
    repeated = genes.repairs.get("duplicated_genes")
    if not repeated:
        return ""
    examples = listed(repeated["examples"], EXAMPLES)
    return f"{repeated['n']} genes have more than one column ({repeated['done']}), such as {examples}"
