"""Genes that set classes of cells apart, from sums that stream: mean, spread and share of cells, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.data.expression import to_expression

if TYPE_CHECKING:
    from canal.annotation.reading import Reading

_FEWEST = 3
"""Cells that a class must have to be compared with."""


@dataclass(frozen=True)
class TopGene:
    """A gene that is higher in a class of cells than in others.

    Attributes
    ----------
    gene : str
    score : float
        See `Tally.top`.
    change : float
        Difference of mean log2(1 + counts per 10,000) to the cells of known types; NaN where there are none.
    expressed, expressed_known : float
        Share of cells that express it: of the class, and of known types.
    """

    gene: str
    score: float
    change: float
    expressed: float
    expressed_known: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON document, rounded; what cannot be said is null."""
        return {
            name: (None if np.isnan(value) else round(value, 4)) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums of expression by class of cells.

    Attributes
    ----------
    genes : sequence of str
    n_cells : numpy.ndarray
        Cells of each class, ``(n_classes,)``.
    sums, squares, expressed : numpy.ndarray
        float64 ``(n_classes, n_genes)``: of expression, of its square, and of cells that express the gene.
    """

    genes: Sequence[str]
    n_cells: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    expressed: np.ndarray

    def top(self, one: Sequence[int], others: Sequence[Sequence[int]], known: int, n: int) -> list[TopGene]:
        """Return the genes in which a set of classes stands out from each of several others, best first.

        A gene's score against others is the difference of mean expression over (its standard error + the
        median standard error of all genes that the cells express): the latter keeps genes that vary by
        nothing, and those of a cell or two, from coming first (SAM, Tusher et al. 2001). Its score is the
        least over all others, so it must be higher than in each of them.

        Parameters
        ----------
        one
            Classes that are looked at together.
        others
            Sets of classes to compare with; those of fewer than three cells are left out.
        known
            The class of known types, for what is told of a gene.
        n
            How many genes at most; only those that are higher are returned.
        """
        count, mean, spread = self._of(one)
        scores = [
            self._score((count, mean, spread), other)
            for other in map(self._of, others)
            if other[0] >= _FEWEST
        ]
        score = np.min(scores, axis=0) if scores else mean
        expressed = self.expressed[list(one)].sum(axis=0) / max(count, 1)
        n_known, mean_known, _ = self._of([known])
        share_known = self.expressed[known] / n_known if n_known else np.full(len(self.genes), np.nan)
        change = mean - mean_known if n_known else np.full(len(self.genes), np.nan)
        best = np.lexsort((np.arange(len(score)), -score))[:n]
        return [
            TopGene(
                self.genes[i], float(score[i]), float(change[i]), float(expressed[i]), float(share_known[i])
            )
            for i in best
            if score[i] > 0
        ]

    def _of(self, classes: Sequence[int]) -> tuple[int, np.ndarray, np.ndarray]:
        """Return number of cells, mean and variance of classes taken together."""
        rows = list(classes)
        n = int(self.n_cells[rows].sum())
        mean = self.sums[rows].sum(axis=0) / max(n, 1)
        variance = self.squares[rows].sum(axis=0) / max(n, 1) - mean**2
        return n, mean, np.maximum(variance, 0.0)

    def _score(
        self, one: tuple[int, np.ndarray, np.ndarray], other: tuple[int, np.ndarray, np.ndarray]
    ) -> np.ndarray:
        error = np.sqrt(one[2] / max(one[0], 1) + other[2] / other[0])
        seen = error[one[1] > 0]
        floor = float(np.median(seen)) if seen.size else 0.0
        result: np.ndarray = (one[1] - other[1]) / np.maximum(error + floor, np.finfo(float).tiny)
        return result


def tally(reading: Reading, classes: np.ndarray, n_classes: int, chunk_cells: int) -> Tally:
    """Add up the expression of all genes of a query by class of cells, a block of cells at a time.

    Parameters
    ----------
    reading
        Any reading of the query; its panel does not matter.
    classes
        The class of each cell, ``(n_cells,)``; a cell of class -1 is left out.
    n_classes
        How many there are.
    chunk_cells
        Cells held in memory at a time.
    """
    whole = reading.of_all_genes()
    shape = (n_classes, len(whole.panel))
    sums, squares, expressed = (np.zeros(shape) for _ in range(3))
    for first, block, totals in whole.values(chunk_cells):
        own = classes[first : first + block.shape[0]]
        cells = np.flatnonzero(own >= 0)
        ones = np.ones(len(cells))
        pick = csr_matrix((ones, (own[cells], cells)), shape=(n_classes, block.shape[0]))
        block.eliminate_zeros()  # a zero of a cell without counts is no number of counts per 10,000
        x = to_expression(block, whole.units.values, totals).astype(np.float64)
        sums += (pick @ x).toarray()
        squares += (pick @ x.power(2)).toarray()
        expressed += (pick @ (x > 0).astype(np.float64)).toarray()
    counts = np.bincount(classes[classes >= 0], minlength=n_classes)
    return Tally(whole.panel, counts, sums, squares, expressed)
