"""From a query to expression in a model's own genes, a block of cells at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.coverage import Coverage, cover
from canal.annotation.query import Query
from canal.annotation.units import AUTO, check_block, find_values
from canal.config import Values
from canal.data.expression import align, to_expression
from canal.data.genes import EXAMPLES, GeneMap, map_genes
from canal.data.h5ad_tables import listed
from canal.errors import DataError


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
    values : Values
        Its units.
    strict : bool
        Whether counts must be whole numbers: they were taken for counts because some are.
    coverage : Coverage
    warnings : tuple of str
        What makes labels less certain.
    """

    query: Query
    panel: tuple[str, ...]
    genes: GeneMap
    values: Values
    strict: bool
    coverage: Coverage
    warnings: tuple[str, ...]

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yield expression of the next ``size`` cells, float32 ``(size, n_panel_genes)``.

        Counts are scaled by the cell's total over all genes of the query, not over the panel.

        Raises
        ------
        DataError
            If a value is not finite, negative or, where ``strict``, no whole number.
        """
        for start, block in self.query.matrix.chunks(size):
            check_block(self.query, block, start, whole=self.strict)
            yield self._expression(block)

    def _expression(self, block: csr_matrix) -> np.ndarray:
        symbols = self.genes.apply(block)
        return align(to_expression(symbols, self.values), self.genes.symbols, self.panel)


def begin(query: Query, panel: Sequence[str], wish: str, min_coverage: float) -> Reading:
    """Find out how a query is to be read.

    Parameters
    ----------
    query
        The cells.
    panel
        The model's genes.
    wish
        Units, or auto; see `canal.annotation.units.find_values`.
    min_coverage
        Share of the panel that the query must have.

    Raises
    ------
    DataError
        If it has no cells, too few of the model's genes, or values of no known units.
    """
    if not query.n_cells:
        raise DataError(f"{query.name}: there are no cells to label")
    coverage = cover(query, panel, min_coverage)
    values, doubts = find_values(query, wish)
    # Counts of two columns for one gene add up; logarithms do not, so their first column stands.
    genes = map_genes(query.genes, "sum" if values == "counts" else "refuse")
    strict = values == "counts" and wish == AUTO
    warnings = [text for text in (coverage.warning, *doubts, _repeated(genes)) if text]
    return Reading(query, tuple(panel), genes, values, strict, coverage, tuple(warnings))


def _repeated(genes: GeneMap) -> str:
    repeated = genes.repairs.get("duplicated_genes")
    if not repeated:
        return ""
    examples = listed(repeated["examples"], EXAMPLES)
    return f"{repeated['n']} genes have more than one column ({repeated['done']}), such as {examples}"
