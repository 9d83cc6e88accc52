"""What a learned stage leaves behind: annotator, teacher, example bank, probe sets, history.

The annotator's novelty is made of what best notices types that a head never learned, each in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canal.config.params import Config
from canal.config.sections import Novelty
from canal.continual.bank import Bank, admit, rank_candidates
from canal.continual.cells import LabelledCells
from canal.continual.combining import LeavingOut, apart_in_network, combine
from canal.continual.combining import with_rule as with_combined_rule
from canal.continual.fit import Hooks
from canal.continual.noticed import best_choice, can_be_left_out
from canal.continual.novelty_choice import with_rule
from canal.continual.probe import Probe, choose_probe, extend
from canal.continual.remembering import Known, solved
from canal.continual.scores import Scored, gene_scores
from canal.continual.shadow import GeneScores, Shadow, ask, learn_without
from canal.continual.task import Learned, Lesson
from canal.continual.temperature import fit_temperature
from canal.continual.type_places import fit_network_places
from canal.core.files import write_json
from canal.memory.answer import ExactAnnotator
from canal.memory.stages import OWN_BATCHES, StageSums
from canal.memory.sums import Sums
from canal.model import EXACT
from canal.model.annotator import GENES, LABELS, Annotator
from canal.model.combined import NETWORK_PART, CombinedAnnotator, network_parts
from canal.model.lanes import in_lanes
from canal.model.ontology import ONTOLOGY
from canal.model.places import PARTS, Apart

BANK = "bank/bank.h5ad"
PROBE = "probe/probe.h5ad"

CHOICES: tuple[tuple[str, ...], ...] = ((), PARTS[:1], PARTS)
"""What may be added to the published score."""

Noticed = Mapping[tuple[str, ...], float]
"""Of each choice, the H-score with which it notices a type."""


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


def chosen_parts(
    labels: Sequence[str],
    known: Scored,
    trained: Scored,
    settings: Novelty,
    seed: int,
    shadows: dict[str, Shadow] | None = None,
) -> tuple[str, ...]:
    """Return what is added to the published score of a version, chosen on cells of known types alone.

    Each type is left out in turn: a head is learned without it on the trained cells, and asked about
    validation cells and probes. Taken is the choice with the highest mean H-score over types, of two alike
    the one of fewer parts. Where no type can be left out, all parts are taken.

    Parameters
    ----------
    labels
        The types, in the order of the logits.
    known, trained
        As in `canal.continual.novelty_choice.with_rule`. No test cell is looked at.
    shadows
        Gains the head that was learned without each type, where somebody needs them further.
    """
    parts = [(scores, np.array(types, dtype=object)) for scores, types in (trained, known, known)]
    return best_parts(list(left_out(GeneScores(tuple(labels), *parts), settings, seed, shadows).values()))


def left_out(
    scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None = None
) -> dict[str, Noticed]:
    """Return for each type that can be left out how well each choice notices it among the known cells."""
    names = [name for name in scores.labels if _can_be_left_out(name, scores)]
    known = replace(scores, test=scores.known)
    one = partial(_noticed, scores=known, settings=settings, seed=seed, shadows=shadows)
    return dict(zip(names, in_lanes(one, names), strict=True))


def best_parts(found: Sequence[Noticed]) -> tuple[str, ...]:
    """Return the choice with the highest mean H-score; all parts where there is nothing to go by."""
    return best_choice(found, CHOICES, PARTS)


def _can_be_left_out(name: str, scores: GeneScores) -> bool:
    (_, learned), (_, known) = scores.train, scores.known
    return can_be_left_out(name, {*learned.tolist(), name}, known.tolist())


def _noticed(
    name: str, scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None
) -> Noticed:
    shadow = learn_without(name, scores, settings.shadow_epochs, seed)
    if shadows is not None:
        shadows[name] = shadow
    places, unknown = shadow.places(), shadow.test[1] == name
    found = {}
    for parts in CHOICES:
        asked = ask(shadow, settings, np.random.default_rng(seed), places.only(parts))
        found[parts] = asked.noticed(unknown).h_score
    return found
