"""Marker genes: by attribution to a cell type, by the model's own weights, or by differential expression."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.labelled import Labelled
from canal.annotation.naming import Naming
from canal.core.errors import DataError
from canal.core.files import new_file
from canal.core.progress import doing, each
from canal.data.expression import to_expression
from canal.io.writer import as_text, writing
from canal.memory import NETWORK, SUMS
from canal.memory.answer import ExactAnnotator

if TYPE_CHECKING:
    from canal.annotation.reading import Reading
    from canal.model.load import CellAnnotator

_COLUMNS = ("cell_type", "n_cells", "rank", "gene", "attribution", "expressed")
_WEIGHT_COLUMNS = ("cell_type", "side", "rank", "gene", "share", "direction", NETWORK, SUMS)


@dataclass(frozen=True)
class MarkerGene:
    """A gene that supports the prediction of a cell type.

    ``attribution`` is the mean over the cells sampled; ``expressed`` the share of them that express the gene.
    """

    gene: str
    attribution: float
    expressed: float


@dataclass(frozen=True)
class Explanation:
    """The marker genes of a cell type, strongest first, and the number of cells sampled."""

    cell_type: str
    n_cells: int
    genes: tuple[MarkerGene, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "cell_type": self.cell_type,
            "n_cells": self.n_cells,
            "genes": [asdict(one) for one in self.genes],
        }


@dataclass(frozen=True)
class ExplainOptions:
    """How cell types are explained.

    Attributes
    ----------
    cells : int
        Most cells of a type that are sampled.
    top : int
        Most genes reported for a type.
    seed : int
        Seed of the sample.
    naming : Naming
        The tables of gene names that the file was labelled with.
    chunk_cells : int
        Cells held in memory at a time.
    key : str or None
        The ``--key-added`` of the labels; None: ``canal``, else the only one that has a record.
    """

    cells: int = 100
    top: int = 20
    seed: int = 0
    naming: Naming = Naming()
    chunk_cells: int = 2000
    key: str | None = None


def explain(
    annotator: CellAnnotator, labelled: Labelled, options: ExplainOptions, notice: Callable[[str], None]
) -> list[Explanation]:
    """Return the marker genes of each cell type in a labelled file; see `canal.model.attribution`.

    "Unassigned" is no type. Genes with negative mean attribution are left out.

    Raises
    ------
    DataError
        If no cell has a type of the model, or the file cannot be read as it was labelled.
    """
    sample = _sample(labelled, annotator.labels, options)
    wanted = np.sort(np.concatenate(list(sample.values())))
    reading, annotator = labelled.reading(annotator, options.naming)
    parts = []
    for block in reading.blocks(options.chunk_cells):
        start, stop = np.searchsorted(wanted, (block.start, block.start + len(block.expression)))
        parts.append(block.expression[wanted[start:stop] - block.start])
    expression = np.concatenate(parts)
    labelled.check_types(wanted, annotator.predict(expression).labels)
    notice(f"explaining {len(sample)} cell types by {len(wanted):,} cells")
    return [
        _explain_type(annotator, name, expression[np.searchsorted(wanted, sample[name])], options.top)
        for name in each(list(sample), "explaining {}".format)
    ]


def write_explanations(path: Path, explanations: Sequence[Explanation]) -> None:
    """Write a CSV file with a line for each type and gene, atomically; raises `DataError` on failure."""
    rows = (
        (one.cell_type, one.n_cells, rank, gene.gene, f"{gene.attribution:.6f}", f"{gene.expressed:.4f}")
        for one in explanations
        for rank, gene in enumerate(one.genes, start=1)
    )
    _write_rows(path, _COLUMNS, rows)


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        writing(path),
        new_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([as_text(value) if isinstance(value, str) else value for value in row])


def _sample(labelled: Labelled, labels: Sequence[str], options: ExplainOptions) -> dict[str, np.ndarray]:
    """Return for each type the positions of the sampled cells, ascending."""
    generator = np.random.default_rng([options.seed, *b"explain"])
    sample = {}
    for cell_type in labels:
        rows = np.flatnonzero(labelled.types == cell_type)
        if len(rows) > options.cells:
            rows = np.sort(generator.choice(rows, size=options.cells, replace=False))
        if len(rows):
            sample[cell_type] = rows
    if not sample:
        raise DataError(
            f"{labelled.path}: none of its {len(labelled.types):,} cells has a cell type, so there is "
            "nothing to explain"
        )
    return sample


def _explain_type(annotator: CellAnnotator, cell_type: str, expression: np.ndarray, top: int) -> Explanation:
    types = np.full(len(expression), annotator.labels.index(cell_type), dtype=np.int64)
    if isinstance(annotator, ExactAnnotator):  # which needs no torch
        found = annotator.attributions(expression, types)
    else:
        from canal.model.attribution import attributions

        found = attributions(annotator, expression, types)
    mean, expressed = found.mean(axis=0, dtype=np.float64), (expression > 0).mean(axis=0)
    genes = tuple(
        MarkerGene(annotator.genes[i], round(float(mean[i]), 6), round(float(expressed[i]), 4))
        for i in _strongest(mean, top)
    )
    return Explanation(cell_type, len(expression), genes)


def _strongest(values: np.ndarray, top: int) -> list[int]:
    """Return the positions of the greatest values above 0, greatest first, of equal ones the first."""
    best = np.lexsort((np.arange(len(values)), -values))[:top]
    return [int(i) for i in best if values[i] > 0]


# What carries a type in the model itself: its weights, without any cells.

BOTH = "both"


@dataclass(frozen=True)
class GeneWeight:
    """The weight of a gene for a cell type.

    Attributes
    ----------
    gene : str
    share : float
        Share of the type's weight over all genes, 0...1; the sum of ``network`` and ``sums``.
    direction : str or None
        ``higher`` where a cell is likelier of the type the more it expresses of the gene, ``lower`` the less.
        None where the sums, which alone tell it, hold nothing of the type.
    network, sums : float
        What each side adds to the share.
    """

    gene: str
    share: float
    direction: str | None
    network: float
    sums: float


@dataclass(frozen=True)
class TypeMarkers:
    """The genes that carry a type in a model, strongest first; ``side``: network, sums or both know it."""

    cell_type: str
    side: str
    genes: tuple[GeneWeight, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "cell_type": self.cell_type,
            "side": self.side,
            "genes": [asdict(one) for one in self.genes],
        }


def model_markers(annotator: CellAnnotator, top: int) -> list[TypeMarkers]:
    """Return for each type, in the model's order, its ``top`` genes by `CellAnnotator.gene_weights`."""
    shape = (len(annotator.labels), len(annotator.genes))
    none = np.zeros(shape)
    sides = annotator.gene_weights_by_side()
    network, sums = sides.get(NETWORK, none), sides.get(SUMS, none)
    return [
        _type_markers(cell_type, annotator.genes, (network[row], sums[row]), top)
        for row, cell_type in enumerate(annotator.labels)
    ]


def write_markers(path: Path, markers: Sequence[TypeMarkers]) -> None:
    """Write a CSV file with a line for each type and gene, atomically; raises `DataError` on failure."""
    rows = (
        (one.cell_type, one.side, rank, gene.gene, f"{gene.share:.6f}", gene.direction or "")
        + (f"{gene.network:.6f}", f"{gene.sums:.6f}")
        for one in markers
        for rank, gene in enumerate(one.genes, start=1)
    )
    _write_rows(path, _WEIGHT_COLUMNS, rows)


def _type_markers(
    cell_type: str, genes: Sequence[str], sides: tuple[np.ndarray, np.ndarray], top: int
) -> TypeMarkers:
    network, signed = sides
    by_network, by_sums = bool(network.any()), bool(signed.any())
    side = BOTH if by_network and by_sums else SUMS if by_sums else NETWORK
    sums = np.abs(signed)
    whole = network + sums
    parts = np.stack([whole, network, sums]) / max(float(whole.sum()), np.finfo(float).tiny)
    found = []
    for i in _strongest(whole, top):
        share, own, added = (round(float(value), 6) for value in parts[:, i])
        direction = ("higher" if signed[i] > 0 else "lower") if signed[i] else None
        found.append(GeneWeight(genes[i], share, direction, own, added))
    return TypeMarkers(cell_type, side, tuple(found))


# Differential expression between classes of cells, from sums over blocks: mean, variance, share of cells.

_FEWEST = 3
"""Fewest cells of a class that others are compared with."""


@dataclass(frozen=True)
class TopGene:
    """A gene that is higher in a class of cells than in others.

    Attributes
    ----------
    gene : str
    score : float
        See `ExpressionSums.top`.
    change : float
        Difference of mean log2(1 + counts per 10,000) from the cells of known types; NaN without any.
    expressed, expressed_known : float
        Share of cells that express it: of the class, and of known types.
    """

    gene: str
    score: float
    change: float
    expressed: float
    expressed_known: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON document, rounded; NaN becomes null."""
        return {
            name: (None if np.isnan(value) else round(value, 4)) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, eq=False)
class ExpressionSums:
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
        """Return the genes that are higher in a set of classes than in each of several others, best first.

        A gene's score against others is the difference of mean expression over (its standard error + the
        median standard error of all genes that the cells express): the latter keeps genes that vary by
        nothing, and those of a cell or two, from coming first (SAM, Tusher et al. 2001). Its score is the
        least over all others, so it must be higher than in each of them.

        Parameters
        ----------
        one
            Classes that are pooled.
        others
            Sets of classes to compare with; sets of fewer than three cells are left out.
        known
            The class of known types, for ``change`` and ``expressed_known``.
        n
            Most genes to return; only genes with a positive score are.
        """
        count, mean, _ = own = self._of(one)
        scores = [self._score(own, other) for other in map(self._of, others) if other[0] >= _FEWEST]
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


@doing("summing the expression of every gene")
def sum_expression(reading: Reading, classes: np.ndarray, n_classes: int, chunk_cells: int) -> ExpressionSums:
    """Add up the expression of all genes of a query by class of cells, a block of cells at a time.

    Parameters
    ----------
    reading
        Any reading of the query; its panel does not matter.
    classes
        The class of each cell, ``(n_cells,)``; a cell of class -1 is left out.
    n_classes
        Number of classes.
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
        block.eliminate_zeros()  # counts per 10,000 are undefined for a cell without counts
        x = to_expression(block, whole.units.values, totals).astype(np.float64)
        sums += (pick @ x).toarray()
        squares += (pick @ x.power(2)).toarray()
        expressed += (pick @ (x > 0).astype(np.float64)).toarray()
    counts = np.bincount(classes[classes >= 0], minlength=n_classes)
    return ExpressionSums(whole.panel, counts, sums, squares, expressed)
