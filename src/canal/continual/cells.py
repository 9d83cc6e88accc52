"""Labelled cells as arrays: what a stage learns from, replays and is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from canal.core.errors import TrainingError
from canal.data.expression import tokenize


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Cells with their types, and where they come from.

    Attributes
    ----------
    cell_ids, cell_types, stages, sources, batches : tuple of str
        One entry a cell; ``stages`` names the stage that brought the cell, ``sources`` its data source,
        ``batches`` its batch within that source.
    expression : numpy.ndarray
        float32 log2(1 + counts per 10,000), ``(n_cells, n_genes)``, genes in panel order.

    Raises
    ------
    TrainingError
        If the lengths differ, the expression is no float32 matrix, or a cell id occurs twice.
    """

    cell_ids: tuple[str, ...]
    expression: np.ndarray
    cell_types: tuple[str, ...]
    stages: tuple[str, ...]
    sources: tuple[str, ...]
    batches: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {
            "cell_ids": len(self.cell_ids),
            "expression": len(self.expression),
            "cell_types": len(self.cell_types),
            "stages": len(self.stages),
            "sources": len(self.sources),
            "batches": len(self.batches),
        }
        if len(set(lengths.values())) > 1:
            raise TrainingError(f"labelled cells need one entry a cell in every field, found {lengths}")
        if self.expression.ndim != 2 or self.expression.dtype != np.float32:
            raise TrainingError(
                "expression must be a float32 matrix (n_cells, n_genes), "
                f"found {self.expression.dtype} of shape {self.expression.shape}"
            )
        if len(set(self.cell_ids)) < len(self.cell_ids):
            twice = [name for name, n in Counter(self.cell_ids).items() if n > 1]
            raise TrainingError(f"{len(twice)} cell id(s) occur more than once, such as {twice[:5]}")

    @classmethod
    def empty(cls, n_genes: int) -> LabelledCells:
        """Return no cells of ``n_genes`` genes."""
        return cls((), np.zeros((0, n_genes), dtype=np.float32), (), (), (), ())

    def __len__(self) -> int:
        return len(self.cell_ids)

    @property
    def n_genes(self) -> int:
        """Number of panel genes."""
        return int(self.expression.shape[1])

    @property
    def types(self) -> tuple[str, ...]:
        """The cell types that occur, sorted."""
        return tuple(sorted(set(self.cell_types)))

    def tokens(self) -> np.ndarray:
        """Return the tokens of the expression, uint8 ``(n_cells, n_genes)``."""
        return tokenize(self.expression)

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        """Return each cell's position in ``labels``, int64 ``(n_cells,)``.

        Raises
        ------
        TrainingError
            If a cell's type is not in ``labels``.
        """
        position = {label: i for i, label in enumerate(labels)}
        if unknown := sorted(set(self.cell_types) - position.keys()):
            raise TrainingError(
                f"{len(unknown)} cell type(s) are not among the {len(position)} labels, such as {unknown[:5]}"
            )
        return np.array([position[name] for name in self.cell_types], dtype=np.int64)

    def take(self, indices: Sequence[int] | np.ndarray) -> LabelledCells:
        """Return the cells at ``indices`` (integers), in that order."""
        rows = np.asarray(indices, dtype=np.int64)

        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in rows)

        return LabelledCells(
            pick(self.cell_ids),
            self.expression[rows],
            pick(self.cell_types),
            pick(self.stages),
            pick(self.sources),
            pick(self.batches),
        )

    def widened(self, n_genes: int) -> LabelledCells:
        """Return the cells with ``n_genes`` genes: those behind their own count as not expressed.

        Raises
        ------
        TrainingError
            If they have more genes than that.
        """
        more = n_genes - self.n_genes
        if more < 0:
            raise TrainingError(f"cells of {self.n_genes} genes cannot have {n_genes}: a panel only grows")
        return replace(self, expression=np.pad(self.expression, ((0, 0), (0, more)))) if more else self

    def narrowed(self, n_genes: int) -> LabelledCells:
        """Return the cells with their first ``n_genes`` genes: what a model reads whose panel ends there."""
        return replace(self, expression=np.ascontiguousarray(self.expression[:, :n_genes]))

    def of_stage(self, stage: str) -> LabelledCells:
        """Return the cells that ``stage`` brought."""
        return self.take([i for i, name in enumerate(self.stages) if name == stage])

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages that occur, in the order of their first cell."""
        return tuple(dict.fromkeys(self.stages))

    @staticmethod
    def concatenate(parts: Sequence[LabelledCells]) -> LabelledCells:
        """Return all cells of ``parts`` (at least one), in order; panels must be of one length."""
        widths = {part.n_genes for part in parts}
        if len(widths) != 1:
            raise TrainingError(f"cells to join need one panel, found panels of {sorted(widths)} genes")
        return LabelledCells(
            tuple(name for part in parts for name in part.cell_ids),
            np.concatenate([part.expression for part in parts]),
            tuple(name for part in parts for name in part.cell_types),
            tuple(name for part in parts for name in part.stages),
            tuple(name for part in parts for name in part.sources),
            tuple(name for part in parts for name in part.batches),
        )
