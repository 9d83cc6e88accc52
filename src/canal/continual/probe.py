"""The probe sets: a few validation cells of every stage, to watch forgetting; never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from canal.config.sections import Exclusion
from canal.continual.cells import LabelledCells
from canal.continual.stored_cells import StoredCells, load_cells, save_cells, without_excluded
from canal.core.errors import TrainingError
from canal.data.split import largest_remainder


@dataclass(frozen=True, eq=False)
class Probe:
    """Probe cells of all stages so far.

    Attributes
    ----------
    cells : LabelledCells
        In the order of the stages, oldest first.
    """

    cells: LabelledCells

    @classmethod
    def empty(cls, n_genes: int) -> Probe:
        """Return a probe without cells: what the first stage starts from."""
        return cls(LabelledCells.empty(n_genes))

    def __len__(self) -> int:
        return len(self.cells)

    def without_excluded(self, exclusions: Mapping[str, Exclusion]) -> Probe:
        """Return the probe without excluded cells and batches."""
        return Probe(without_excluded(self.cells, exclusions))

    def widened(self, n_genes: int) -> Probe:
        """Return the probe over ``n_genes`` genes; see `LabelledCells.widened`."""
        return Probe(self.cells.widened(n_genes))

    def save(self, path: Path, genes: Sequence[str]) -> None:
        """Write the probe as h5ad; ``genes`` are the panel."""
        save_cells(path, StoredCells(self.cells, tuple(genes), None, self.cells.stage_names))

    @classmethod
    def load(cls, path: Path, genes: Sequence[str]) -> Probe:
        """Read what `save` wrote; raises `ModelError` if it is damaged or of another panel than ``genes``."""
        return cls(load_cells(path, genes, ranked=False).cells)


def extend(probe: Probe, new: LabelledCells) -> Probe:
    """Return ``probe`` with the cells that `choose_probe` took from a new stage.

    Raises
    ------
    TrainingError
        If the probe already holds cells of that stage, or one of these cells.
    """
    if again := sorted(set(new.stages) & set(probe.cells.stages)):
        raise TrainingError(f"the probe already holds cells of {', '.join(again)}: a stage is added once")
    return Probe(LabelledCells.concatenate([probe.cells, new]))


def choose_probe(validation: LabelledCells, max_cells: int, seed: int) -> LabelledCells:
    """Return at most ``max_cells`` validation cells, types in proportion, sorted by cell id.

    Which cells are taken depends on the seed and on their ids alone, not on the order of the rows. As long as
    there is room, every type has a cell: accuracy on a type that is not watched could fall unseen.
    """
    types = np.array(validation.cell_types, dtype=object)
    ids = validation.cell_ids
    chosen: list[int] = []
    for name, quota in _quotas(validation, max_cells).items():
        rows = sorted(np.flatnonzero(types == name).tolist(), key=lambda row: _lot(ids[row], seed))
        chosen += rows[:quota]
    return validation.take(sorted(chosen, key=lambda row: ids[row]))


def _quotas(cells: LabelledCells, max_cells: int) -> dict[str, int]:
    names = cells.types
    counts = np.array([cells.cell_types.count(name) for name in names], dtype=np.int64)
    total = min(max_cells, len(cells))
    first = np.zeros(len(names), dtype=np.int64)
    if total >= len(names):
        first += 1
    # What is left after one cell a type goes out in proportion to what is left of the types.
    rest = largest_remainder(total - int(first.sum()), (counts - first).tolist())
    return dict(zip(names, (first + rest).tolist(), strict=True))


def _lot(cell_id: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{cell_id}".encode(), digest_size=16).digest()
