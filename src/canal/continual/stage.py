"""What a stage is learned from, and what it leaves behind: annotator, teacher, bank, probe sets, history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canal.config.params import Config
from canal.continual.bank import Bank, Probe, admit, choose_probe, extend, rank_candidates
from canal.continual.cells import LabelledCells
from canal.continual.combining import LeavingOut, apart_in_network, combine
from canal.continual.combining import with_rule as with_combined_rule
from canal.continual.fit import Hooks
from canal.continual.novelty_choice import Scored, fit_network_places, gene_scores, with_rule
from canal.continual.remembering import Known, solved
from canal.continual.shadow import GeneScores, Shadow, chosen_parts
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
from canal.model.places import Apart
from canal.model.storage import ONTOLOGY

BANK = "bank/bank.h5ad"
PROBE = "probe/probe.h5ad"


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


@dataclass(frozen=True, eq=False)
class Past:
    """What a parent stage hands on: its bank and its probe sets, without excluded cells."""

    bank: Bank
    probe: Probe

    @classmethod
    def none(cls, n_genes: int) -> Past:
        """Return the past of a first stage."""
        return cls(Bank.empty(n_genes), Probe.empty(n_genes))

    @classmethod
    def load(cls, folder: Path, genes: tuple[str, ...], config: Config) -> Past:
        """Read the past from a parent's model folder; one of the exact method keeps no bank."""
        excluded = {name: source.exclude for name, source in config.sources.items()}
        kept = (folder / BANK).is_file()
        bank = Bank.load(folder / BANK, genes).without_excluded(excluded) if kept else Bank.empty(len(genes))
        return cls(bank, Probe.load(folder / PROBE, genes).without_excluded(excluded))

    def widened(self, n_genes: int) -> Past:
        """Return the past of a stage whose panel grows to ``n_genes``: what was not stored counts as zero."""
        return Past(self.bank.widened(n_genes), self.probe.widened(n_genes))


@dataclass(frozen=True, eq=False)
class Finished:
    """A stage that can be stored, and learned on.

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
        """The network's weight in what network and sums answer together; None where one of them answers."""
        whole = self.annotator
        return whole.combination.weight if isinstance(whole, CombinedAnnotator) else None

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
    """Write a model folder of sums alone: labels and genes stand where those of a network do."""
    annotator.save(folder / EXACT)
    for name, value in ((LABELS, annotator.labels), (GENES, annotator.genes)):
        write_json(folder / name, list(value))
    if annotator.ontology:
        write_json(folder / ONTOLOGY, dict(annotator.ontology))


def finish(
    lesson: Lesson,
    learned: Learned,
    past: Past,
    config: Config,
    hooks: Hooks | None = None,
    sums: StageSums | None = None,
) -> Finished:
    """Fit novelty rule and temperature, admit training cells to the bank, validation cells to the probes.

    Threshold and temperature see validation cells and probes, the bank training cells alone. ``hooks`` are
    the training's: what it has kept of its cells is not computed again. With ``sums``, the stage's own
    among them, network and sums answer together.
    """
    annotator = learned.annotator
    trained = LabelledCells.concatenate([lesson.train, lesson.replay])
    known = LabelledCells.concatenate([lesson.validation, lesson.probe])
    scores = gene_scores(annotator, LabelledCells.concatenate([trained, known]), hooks)
    of_trained, of_known = torch.split(scores, [len(trained), len(known)])
    with torch.no_grad():
        own = annotator.network.head.from_scores(of_trained[: len(lesson.train)]).representation.numpy()
        logits = annotator.network.head.from_scores(of_known).logits.numpy()
    ranks = rank_candidates(lesson.train, own, annotator.prototypes(), annotator.labels)
    seen, untrained = (of_trained, trained.cell_types), (of_known, known.cell_types)
    shadows: dict[str, Shadow] = {}
    parts = chosen_parts(annotator.labels, untrained, seen, config.novelty, config.seed, shadows)
    judge = with_rule(annotator, untrained, seen, config.novelty, config.seed, parts)
    temperature = fit_temperature(logits, known.targets(annotator.labels))
    ids = config.sources[config.stages[lesson.stage].source].ontology
    network = judge.with_temperature(temperature).with_ontology(ids)
    return Finished(
        annotator=network
        if sums is None
        else _combined(network, sums, lesson, config, logits, seen, untrained, shadows),
        teacher=learned.teacher,
        bank=admit(past.bank, lesson.train, ranks, annotator.labels, config.bank.capacity),
        probe=extend(past.probe, choose_probe(lesson.validation, config.probe.max_cells, config.seed)),
        history=learned.history,
        sums=sums,
    )


def _combined(
    network: Annotator,
    sums: StageSums,
    lesson: Lesson,
    config: Config,
    logits: np.ndarray,
    seen: Scored,
    untrained: Scored,
    shadows: dict[str, Shadow],
) -> CombinedAnnotator:
    """Return the network and the solved sums as one annotator; ``logits`` are of the untrained cells."""
    cells = LabelledCells.concatenate([lesson.validation, lesson.probe])
    known = Known.of_cells(cells, sums)
    exact = solved(sums, network.labels, network.genes, known, config.memory, config.novelty)
    exact = exact.with_ontology(network.ontology)
    rule = network.novelty
    score = np.zeros(len(cells)) if rule is None else rule.score(logits, _apart(network, untrained))
    apart = network_parts(network, logits, score)
    plain = combine(network, exact, known, logits, apart, config.novelty, (NETWORK_PART,))
    if not plain.combination.weight:
        return plain
    parts = [(scores, np.array(types, dtype=object)) for scores, types in (seen, untrained, untrained)]
    leaving = LeavingOut(
        GeneScores(network.labels, *parts),
        sums,
        known,
        known,
        config.memory,
        config.novelty,
        config.seed,
        rule.parts if rule else (),
        plain.combination,
    )
    parts_of_both = leaving.chosen_parts(shadows)
    head = network.network.head
    places = fit_network_places(head, *seen)
    apart |= apart_in_network(head, places, untrained[0])
    return with_combined_rule(plain, known, apart, config.novelty, parts_of_both, places)


def backfilled(
    folder: Path, stage: str, validation: LabelledCells, sums: StageSums, config: Config
) -> CombinedAnnotator:
    """Return the network of a model folder with solved sums, combined on validation cells and its probe.

    Where both answer, novelty is the network's own: what its head was trained on is not at hand, so no type
    can be left out of it.
    """
    network = Annotator.load(folder / "model")
    past = Past.load(folder, network.genes, config).probe.cells
    earlier = past.take([row for row, name in enumerate(past.stages) if name != stage])
    cells = LabelledCells.concatenate([validation, earlier])
    known = Known.of_cells(cells, sums)
    exact = solved(sums, network.labels, network.genes, known, config.memory, config.novelty)
    said = network.predict(cells.expression)
    return combine(
        network,
        exact.with_ontology(network.ontology),
        known,
        said.logits,
        network_parts(network, said.logits, said.novelty),
        config.novelty,
        (NETWORK_PART,),
    )


def _apart(network: Annotator, cells: Scored) -> Apart | None:
    return None if network.places is None else network.places.of(cells[0])


def finish_exact(
    stage: str,
    labels: tuple[str, ...],
    genes: tuple[str, ...],
    validation: LabelledCells,
    past: Past,
    sums: StageSums,
    config: Config,
) -> Finished:
    """Return a stage that sums alone have learned: solved, calibrated, with a novelty rule.

    Temperature and threshold are set on validation cells and the probe; where no probe is kept
    (``probe.max_cells: 0``), on the newest stage's validation cells alone.
    """
    cells = LabelledCells.concatenate([validation, past.probe.cells])
    known = Known.of_cells(cells, sums)
    annotator = solved(sums, labels, genes, known, config.memory, config.novelty)
    ids = config.sources[config.stages[stage].source].ontology
    said = known.logits(annotator).argmax(axis=1)
    right = np.array(labels, dtype=object)[said] == np.array(known.cell_types, dtype=object)
    history = {
        "method": "exact",
        "epochs": [],
        "n_cells": sums.stages[stage].n_cells,
        "validation_accuracy": float(right[: len(validation)].mean()) if len(validation) else None,
        "set_on": sorted(set(cells.stages)),
    }
    return Finished(
        annotator=annotator.with_ontology(ids),
        teacher=None,
        bank=None,
        probe=extend(past.probe, choose_probe(validation, config.probe.max_cells, config.seed)),
        history=history,
        sums=sums,
    )
