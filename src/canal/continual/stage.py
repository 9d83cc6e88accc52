"""What a learned stage leaves behind: annotator, teacher, example bank, probe sets, history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from canal.config import Config
from canal.continual.bank import Bank, admit, rank_candidates
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.leaving_out import chosen_parts
from canal.continual.lesson import Learned, Lesson
from canal.continual.novelty import with_rule
from canal.continual.probe import Probe, choose_probe, extend
from canal.continual.scores import gene_scores
from canal.continual.temperature import fit_temperature
from canal.files import write_json
from canal.model.annotator import Annotator

BANK = "bank/bank.h5ad"
PROBE = "probe/probe.h5ad"


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
        """Read the past from a parent's model folder."""
        excluded = {name: source.exclude for name, source in config.sources.items()}
        bank = Bank.load(folder / BANK, genes).without_excluded(excluded)
        return cls(bank, Probe.load(folder / PROBE, genes).without_excluded(excluded))

    def widened(self, n_genes: int) -> Past:
        """Return the past of a stage whose panel grows to ``n_genes``: what was not stored counts as zero."""
        return Past(self.bank.widened(n_genes), self.probe.widened(n_genes))


@dataclass(frozen=True, eq=False)
class Finished:
    """A stage that can be stored, and learned on."""

    annotator: Annotator
    teacher: Annotator | None
    bank: Bank
    probe: Probe
    history: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write model, teacher (absent in stage 1), bank, probe and history below ``folder``."""
        genes = self.annotator.genes
        self.annotator.save(folder / "model")
        if self.teacher is not None:
            self.teacher.save(folder / "teacher")
        for name in (BANK, PROBE):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        self.bank.save(folder / BANK, genes)
        self.probe.save(folder / PROBE, genes)
        write_json(folder / "history.json", self.history)


def finish(
    lesson: Lesson, learned: Learned, past: Past, config: Config, hooks: Hooks | None = None
) -> Finished:
    """Fit novelty rule and temperature, admit training cells to the bank, validation cells to the probes.

    Threshold and temperature see validation cells and probes, the bank training cells alone. ``hooks`` are
    the training's: what it has kept of its cells is not computed again.
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
    parts = chosen_parts(annotator.labels, untrained, seen, config.novelty, config.seed)
    judge = with_rule(annotator, untrained, seen, config.novelty, config.seed, parts)
    temperature = fit_temperature(logits, known.targets(annotator.labels))
    ids = config.sources[config.stages[lesson.stage].source].ontology
    return Finished(
        annotator=judge.with_temperature(temperature).with_ontology(ids),
        teacher=learned.teacher,
        bank=admit(past.bank, lesson.train, ranks, annotator.labels, config.bank.capacity),
        probe=extend(past.probe, choose_probe(lesson.validation, config.probe.max_cells, config.seed)),
        history=learned.history,
    )
