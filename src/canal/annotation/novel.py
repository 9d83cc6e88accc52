"""Novel cells in groups: how many, what sets them apart, which known types are near, from which batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.clusters import Machine, Represented, find_groups, represent
from canal.annotation.labelled import Labelled
from canal.annotation.markers import TopGene, tally
from canal.annotation.naming import Naming
from canal.annotation.options import in_tenths
from canal.core.errors import DataError
from canal.io.arrays import listed

if TYPE_CHECKING:
    from canal.annotation.reading import Reading
    from canal.model.load import CellAnnotator

BATCHES = ("batch", "donor", "donor_id", "sample", "sample_id", "patient", "patient_id", "orig.ident")
"""Columns of obs that are taken for batches where none is named."""

MOST_CELLS = 200_000
"""Novel cells that are looked at; of more, a drawn sample."""

NEAREST = 3
_LEAST_PROBABILITY = 0.005
_GENES_AT_A_TIME = 500
"""Cells in memory while all genes are read."""


@dataclass(frozen=True)
class Wishes:
    """How novel cells are grouped, and what is told of a group.

    Attributes
    ----------
    batch : str or None
        Column of obs with batches; None: the first of `BATCHES` that is there.
    min_cells : int
        A smaller group is left out of the sheet.
    resolution : float
        Of Leiden: higher makes more and smaller groups.
    seed : int
    top : int
        Genes told of a group.
    naming : Naming
        The tables of gene names that the file was labelled with.
    machine : Machine
    """

    batch: str | None = None
    min_cells: int = 10
    resolution: float = 1.0
    seed: int = 0
    top: int = 10
    naming: Naming = Naming()
    machine: Machine = Machine()


@dataclass(frozen=True)
class Group:
    """Novel cells that are like each other.

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
        Novel cells that were looked at.
    left_out : int
        Cells of groups that are too small.
    batch : str or None
        The column of obs that batches are from.
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
    annotator: CellAnnotator, labelled: Labelled, wishes: Wishes, notice: Callable[[str], None]
) -> Novel:
    """Group the novel cells of a labelled file by the model's representation of them.

    The file is read twice, in blocks: once in the model's genes, for the representation (128 numbers a novel
    cell), once in all genes, for what sets a group apart. Cells that express none of the model's genes are
    left out. Where there are too few cells for two groups of ``min_cells``, they are one group.

    Parameters
    ----------
    annotator
        The model that labelled the file.
    labelled, wishes
        What is grouped, and how.
    notice
        Is told how far it is.

    Raises
    ------
    DataError
        If no cell is novel, the batches' column is not there, or the file cannot be read as it was labelled.
    """
    if not (np.isfinite(wishes.resolution) and wishes.resolution >= 0):
        raise DataError(f"a resolution is a number of 0 or more, found {wishes.resolution}")
    column = _batch_column(labelled, wishes.batch)
    wanted, warnings = _wanted(labelled, wishes.seed)
    reading = labelled.reading(annotator, wishes.naming)
    found = represent(annotator, reading, wanted, wishes.machine, in_tenths(notice, what="looked at"))
    labelled.check_types(found.rows, [annotator.labels[i] for i in found.logits.argmax(axis=1)])
    groups, probabilities = _groups(found, wishes), annotator.probabilities(found.logits)
    sizes = np.bincount(groups)
    kept = np.flatnonzero(sizes >= min(wishes.min_cells, sizes.max()))
    notice(f"{len(found.rows):,} novel cells in {len(kept)} groups; looking for what sets them apart")
    batches = None if column is None else labelled.file.obs_column(column).to_numpy(dtype=object)
    genes = _top_genes(reading, labelled, found.rows, groups, kept, wishes)
    described = tuple(
        Group(
            number,
            tuple(found.rows[groups == group].tolist()),
            tuple(genes[int(group)]),
            _nearest(probabilities[groups == group], annotator.labels),
            {} if batches is None else _counted(batches[found.rows[groups == group]]),
        )
        for number, group in enumerate(kept, start=1)
    )
    left_out = int(sizes.sum() - sizes[kept].sum())
    said = [*warnings, *_doubts(described, batches, column)]
    return Novel(described, len(found.rows), left_out, column, tuple(said))


def _batch_column(labelled: Labelled, wish: str | None) -> str | None:
    there = labelled.file.obs_columns
    if wish is not None and wish not in there:
        raise DataError(f"{labelled.path}: obs has no column {wish!r} (--batch); it has {listed(there)}")
    return wish or next((name for name in BATCHES if name in there), None)


def _wanted(labelled: Labelled, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return which cells are looked at, bool ``(n_cells,)``, and what is to be said of that."""
    wanted = labelled.novel & ~labelled.empty
    n = int(wanted.sum())
    if not n:
        raise DataError(
            f"{labelled.path}: none of its {len(wanted):,} cells is novel (canal_is_novel): "
            "there is nothing to group"
        )
    if n <= MOST_CELLS:
        return wanted, []
    generator = np.random.default_rng([seed, *b"novel"])
    drawn = generator.choice(np.flatnonzero(wanted), size=MOST_CELLS, replace=False)
    wanted = np.zeros(len(wanted), dtype=bool)
    wanted[drawn] = True
    return wanted, [f"{n:,} cells are novel: a drawn sample of {MOST_CELLS:,} of them is grouped"]


def _groups(found: Represented, wishes: Wishes) -> np.ndarray:
    if len(found.rows) < 2 * wishes.min_cells:
        return np.zeros(len(found.rows), dtype=np.int64)
    return find_groups(found.manifold, wishes.resolution, wishes.seed)


def _top_genes(
    reading: Reading,
    labelled: Labelled,
    rows: np.ndarray,
    groups: np.ndarray,
    kept: np.ndarray,
    wishes: Wishes,
) -> dict[int, list[TopGene]]:
    """Return for each group that is kept its top genes; classes are the groups, and behind them the known."""
    known = int(groups.max()) + 1
    classes = np.full(len(labelled.novel), -1, dtype=np.int64)
    classes[~labelled.novel & ~labelled.empty] = known
    classes[rows] = groups
    size = min(wishes.machine.chunk_cells, _GENES_AT_A_TIME)
    sums = tally(reading, classes, known + 1, size)
    rest = {group: [other for other in range(known) if other != group] for group in kept.tolist()}
    return {group: sums.top([group], [[known], others], known, wishes.top) for group, others in rest.items()}


def _nearest(probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    mean = probabilities.mean(axis=0)
    best = np.argsort(-mean, kind="stable")[:NEAREST]
    return {labels[i]: round(float(mean[i]), 4) for i in best if mean[i] >= _LEAST_PROBABILITY}


def _counted(values: np.ndarray) -> dict[str, int]:
    return dict(sorted(Counter(values.tolist()).items(), key=lambda item: (-item[1], item[0])))


def _doubts(groups: Sequence[Group], batches: np.ndarray | None, column: str | None) -> list[str]:
    """Return warnings: a group from one batch alone may be that batch's noise, not a type."""
    if batches is None:
        return [
            "obs has no column of batches that canal knows: --batch COLUMN tells whether a group is one batch"
        ]
    if len(set(batches.tolist())) < 2:
        return [f"all cells are of one batch ({column}): that does not tell a type from noise"]
    single = [str(group.number) for group in groups if len(group.batches) == 1]
    if not single:
        return []
    which = f"group {single[0]} comes" if len(single) == 1 else f"groups {', '.join(single)} each come"
    return [f"{which} from one batch alone ({column}): look for a technical cause before naming it a type"]
