"""Group the novel cells of a labelled file: marker genes, nearest known types and batches of each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.clusters import ComputeOptions, Representation, find_groups, represent
from canal.annotation.columns import IS_NOVEL, named
from canal.annotation.labelled import Labelled
from canal.annotation.markers import TopGene, sum_expression
from canal.annotation.naming import Naming
from canal.core.errors import DataError, there_are
from canal.core.progress import by_cells, doing
from canal.io.arrays import listed

if TYPE_CHECKING:
    from canal.annotation.reading import Reading
    from canal.model.load import CellAnnotator

BATCHES = ("batch", "donor", "donor_id", "sample", "sample_id", "patient", "patient_id", "orig.ident")
"""Columns of obs that are tried for batches where no column is named."""

MOST_CELLS = 200_000
"""Most novel cells that are grouped; of more cells, a random sample."""

NEAREST = 3
_LEAST_PROBABILITY = 0.005
_GENES_AT_A_TIME = 500
"""Cells in memory while all genes are read."""


@dataclass(frozen=True)
class GroupingOptions:
    """How novel cells are grouped and described.

    Attributes
    ----------
    batch : str or None
        Column of obs with batches; None: the first of `BATCHES` that exists.
    min_cells : int
        A smaller group is left out of the sheet.
    resolution : float
        Resolution of the groups: higher makes more and smaller groups.
    seed : int
    top : int
        Most genes reported for a group.
    naming : Naming
        The tables of gene names that the file was labelled with.
    compute : ComputeOptions
    key : str or None
        The ``--key-added`` of the labels; None: ``canal``, else the only one that has a record.
    """

    batch: str | None = None
    min_cells: int = 10
    resolution: float = 1.0
    seed: int = 0
    top: int = 10
    naming: Naming = Naming()
    compute: ComputeOptions = ComputeOptions()
    key: str | None = None


@dataclass(frozen=True)
class Group:
    """A group of similar novel cells.

    Attributes
    ----------
    number : int
        From 1, the largest first.
    rows : tuple of int
        Positions of its cells in the file.
    genes : tuple of TopGene
        Higher than in the cells of known types and than in the other novel cells, best first.
    nearest : dict
        Known types by their mean probability over the group, at most three.
    batches : dict
        Number of cells by batch, the largest first; empty where batches are not known.
    """

    number: int
    rows: tuple[int, ...]
    genes: tuple[TopGene, ...]
    nearest: dict[str, float]
    batches: dict[str, int]

    @property
    def purity(self) -> float | None:
        """Share of the cells that come from the largest batch; None where batches are not known."""
        return max(self.batches.values()) / len(self.rows) if self.batches else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document, without the cells."""
        return {
            "group": self.number,
            "n_cells": len(self.rows),
            "top_genes": [gene.to_json() for gene in self.genes],
            "nearest_types": self.nearest,
            "batches": self.batches,
            "purity": self.purity,
        }


@dataclass(frozen=True)
class Novel:
    """The groups of a file's novel cells.

    Attributes
    ----------
    groups : tuple of Group
    n_novel : int
        Novel cells that were grouped.
    left_out : int
        Cells of groups that are too small.
    batch : str or None
        The column of obs that holds the batches.
    warnings : tuple of str
    """

    groups: tuple[Group, ...]
    n_novel: int
    left_out: int
    batch: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document, without the cells."""
        return {
            "n_novel": self.n_novel,
            "left_out": self.left_out,
            "batch": self.batch,
            "groups": [group.to_json() for group in self.groups],
            "warnings": list(self.warnings),
        }


def group_novel(
    annotator: CellAnnotator, labelled: Labelled, options: GroupingOptions, notice: Callable[[str], None]
) -> Novel:
    """Group the novel cells of a labelled file by the model's representation.

    The file is read twice, in blocks: once in the model's genes, for the representation (128 numbers a novel
    cell), once in all genes, for the marker genes of the groups. Cells that express none of the model's
    genes are left out. Too few cells for two groups of ``min_cells`` form one group.

    Parameters
    ----------
    annotator
        The model that labelled the file.
    labelled, options
        The file, and how its novel cells are grouped.
    notice
        Receives progress messages.

    Raises
    ------
    DataError
        If no cell is novel, obs lacks the batch column, or the file cannot be read as it was labelled.
    """
    if not (np.isfinite(options.resolution) and options.resolution >= 0):
        raise DataError(f"--resolution must be a number of at least 0, found {options.resolution}")
    column, columns = options.batch, labelled.file.obs_columns
    if column is not None and column not in columns:
        has = there_are(column, columns, "it has", listed)
        raise DataError(f"{labelled.path}: obs has no column {column!r} (--batch){has}")
    column = column or next((name for name in BATCHES if name in columns), None)
    wanted, warnings = _wanted(labelled, options.seed)
    reading, annotator = labelled.reading(annotator, options.naming)
    cells = represent(annotator, reading, wanted, options.compute, by_cells(notice, what="represented"))
    labelled.check_types(cells.rows, [annotator.labels[i] for i in cells.logits.argmax(axis=1)])
    groups, probabilities = _groups(cells, options), annotator.probabilities(cells.logits)
    sizes = np.bincount(groups)
    kept = np.flatnonzero(sizes >= min(options.min_cells, sizes.max()))
    notice(f"{len(cells.rows):,} novel cells in {len(kept)} groups; computing their marker genes")
    batches = None if column is None else labelled.file.obs_column(column).to_numpy(dtype=object)
    with doing("computing the marker genes of the groups"):
        genes = _top_genes(reading, labelled, cells.rows, groups, kept, options)
    described = tuple(
        Group(
            number,
            tuple(cells.rows[groups == group].tolist()),
            tuple(genes[int(group)]),
            _nearest(probabilities[groups == group], annotator.labels),
            {} if batches is None else _counted(batches[cells.rows[groups == group]]),
        )
        for number, group in enumerate(kept, start=1)
    )
    left_out = int(sizes.sum() - sizes[kept].sum())
    warnings += _batch_warnings(described, batches, column)
    return Novel(described, len(cells.rows), left_out, column, tuple(warnings))


def _wanted(labelled: Labelled, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return which cells are grouped, bool ``(n_cells,)``, and warnings about the choice."""
    wanted = labelled.novel & ~labelled.empty
    n = int(wanted.sum())
    if not n:
        raise DataError(
            f"{labelled.path}: none of its {len(wanted):,} cells is novel ({named(IS_NOVEL, labelled.key)}), "
            "so there is nothing to group"
        )
    if n <= MOST_CELLS:
        return wanted, []
    generator = np.random.default_rng([seed, *b"novel"])
    drawn = generator.choice(np.flatnonzero(wanted), size=MOST_CELLS, replace=False)
    wanted = np.zeros(len(wanted), dtype=bool)
    wanted[drawn] = True
    return wanted, [f"{n:,} cells are novel: a random sample of {MOST_CELLS:,} of them is grouped"]


def _groups(cells: Representation, options: GroupingOptions) -> np.ndarray:
    if len(cells.rows) < 2 * options.min_cells:
        return np.zeros(len(cells.rows), dtype=np.int64)
    return find_groups(cells.manifold, options.resolution, options.seed)


def _top_genes(
    reading: Reading,
    labelled: Labelled,
    rows: np.ndarray,
    groups: np.ndarray,
    kept: np.ndarray,
    options: GroupingOptions,
) -> dict[int, list[TopGene]]:
    """Return the top genes of each group that is kept; classes are the groups, then the known types."""
    known = int(groups.max()) + 1
    classes = np.full(len(labelled.novel), -1, dtype=np.int64)
    classes[~labelled.novel & ~labelled.empty] = known
    classes[rows] = groups
    size = min(options.compute.chunk_cells, _GENES_AT_A_TIME)
    sums = sum_expression(reading, classes, known + 1, size)
    rest = {group: [other for other in range(known) if other != group] for group in kept.tolist()}
    return {group: sums.top([group], [[known], others], known, options.top) for group, others in rest.items()}


def _nearest(probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    mean = probabilities.mean(axis=0)
    best = np.argsort(-mean, kind="stable")[:NEAREST]
    return {labels[i]: round(float(mean[i]), 4) for i in best if mean[i] >= _LEAST_PROBABILITY}


def _counted(values: np.ndarray) -> dict[str, int]:
    return dict(sorted(Counter(values.tolist()).items(), key=lambda item: (-item[1], item[0])))


def _batch_warnings(groups: Sequence[Group], batches: np.ndarray | None, column: str | None) -> list[str]:
    """Return warnings about batches: a group from one batch alone may be a batch effect, not a type."""
    if batches is None:
        return [
            "obs has no column of batches with a usual name: name it with --batch COLUMN, to see whether a "
            "group comes from one batch alone"
        ]
    if len(set(batches.tolist())) < 2:
        return [f"all cells are of one batch ({column}): a new type cannot be told from a batch effect"]
    single = [str(group.number) for group in groups if len(group.batches) == 1]
    if not single:
        return []
    which = f"group {single[0]} comes" if len(single) == 1 else f"groups {', '.join(single)} each come"
    return [f"{which} from one batch alone ({column}): look for a technical cause before naming it a type"]
