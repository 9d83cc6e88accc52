"""The task that a stage is trained on, and its artifacts: annotator, bank, probe sets, sums and history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canal.config.params import Config
from canal.continual.bank import (
    BANK,
    PROBE,
    Bank,
    ParentState,
    Probe,
    admit,
    choose_probe,
    extend,
    rank_candidates,
)
from canal.continual.cells import LabelledCells
from canal.continual.combining import ComponentChoice, NetworkOutputs, combine, distances_in_network
from canal.continual.combining import with_rule as with_combined_rule
from canal.continual.exact_learner import ExactLearner, LabelledLevels
from canal.continual.fit import Hooks
from canal.continual.held_out_heads import GeneScores, HeldOutHead, chosen_parts
from canal.continual.novelty_choice import Scored, fit_network_centroids, gene_scores, with_rule
from canal.core.errors import TrainingError
from canal.core.files import write_json
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import fit_temperature
from canal.memory.stage_sums import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model import EXACT
from canal.model.annotator import GENES, LABELS, Annotator
from canal.model.backbone import Backbone
from canal.model.combined import NETWORK_PART, CombinedAnnotator, network_parts
from canal.model.storage import ONTOLOGY


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained network: the annotator (no novelty rule yet), its teacher, and the history of its epochs."""

    annotator: Annotator
    teacher: Annotator | None
    history: dict[str, Any]


@dataclass(frozen=True, eq=False)
class StageArtifacts:
    """Everything that a learned stage stores, and that later stages are learned on.

    Attributes
    ----------
    annotator : Annotator, CombinedAnnotator or ExactAnnotator
        By its method: published, combined or exact.
    teacher : Annotator or None
    bank : Bank or None
        The exact method keeps none.
    probe : Probe
    history : dict
    sums, batches : StageSums and Sums, or None
        Of all stages, and of the stage's own batches; the published method keeps none.
    """

    annotator: Annotator | CombinedAnnotator | ExactAnnotator
    teacher: Annotator | None
    bank: Bank | None
    probe: Probe
    history: dict[str, Any]
    sums: StageSums | None = None
    batches: Sums | None = None

    @property
    def network_weight(self) -> float | None:
        """The network's weight in the combination with sums; None where one of them answers alone."""
        combined = self.annotator
        return combined.combination.weight if isinstance(combined, CombinedAnnotator) else None

    def save(self, folder: Path) -> None:
        """Write model, teacher (absent in stage 1), bank, probe, sums and history below ``folder``."""
        genes = self.annotator.genes
        if isinstance(self.annotator, ExactAnnotator):
            save_exact(self.annotator, folder / "model")
        else:
            self.annotator.save(folder / "model")
        if self.teacher is not None:
            self.teacher.save(folder / "teacher")
        for cells, name in ((self.bank, BANK), (self.probe, PROBE)):
            if cells is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                cells.save(folder / name, genes)
        if self.sums is not None:
            self.sums.save(folder)
        if self.batches is not None:
            self.batches.save(folder / OWN_BATCHES)
        write_json(folder / "history.json", self.history)


def save_exact(annotator: ExactAnnotator, folder: Path) -> None:
    """Write a model folder of sums alone; labels and genes are in the same files as a network's."""
    annotator.save(folder / EXACT)
    for name, value in ((LABELS, annotator.labels), (GENES, annotator.genes)):
        write_json(folder / name, list(value))
    if annotator.ontology:
        write_json(folder / ONTOLOGY, dict(annotator.ontology))


def finish(
    task: Task,
    learned: Learned,
    parent_state: ParentState,
    config: Config,
    hooks: Hooks | None = None,
    sums: StageSums | None = None,
) -> StageArtifacts:
    """Fit novelty rule and temperature, admit training cells to the bank, validation cells to the probes.

    Threshold and temperature use validation cells and probe sets, the bank training cells alone. ``hooks``
    are those of the training, whose cached features are used. With ``sums``, which include the stage's own,
    the annotator combines network and sums.
    """
    annotator, head = learned.annotator, learned.annotator.network.head
    trained = LabelledCells.concatenate([task.train, task.replay])
    validation = LabelledCells.concatenate([task.validation, task.probe])
    scores = gene_scores(annotator, LabelledCells.concatenate([trained, validation]), hooks)
    of_trained, of_validation = torch.split(scores, [len(trained), len(validation)])
    with torch.no_grad():
        own = head.from_scores(of_trained[: len(task.train)]).representation.numpy()
        logits = head.from_scores(of_validation).logits.numpy()
    ranks = rank_candidates(task.train, own, annotator.prototypes(), annotator.labels)
    sets: tuple[Scored, Scored] = (of_validation, validation.cell_types), (of_trained, trained.cell_types)
    heads: dict[str, HeldOutHead] = {}
    parts = chosen_parts(annotator.labels, *sets, config.novelty, config.seed, heads)
    network = with_rule(annotator, *sets, config.novelty, config.seed, parts)
    network = network.with_temperature(fit_temperature(logits, validation.targets(annotator.labels)))
    network = network.with_ontology(config.sources[config.stages[task.stage].source].ontology)
    return StageArtifacts(
        annotator=network if sums is None else _combined(network, sums, task, config, sets, heads),
        teacher=learned.teacher,
        bank=admit(parent_state.bank, task.train, ranks, annotator.labels, config.bank.capacity),
        probe=extend(parent_state.probe, choose_probe(task.validation, config.probe.max_cells, config.seed)),
        history=learned.history,
        sums=sums,
    )


def _combined(
    network: Annotator,
    sums: StageSums,
    task: Task,
    config: Config,
    sets: tuple[Scored, Scored],
    heads: dict[str, HeldOutHead],
) -> CombinedAnnotator:
    """Return the network and the solved sums as one annotator.

    ``sets`` are gene scores and types of validation and of trained cells, ``heads`` the held-out-type heads
    that were learned before.
    """
    (scores, types), (trained_scores, trained_types) = sets
    head = network.network.head
    validation = LabelledLevels.of_cells(LabelledCells.concatenate([task.validation, task.probe]), sums)
    learner = ExactLearner(sums, config.memory, config.novelty)
    exact = learner.annotator(network.labels, network.genes, validation).with_ontology(network.ontology)
    with torch.no_grad():
        logits = head.from_scores(scores).logits.numpy()
    rule, novelty = network.novelty, np.zeros(len(scores))
    if rule is not None:
        novelty = rule.score(logits, None if network.centroids is None else network.centroids.of(scores))
    outputs = NetworkOutputs(logits, network_parts(network, logits, novelty))
    combined = combine(network, exact, validation, outputs, config.novelty, (NETWORK_PART,))
    if not combined.combination.weight:
        return combined
    checked = scores, np.array(types, dtype=object)
    trained = trained_scores, np.array(trained_types, dtype=object)
    choice = ComponentChoice(
        GeneScores(network.labels, trained, checked, checked),
        learner,
        validation,
        validation,
        config.seed,
        rule.parts if rule else (),
        combined.combination,
    )
    parts = choice.chosen_parts(heads)
    centroids = fit_network_centroids(head, trained_scores, trained_types)
    components = {**outputs.novelty_parts, **distances_in_network(head, centroids, scores)}
    return with_combined_rule(combined, validation, components, config.novelty, parts, centroids)


def backfilled(
    folder: Path,
    stage: str,
    validation: LabelledCells,
    sums: StageSums,
    config: Config,
    labels: tuple[str, ...] = (),
) -> CombinedAnnotator:
    """Return the network of a model folder with solved sums, combined on validation cells and its probe.

    ``labels`` are the network's, by default, and further ones that the sums alone know.

    Where both answer, novelty is the network's own: the cells that its head was trained on are not available,
    so no type can be held out of it.
    """
    network = Annotator.load(folder / "model")
    probe = ParentState.load(folder, network.genes, config).probe.cells
    earlier = probe.take([row for row, name in enumerate(probe.stages) if name != stage])
    cells = LabelledCells.concatenate([validation, earlier])
    levels = LabelledLevels.of_cells(cells, sums)
    learner = ExactLearner(sums, config.memory, config.novelty)
    exact = learner.annotator(labels or network.labels, network.genes, levels)
    prediction = network.predict(cells.expression)
    parts = network_parts(network, prediction.logits, prediction.novelty)
    return combine(
        network,
        exact.with_ontology(network.ontology),
        levels,
        NetworkOutputs(prediction.logits, parts),
        config.novelty,
        (NETWORK_PART,),
    )


def finish_exact(stage: str, task: ExactTask, config: Config) -> StageArtifacts:
    """Return a stage that sums alone have learned: solved, calibrated, with a novelty rule.

    Temperature and threshold are set on validation cells and the probe sets; where no probe is kept
    (``probe.max_cells: 0``), on the newest stage's validation cells alone.
    """
    cells = LabelledCells.concatenate([task.validation, task.parent_state.probe.cells])
    levels = LabelledLevels.of_cells(cells, task.sums)
    learner = ExactLearner(task.sums, config.memory, config.novelty)
    annotator = learner.annotator(task.labels, task.genes, levels)
    ids = config.sources[config.stages[stage].source].ontology
    predicted = levels.logits(annotator).argmax(axis=1)
    right = np.array(task.labels, dtype=object)[predicted] == np.array(levels.cell_types, dtype=object)
    n_own = len(task.validation)
    probe = choose_probe(task.validation, config.probe.max_cells, config.seed)
    history = {
        "method": "exact",
        "epochs": [],
        "n_cells": task.sums.stages[stage].n_cells,
        "validation_accuracy": float(right[:n_own].mean()) if n_own else None,
        "set_on": sorted(set(cells.stages)),
    }
    return StageArtifacts(
        annotator=annotator.with_ontology(ids),
        teacher=None,
        bank=None,
        probe=extend(task.parent_state.probe, probe),
        history=history,
        sums=task.sums,
        batches=task.batches,
    )


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
        The stage's own cells; the validation cells are of types among the labels.
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
                f"{len(self.validation)} of types that it knows: types with few cells only train (or are "
                "drawn for some sets alone, by split.rule: independent); add cells or lower split.min_cells"
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
