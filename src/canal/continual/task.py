"""What a stage is learned from, and what comes out of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from canal.continual.cells import LabelledCells
from canal.continual.probe import choose_probe
from canal.core.errors import TrainingError
from canal.model.annotator import Annotator
from canal.model.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Lesson:
    """All that decides what a stage learns, but for the settings.

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
        trained cell would also validate, or the first stage is given a past.
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

    def judges(self, most: int | None) -> dict[str, LabelledCells]:
        """Return the cells that judge an epoch, by stage: earlier ones' probes, own validation cells last.

        Of its own at most ``most`` are drawn, as probes are: types in proportion. None: all of them.
        """
        own = self.validation
        if most is not None and most < len(own):
            own = choose_probe(own, most, self.seed)
        return {**{name: self.probe.of_stage(name) for name in self.probe.stage_names}, self.stage: own}


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned stage: the annotator (no novelty rule yet), what it was distilled from, and its epochs."""

    annotator: Annotator
    teacher: Annotator | None
    history: dict[str, Any]


def _check_panel(lesson: Lesson) -> None:
    parts = {"train": lesson.train, "validation": lesson.validation, "replay": lesson.replay}
    for name, cells in {**parts, "probe": lesson.probe}.items():
        if cells.n_genes != len(lesson.genes):
            raise TrainingError(
                f"stage {lesson.stage}: {name} cells have {cells.n_genes} genes, "
                f"the panel has {len(lesson.genes)}"
            )
    if lesson.teacher is None and (len(lesson.replay) or len(lesson.probe)):
        raise TrainingError(f"stage {lesson.stage} starts from a backbone, so it has no bank and no probe")
    if len(set(lesson.genes)) < len(lesson.genes):
        twice = sorted(name for name, n in Counter(lesson.genes).items() if n > 1)
        raise TrainingError(f"stage {lesson.stage}: genes of the panel occur more than once: {twice[:5]}")
    if lesson.teacher is not None and lesson.genes[: len(lesson.teacher.genes)] != lesson.teacher.genes:
        raise TrainingError(
            f"stage {lesson.stage}: the panel is not the parent's; a lineage keeps one panel, to which a "
            "stage adds genes at the end"
        )
    if lesson.stage in lesson.probe.stages:
        raise TrainingError(f"stage {lesson.stage}: the probe holds cells of this stage")


def _check_labels(lesson: Lesson) -> None:
    if len(set(lesson.labels)) < len(lesson.labels):
        twice = sorted(name for name, n in Counter(lesson.labels).items() if n > 1)
        raise TrainingError(f"stage {lesson.stage}: new labels must be new, found again: {twice[:5]}")
    for cells in (lesson.train, lesson.validation, lesson.replay, lesson.probe):
        cells.targets(lesson.labels)
