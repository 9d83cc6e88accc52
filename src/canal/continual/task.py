"""The task that a stage is trained on: cells, labels, genes and the state taken over from its parent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from canal.config.params import Config
from canal.continual.bank import BANK, PROBE, Bank, Probe, choose_probe
from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Sums
from canal.model.annotator import Annotator
from canal.model.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that decides the result of a training beside its settings.

    Attributes
    ----------
    stage : str
    parent : Backbone or Annotator
        The backbone for stage 1; else the parent stage's annotator, which becomes the teacher.
    genes : tuple of str
        The panel; where the parent is an annotator, its genes and then those that the stage adds.
    new_labels : tuple of str
        Types to append to the parent's labels, in this order.
    train, validation : LabelledCells
        The stage's own cells.
    replay : LabelledCells
        Old cells to train on again: the parent's bank, already cut; none in stage 1.
    probe : LabelledCells
        Validation cells of earlier stages, named by their ``stages``; never trained on.
    seed : int

    Raises
    ------
    TrainingError
        If there is nothing to train on or to validate with, a panel does not fit, a type has no label, a
        trained cell would also validate, or the first stage is given a bank or a probe set.
    """

    stage: str
    parent: Backbone | Annotator
    genes: tuple[str, ...]
    new_labels: tuple[str, ...]
    train: LabelledCells
    validation: LabelledCells
    replay: LabelledCells
    probe: LabelledCells
    seed: int

    def __post_init__(self) -> None:
        if not len(self.train) or not len(self.validation):
            raise TrainingError(
                f"stage {self.stage} needs training and validation cells, found {len(self.train)} and "
                f"{len(self.validation)}: types with few cells only train; add cells or lower split.min_cells"
            )
        _check_panel(self)
        _check_labels(self)
        trained = {*self.train.cell_ids, *self.replay.cell_ids}
        if both := sorted(trained & {*self.validation.cell_ids, *self.probe.cell_ids}):
            raise TrainingError(
                f"stage {self.stage}: {len(both)} cell(s) would both train and validate, such as {both[:5]}"
            )

    @property
    def old_labels(self) -> tuple[str, ...]:
        """The parent's labels; none in stage 1."""
        return self.parent.labels if isinstance(self.parent, Annotator) else ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels the stage ends with."""
        return (*self.old_labels, *self.new_labels)

    @property
    def added_genes(self) -> tuple[str, ...]:
        """The genes that the stage adds to its teacher's panel."""
        return () if self.teacher is None else self.genes[len(self.teacher.genes) :]

    @property
    def teacher(self) -> Annotator | None:
        """The parent, where it is an annotator."""
        return self.parent if isinstance(self.parent, Annotator) else None

    def validation_cells(self, most: int | None) -> dict[str, LabelledCells]:
        """Return the validation cells of an epoch by stage: probe sets of earlier ones, its own cells last.

        Of its own at most ``most`` are drawn, as probes are: types in proportion. None: all of them.
        """
        own = self.validation
        if most is not None and most < len(own):
            own = choose_probe(own, most, self.seed)
        return {**{name: self.probe.of_stage(name) for name in self.probe.stage_names}, self.stage: own}


def _check_panel(task: Task) -> None:
    parts = {"train": task.train, "validation": task.validation, "replay": task.replay}
    for name, cells in {**parts, "probe": task.probe}.items():
        if cells.n_genes != len(task.genes):
            raise TrainingError(
                f"stage {task.stage}: {name} cells have {cells.n_genes} genes, "
                f"the panel has {len(task.genes)}"
            )
    if task.teacher is None and (len(task.replay) or len(task.probe)):
        raise TrainingError(f"stage {task.stage} starts from a backbone, so it has no bank and no probe")
    if len(set(task.genes)) < len(task.genes):
        twice = sorted(name for name, n in Counter(task.genes).items() if n > 1)
        raise TrainingError(f"stage {task.stage}: genes of the panel occur more than once: {twice[:5]}")
    if task.teacher is not None and task.genes[: len(task.teacher.genes)] != task.teacher.genes:
        raise TrainingError(
            f"stage {task.stage}: the panel is not the parent's; a lineage keeps one panel, to which a "
            "stage adds genes at the end"
        )
    if task.stage in task.probe.stages:
        raise TrainingError(f"stage {task.stage}: the probe holds cells of this stage")


def _check_labels(task: Task) -> None:
    if len(set(task.labels)) < len(task.labels):
        twice = sorted(name for name, n in Counter(task.labels).items() if n > 1)
        raise TrainingError(f"stage {task.stage}: new labels must be new, found again: {twice[:5]}")
    for cells in (task.train, task.validation, task.replay, task.probe):
        cells.targets(task.labels)


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


@dataclass(frozen=True, eq=False)
class ExactTask:
    """Everything that a stage is learned from by sums alone.

    Attributes
    ----------
    labels, genes : tuple of str
        Those that the stage ends with.
    validation : LabelledCells
    parent_state : ParentState
        Its probe sets are used; there is no bank.
    sums : StageSums
        Of all stages, this one among them.
    batches : Sums or None
        Of the stage's own cells by batch.
    """

    labels: tuple[str, ...]
    genes: tuple[str, ...]
    validation: LabelledCells
    parent_state: ParentState
    sums: StageSums
    batches: Sums | None
