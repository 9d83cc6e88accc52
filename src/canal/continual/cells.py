"""Labelled cells in memory and in h5ad files, as stages train on, replay and evaluate them.

A file's bytes depend on its content alone, and are checked when read. Cells that params.yaml excludes are
removed from the banks and probe sets of earlier stages here.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.core.digests import canonical_json
from canal.core.errors import CanalError, ModelError, TrainingError
from canal.core.files import new_file
from canal.data.expression import tokenize
from canal.io.h5ad import H5adFile, open_h5ad
from canal.io.writer import H5adWriter

if TYPE_CHECKING:
    import pandas as pd

    from canal.config.stage_sections import Exclusion


FORMAT = 1
RANK = "rank"
_FIELDS = {
    "cell_id": "cell_ids",
    "cell_type": "cell_types",
    "stage": "stages",
    "source": "sources",
    "batch": "batches",
}
_NOTE = "canal"
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Cells with their types, and where they come from.

    Attributes
    ----------
    cell_ids, cell_types, stages, sources, batches : tuple of str
        One entry a cell; ``stages`` names the stage that the cell belongs to, ``sources`` its data source,
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
        """Return the cells of ``stage``."""
        return self.take([i for i, name in enumerate(self.stages) if name == stage])

    def of_types(self, cell_types: Collection[str]) -> LabelledCells:
        """Return the cells of these types."""
        return self.take([i for i, name in enumerate(self.cell_types) if name in cell_types])

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


# In files.


@dataclass(frozen=True, eq=False)
class StoredCells:
    """Cells as they are stored in a file.

    Attributes
    ----------
    cells : LabelledCells
    genes : tuple of str
        The panel: names of the columns of ``cells.expression``.
    ranks : numpy.ndarray or None
        int64 ``(n_cells,)``, where the cells are ranked.
    stages : tuple of str
        Stages, oldest first; at least those that occur in ``cells``.
    """

    cells: LabelledCells
    genes: tuple[str, ...]
    ranks: np.ndarray | None
    stages: tuple[str, ...]


def save_cells(path: Path, stored: StoredCells) -> None:
    """Write ``stored`` to ``path``, whole or not at all; equal content gives equal bytes.

    Raises
    ------
    ModelError
        If there is not one gene name a column.
    """
    if len(stored.genes) != stored.cells.n_genes:
        raise ModelError(
            f"{path.name} needs one gene name a column, found {len(stored.genes)} names for "
            f"{stored.cells.n_genes} columns"
        )
    expression = csr_matrix(stored.cells.expression)
    note = {"format": FORMAT, "stages": list(stored.stages), "digest": _digest(stored)}
    obs, var = _tables(stored)
    with new_file(path) as temporary, H5adWriter(temporary, len(stored.genes)) as writer:
        writer.append(expression)
        writer.finish(obs, var, {_NOTE: canonical_json(note)})


def load_cells(path: Path, genes: Sequence[str], ranked: bool) -> StoredCells:
    """Read what `save_cells` wrote.

    Parameters
    ----------
    path
        The file.
    genes
        The panel that the cells must have.
    ranked
        Whether the cells must have ranks.

    Raises
    ------
    ModelError
        If the file is missing, cut short or altered, of an unknown format, or of another panel.
    """
    try:
        with open_h5ad(path) as file:
            note = json.loads(file.note(_NOTE))
            if note.get("format") != FORMAT:
                raise ModelError(
                    f"{path} is of format {note.get('format')!r}, this canal reads {FORMAT}: "
                    "use the canal that wrote it"
                )
            stored = _read(file, note, ranked)
    except (CanalError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is damaged: {error}; restore it from the registry or DVC") from error
    if note.get("digest") != _digest(stored):
        raise ModelError(f"{path} is not what was written: its content does not match its digest; restore it")
    if stored.genes != tuple(genes):
        missing = [gene for gene in genes if gene not in set(stored.genes)]
        detail = f"it lacks {', '.join(missing[:_SHOWN])}" if missing else "their order differs"
        raise ModelError(
            f"{path} holds cells of another panel: expected {len(genes)} genes, found {len(stored.genes)}, "
            f"{detail}; a lineage keeps one panel"
        )
    return stored


def _tables(stored: StoredCells) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return obs and var; strings stay strings, so that no set of categories is stored."""
    import pandas as pd

    cells = stored.cells
    columns: dict[str, Any] = {
        column: np.array(getattr(cells, field), dtype=object) for column, field in _FIELDS.items()
    }
    if stored.ranks is not None:
        columns[RANK] = np.asarray(stored.ranks, dtype=np.int64)
    obs = pd.DataFrame(columns, index=pd.Index(np.array(cells.cell_ids, dtype=object)))
    return obs, pd.DataFrame(index=pd.Index(np.array(stored.genes, dtype=object)))


def _read(file: H5adFile, note: Mapping[str, Any], ranked: bool) -> StoredCells:
    matrix, genes = file.matrix("X"), tuple(file.var_names("X"))
    expression = matrix.rows(0, file.n_cells).toarray() if file.n_cells else np.zeros((0, len(genes)))
    fields = {field: tuple(file.obs_column(column)) for column, field in _FIELDS.items()}
    cells = LabelledCells(expression=expression.astype(np.float32), **fields)
    ranks = np.array([int(rank) for rank in file.obs_column(RANK)], dtype=np.int64) if ranked else None
    return StoredCells(cells, genes, ranks, tuple(note["stages"]))


def _digest(stored: StoredCells) -> str:
    """Return the SHA-256 of everything that is stored: HDF5 checks most of its bytes with nothing."""
    ranks = None if stored.ranks is None else stored.ranks.tolist()
    fields = [getattr(stored.cells, field) for field in _FIELDS.values()]
    digest = hashlib.sha256(canonical_json([fields, ranks, stored.genes, stored.stages]).encode())
    digest.update(np.ascontiguousarray(stored.cells.expression, dtype="<f4").tobytes())
    return digest.hexdigest()


def kept_cells(cells: LabelledCells, exclusions: Mapping[str, Exclusion]) -> np.ndarray:
    """Return for each cell whether it is kept, bool ``(n_cells,)``.

    Parameters
    ----------
    cells
        Their ids are ``<source>:<obs name>``.
    exclusions
        By source: obs names of cells, and batches, that are excluded. A source without an entry keeps all.
    """
    names = {source: {f"{source}:{name}" for name in one.cells} for source, one in exclusions.items()}
    batches = {source: set(one.batches) for source, one in exclusions.items()}
    none: set[str] = set()
    excluded = [
        cell in names.get(source, none) or batch in batches.get(source, none)
        for cell, source, batch in zip(cells.cell_ids, cells.sources, cells.batches, strict=True)
    ]
    return ~np.array(excluded, dtype=bool)


def without_excluded(cells: LabelledCells, exclusions: Mapping[str, Exclusion]) -> LabelledCells:
    """Return the cells of `kept_cells`, in their order."""
    return cells.take(np.flatnonzero(kept_cells(cells, exclusions)))
