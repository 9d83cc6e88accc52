"""Cells that a stage keeps for later stages: an example bank to replay, probe sets to measure forgetting.

The bank holds ranked training cells of every stage, an equal share for each type (bbae047). A probe set
holds a few validation cells of a stage, which are never trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from canal.config.params import Config
from canal.config.stage_sections import Exclusion
from canal.continual.cells import (
    LabelledCells,
    StoredCells,
    kept_cells,
    load_cells,
    save_cells,
    without_excluded,
)
from canal.core.errors import ModelError, TrainingError
from canal.data.split import largest_remainder

BANK = "bank/bank.h5ad"
PROBE = "probe/probe.h5ad"


@dataclass(frozen=True, eq=False)
class Bank:
    """Training cells with their rank, in one order whatever order they came in.

    Rows are sorted by cell type, rank, age of the stage (older first) and cell id; within a type the first
    rows are the ones that stay when the bank is cut.

    Attributes
    ----------
    cells : LabelledCells
    ranks : numpy.ndarray
        int64 ``(n_cells,)``: 1 is the best cell of its type among those of its stage.
    stages : tuple of str
        The stages that occur in ``cells``, oldest first.

    Raises
    ------
    TrainingError
        If the cells do not have one rank from 1 up each, or ``stages`` lacks a stage of the cells.
    """

    cells: LabelledCells
    ranks: np.ndarray
    stages: tuple[str, ...]

    def __post_init__(self) -> None:
        ranks = np.asarray(self.ranks)
        _check(self.cells, ranks, self.stages)
        age = {stage: number for number, stage in enumerate(self.stages)}
        ages = (age[stage] for stage in self.cells.stages)
        keys = list(zip(self.cells.cell_types, ranks.tolist(), ages, self.cells.cell_ids, strict=True))
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        occurring = set(self.cells.stages)
        object.__setattr__(self, "cells", self.cells.take(order))
        object.__setattr__(self, "ranks", ranks[order].astype(np.int64))
        object.__setattr__(self, "stages", tuple(stage for stage in self.stages if stage in occurring))

    @classmethod
    def empty(cls, n_genes: int) -> Bank:
        """Return a bank without cells, for the first stage."""
        return cls(LabelledCells.empty(n_genes), np.zeros(0, dtype=np.int64), ())

    def __len__(self) -> int:
        return len(self.cells)

    def without_excluded(self, exclusions: Mapping[str, Exclusion]) -> Bank:
        """Return the bank without excluded cells and batches; the others keep their ranks."""
        keep = np.flatnonzero(kept_cells(self.cells, exclusions))
        return Bank(self.cells.take(keep), self.ranks[keep], self.stages)

    def widened(self, n_genes: int) -> Bank:
        """Return the bank over ``n_genes`` genes; see `LabelledCells.widened`."""
        return Bank(self.cells.widened(n_genes), self.ranks, self.stages)

    def save(self, path: Path, genes: Sequence[str]) -> None:
        """Write the bank as h5ad; ``genes`` are the panel."""
        save_cells(path, StoredCells(self.cells, tuple(genes), self.ranks, self.stages))

    @classmethod
    def load(cls, path: Path, genes: Sequence[str]) -> Bank:
        """Read what `save` wrote; raises `ModelError` if it is damaged or of another panel than ``genes``."""
        stored = load_cells(path, genes, ranked=True)
        if stored.ranks is None:
            raise ModelError(f"{path} holds no ranks, so it is no bank")
        return cls(stored.cells, stored.ranks, stored.stages)


def rank_candidates(
    cells: LabelledCells, representations: np.ndarray, prototypes: np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """Return each cell's rank within its type, int64 ``(n_cells,)``: 1 has the largest <h, prototype>.

    Ties go to the smaller cell id.

    Parameters
    ----------
    cells
        Candidates.
    representations
        h of each, ``(n_cells, 64)``.
    prototypes
        One a label, ``(n_types, 64)``.
    labels
        Cell types in the order of the prototypes.

    Raises
    ------
    TrainingError
        If a cell's type is not among the labels.
    """
    targets = cells.targets(labels)
    represented = representations.astype(np.float64)
    merit = (represented * prototypes.astype(np.float64)[targets]).sum(axis=1)
    order = np.lexsort((np.array(cells.cell_ids), -merit, targets))
    ranks = np.empty(len(cells), dtype=np.int64)
    ranks[order] = _positions_within(targets[order]) + 1
    return ranks


def admit(
    old: Bank, candidates: LabelledCells, ranks: np.ndarray, labels: Sequence[str], capacity: int
) -> Bank:
    """Return the bank after a stage: the best ``capacity // len(labels)`` cells of each type.

    Old cells keep their rank and compete with the candidates for their type's quota. Every stage ranks from
    1, so ties are frequent where two stages have a type; the older stage wins them, whose cells may exist
    nowhere else, then the smaller cell id. A type within its quota keeps all its cells.

    Parameters
    ----------
    old
        The parent's bank, or an empty one.
    candidates
        Training cells of the new stage, and no others.
    ranks
        From `rank_candidates`.
    labels
        All types seen so far, C_t of them.
    capacity
        The most cells the bank may hold.

    Raises
    ------
    TrainingError
        If ``capacity`` is below the number of types, a type is not in ``labels``, or ``old`` already
        holds a candidate.
    """
    together = LabelledCells.concatenate([old.cells, candidates])
    together.targets(labels)  # refuses a type without a label
    stages = (*old.stages, *(stage for stage in sorted(set(candidates.stages)) if stage not in old.stages))
    bank = Bank(together, np.concatenate([old.ranks, np.asarray(ranks)]), stages)
    return _best(bank, _quota(capacity, len(labels), "bank.capacity"))


def cut(bank: Bank, size: int, n_types: int) -> Bank:
    """Return the best ``size // n_types`` cells of each type; none for ``size`` 0.

    Raises
    ------
    TrainingError
        If ``size`` is above 0 but below the number of types.
    """
    if size == 0:
        return Bank.empty(bank.cells.n_genes)
    return _best(bank, _quota(size, n_types, "continual.bank_size"))


def _quota(size: int, n_types: int, key: str) -> int:
    if size < n_types:
        raise TrainingError(
            f"{key} is {size}, which leaves no cell for each of {n_types} types: "
            f"raise it to at least {n_types}"
        )
    return size // n_types


def _best(bank: Bank, quota: int) -> Bank:
    """Return the first ``quota`` cells of each type; counting them is exact whatever the ranks are."""
    types = np.array(bank.cells.cell_types, dtype=object)
    keep = np.flatnonzero(_positions_within(types) < quota)
    return Bank(bank.cells.take(keep), bank.ranks[keep], bank.stages)


def _check(cells: LabelledCells, ranks: np.ndarray, stages: Sequence[str]) -> None:
    whole = not ranks.size or (ranks.dtype.kind in "iu" and ranks.min() >= 1)
    if ranks.shape != (len(cells),) or not whole:
        raise TrainingError(
            f"a bank needs one whole rank from 1 up for each of its {len(cells)} cells, "
            f"found {ranks.dtype} of shape {ranks.shape}, such as {ranks.ravel()[:5].tolist()}"
        )
    if unknown := sorted(set(cells.stages) - set(stages)):
        raise TrainingError(f"the bank's stages {list(stages)} lack {unknown[:5]}, of which it holds cells")


def _positions_within(groups: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2, ... within each run of equal ``groups``, which must be sorted."""
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    lengths = np.diff(np.append(starts, len(groups)))
    positions: np.ndarray = np.arange(len(groups)) - np.repeat(starts, lengths)
    return positions


# The probe sets.


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
        """Return a probe without cells, for the first stage."""
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

    The choice depends on the seed and the cell ids alone, not on the order of the rows. Every type gets a
    cell as long as ``max_cells`` allows: the accuracy on a type without probe cells could fall unnoticed.
    """
    types = np.array(validation.cell_types, dtype=object)
    ids = validation.cell_ids
    chosen: list[int] = []

    def lot(row: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{ids[row]}".encode(), digest_size=16).digest()

    for name, quota in probe_quotas(validation, max_cells).items():
        chosen += sorted(np.flatnonzero(types == name).tolist(), key=lot)[:quota]
    return validation.take(sorted(chosen, key=lambda row: ids[row]))


def probe_quotas(cells: LabelledCells, max_cells: int) -> dict[str, int]:
    """Return by cell type how many cells the probe takes: in proportion, one at least where room allows."""
    names = cells.types
    counts = np.array([cells.cell_types.count(name) for name in names], dtype=np.int64)
    total = min(max_cells, len(cells))
    first = np.zeros(len(names), dtype=np.int64)
    if total >= len(names):
        first += 1
    # After one cell for each type, the rest is divided in proportion to the remaining cells of the types.
    rest = largest_remainder(total - int(first.sum()), (counts - first).tolist())
    return dict(zip(names, (first + rest).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class ParentState:
    """Bank and probe sets that a stage takes over from its parent, without excluded cells."""

    bank: Bank
    probe: Probe

    @classmethod
    def none(cls, n_genes: int) -> ParentState:
        """Return the parent state of a first stage, without cells."""
        return cls(Bank.empty(n_genes), Probe.empty(n_genes))

    @classmethod
    def load(cls, folder: Path, genes: tuple[str, ...], config: Config) -> ParentState:
        """Read the parent state from a model folder; one of the exact method holds no bank."""
        excluded = {name: source.exclude for name, source in config.sources.items()}
        has_bank = (folder / BANK).is_file()
        bank = Bank.load(folder / BANK, genes) if has_bank else Bank.empty(len(genes))
        probe = Probe.load(folder / PROBE, genes)
        return cls(bank.without_excluded(excluded), probe.without_excluded(excluded))

    def widened(self, n_genes: int) -> ParentState:
        """Return the parent state for a panel of ``n_genes``: genes that were not stored count as zero."""
        return ParentState(self.bank.widened(n_genes), self.probe.widened(n_genes))
