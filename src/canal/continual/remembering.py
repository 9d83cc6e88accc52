"""A stage in the exact memory: its sums beside those of its ancestors, solved, calibrated, with a rule.

The rule is made of what best notices types that were left out, each in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from canal.config.sections import Memory, Novelty
from canal.continual.cells import LabelledCells
from canal.continual.evaluation import harmonic_mean
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import PARTS, Calibration, PartsRule, SumsRule, fit_calibration
from canal.memory.stage_sums import SolveSettings, StageSums, solve

CHOICES: tuple[tuple[str, ...], ...] = (PARTS[:1], PARTS[1:], PARTS)
"""What the novelty of the sums may be made of."""

MOST_CELLS = 2000
"""Known cells that are asked about where types or stages are left out: more tell nothing more."""

LEAST_CELLS = 5
"""Known cells of a type that is left out, and of all others: fewer tell nothing."""

Parts = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Known:
    """Cells of known types, as the sums see them.

    Attributes
    ----------
    levels : numpy.ndarray
        In the basis, float64 ``(n_cells, n_genes)``.
    cell_types : tuple of str
    missing : tuple of tuple of str
        Of each cell, the genes of the basis that its file lacks.
    stages : tuple of str
        Of each cell, the stage that brought it.
    """

    levels: np.ndarray
    cell_types: tuple[str, ...]
    missing: tuple[tuple[str, ...], ...]
    stages: tuple[str, ...]

    @classmethod
    def of_cells(cls, cells: LabelledCells, sums: StageSums) -> Known:
        """Return labelled cells of stages that the sums know."""
        missing = tuple(sums.missing.get(stage, ()) for stage in cells.stages)
        return cls(sums.basis.levels(cells.expression), cells.cell_types, missing, cells.stages)

    def of(self, types: Iterable[str]) -> Known:
        """Return the cells of these types."""
        wanted = set(types)
        return self._take([row for row, name in enumerate(self.cell_types) if name in wanted])

    def of_stages(self, stages: Iterable[str]) -> Known:
        """Return the cells that these stages brought."""
        wanted = set(stages)
        return self._take([row for row, name in enumerate(self.stages) if name in wanted])

    def some(self) -> Known:
        """Return at most `MOST_CELLS` of the cells, evenly spread over them."""
        n = len(self.levels)
        if n <= MOST_CELLS:
            return self
        return self._take(np.linspace(0, n - 1, MOST_CELLS).astype(np.int64).tolist())

    def _take(self, rows: Sequence[int]) -> Known:
        return Known(
            self.levels[list(rows)],
            tuple(self.cell_types[row] for row in rows),
            tuple(self.missing[row] for row in rows),
            tuple(self.stages[row] for row in rows),
        )

    def logits(self, annotator: ExactAnnotator) -> np.ndarray:
        """Return what the sums say of the cells, each without the genes that its file lacks."""
        result = np.zeros((len(self.levels), len(annotator.labels)))
        for missing, rows in self._groups():
            result[rows] = annotator.without(missing).logits_of(self.levels[rows])
        return result

    def apart(self, annotator: ExactAnnotator) -> dict[str, np.ndarray]:
        """Return the parts of the cells' novelty, likewise."""
        result = {name: np.zeros(len(self.levels)) for name in PARTS}
        for missing, rows in self._groups():
            for name, values in annotator.without(missing).apart(self.levels[rows]).items():
                result[name][rows] = values
        return result

    def _groups(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        kinds = dict.fromkeys(self.missing)
        return [(kind, np.flatnonzero([one == kind for one in self.missing])) for kind in kinds]


def solved(
    sums: StageSums,
    labels: Sequence[str],
    genes: Sequence[str],
    known: Known,
    memory: Memory,
    novelty: Novelty,
) -> ExactAnnotator:
    """Return the annotator that sums make, its temperature and novelty rule set on known cells.

    Parameters
    ----------
    sums
    labels, genes
        Of the lineage, in its order.
    known
        Validation cells of the newest stage, and the probe of the earlier ones where it is kept.
    memory
        How sums are solved.
    novelty
        What share of known cells may be called Unassigned.
    """
    bare = plain(sums, labels, genes, memory)
    seen = known.of(bare.classifier.labels)
    calibration = calibration_of(bare, seen)
    parts = chosen_parts(sums, bare.classifier.labels, seen.some(), memory, novelty)
    rule = rule_of(bare, seen, parts, novelty)
    strays = strays_of_studies(sums, seen.some(), memory, novelty, parts)
    found = bare.with_rule(calibration, rule)
    return replace(found, strays=strays, promise=novelty.false_unassigned)


def strays_of_studies(
    sums: StageSums, known: Known, memory: Memory, novelty: Novelty, parts: Sequence[str]
) -> dict[str, float]:
    """Return what share of a study's known cells is Unassigned by sums that never learned the study.

    Each stage is left out in turn, and its cells of types that the others know are asked about: what a user
    has to expect of a new study. Stages with few such cells, or whose absence leaves fewer than two types,
    are not measured.
    """
    found = {}
    for stage in sums.stages:
        rest = sums.without_stage(stage)
        if len(rest.types) < 2:
            continue
        bare = plain(rest, rest.types, rest.basis.genes, memory)
        rule = rule_of(bare, known.of_stages(rest.stages).of(rest.types), parts, novelty)
        asked = known.of_stages([stage]).of(rest.types)
        if rule is not None and len(asked.levels) >= LEAST_CELLS:
            found[stage] = round(float(rule.is_novel(rule.score(asked.apart(bare))).mean()), 4)
    return found


def calibration_of(bare: ExactAnnotator, known: Known) -> Calibration:
    """Return the calibration at which the sums' probabilities of known cells fit what the cells are."""
    targets = np.array([bare.labels.index(name) for name in known.cell_types], dtype=np.int64)
    return fit_calibration(known.logits(bare), targets)


def rule_of(bare: ExactAnnotator, known: Known, parts: Sequence[str], settings: Novelty) -> SumsRule | None:
    """Return a rule of these parts that keeps its promise on known cells; None without any."""
    return SumsRule.fitted(known.apart(bare), parts, settings.false_unassigned)


def chosen_parts(
    sums: StageSums, labels: Sequence[str], known: Known, memory: Memory, novelty: Novelty
) -> tuple[str, ...]:
    """Return the parts that best notice types which the sums never held, each type left out in turn.

    Its scatter goes with it, so that nothing of it is left. Of two choices alike, the one of fewer parts;
    where no type can be left out, all parts.
    """
    found = [
        asked_without(name, sums, labels, known, known, memory, novelty).h_scores(
            SumsRule, CHOICES, novelty.false_unassigned
        )
        for name in labels
        if can_be_left_out(name, labels, known.cell_types)
    ]
    return best_choice(found, CHOICES, PARTS)


def without_type(
    sums: StageSums,
    name: str,
    labels: Sequence[str],
    known: Known,
    memory: Memory,
    novelty: Novelty,
    parts: Sequence[str],
) -> ExactAnnotator:
    """Return an annotator that never held a type, with a rule of these parts set without it."""
    others = tuple(one for one in labels if one != name)
    rest = sums.without_types({name, *sums.types} - set(others))
    bare = plain(rest, others, rest.basis.genes, memory)
    seen = known.of(others)
    return bare.with_rule(calibration_of(bare, seen), rule_of(bare, seen, parts, novelty))


def asked_without(
    name: str,
    sums: StageSums,
    labels: Sequence[str],
    known: Known,
    test: Known,
    memory: Memory,
    novelty: Novelty,
) -> AskedParts:
    """Return what sums without a type say of known cells, and of tested cells with those of the type."""
    without = without_type(sums, name, labels, known, memory, novelty, PARTS)
    seen, asked = known.of(without.labels), test.of({*without.labels, name})
    truth = np.array(asked.cell_types, dtype=object)
    said = np.array(without.labels, dtype=object)[asked.logits(without).argmax(axis=1)]
    return AskedParts(seen.apart(without), asked.apart(without), truth == name, said == truth)


def plain(sums: StageSums, labels: Sequence[str], genes: Sequence[str], memory: Memory) -> ExactAnnotator:
    """Return the annotator that sums make, without temperature and novelty rule."""
    settings = SolveSettings(**memory.model_dump(include=set(SolveSettings.__dataclass_fields__)))
    return ExactAnnotator(solve(sums, settings), tuple(labels), tuple(genes))


# How well a type is noticed that was left out.


@dataclass(frozen=True, eq=False)
class Noticed:
    """Cells asked of an annotator that never learned one type; one entry a cell.

    Attributes
    ----------
    unknown : numpy.ndarray
        Whether a cell is of that type.
    score, novel : numpy.ndarray
        Its novelty, and whether that is Unassigned.
    right : numpy.ndarray
        Whether the likeliest type is the cell's.
    """

    unknown: np.ndarray
    score: np.ndarray
    novel: np.ndarray
    right: np.ndarray

    @property
    def accuracies(self) -> tuple[float, float]:
        """The share of known cells that are right and not Unassigned, and of unknown ones noticed."""
        known = float(np.mean((self.right & ~self.novel)[~self.unknown]))
        return known, float(np.mean(self.novel[self.unknown]))

    @property
    def h_score(self) -> float:
        """The harmonic mean of both."""
        return harmonic_mean(*self.accuracies)

    def document(self, name: str) -> dict[str, Any]:
        """Return what evaluation.json says of a type that was held out."""
        from sklearn.metrics import roc_auc_score

        known_accuracy, unknown_accuracy = self.accuracies
        return {
            "type": name,
            "n_known": int((~self.unknown).sum()),
            "n_unknown": int(self.unknown.sum()),
            "known_accuracy": known_accuracy,
            "unknown_accuracy": unknown_accuracy,
            "h_score": self.h_score,
            "auroc": float(roc_auc_score(self.unknown, self.score)),
        }


@dataclass(frozen=True, eq=False)
class AskedParts:
    """Parts of the novelty of known and of tested cells, before any of them are chosen.

    Attributes
    ----------
    known, test : dict
        Each part, ``(n_cells,)``; no known cell is of the type that was left out.
    unknown, right : numpy.ndarray
        Of each tested cell; as in `Noticed`.
    """

    known: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    unknown: np.ndarray
    right: np.ndarray

    def noticed(self, rule: type[PartsRule], parts: Sequence[str], share: float) -> Noticed:
        """Return how the tested cells look where novelty is made of some parts, set on the known cells."""
        fitted = rule.fitted(self.known, parts, share) if parts else None
        if fitted is None:
            nothing = np.zeros(len(self.unknown))
            return Noticed(self.unknown, nothing, nothing.astype(bool), self.right)
        score = fitted.score(self.test)
        return Noticed(self.unknown, score, fitted.is_novel(score), self.right)

    def h_scores(self, rule: type[PartsRule], choices: Sequence[Parts], share: float) -> dict[Parts, float]:
        """Return the H-score of each choice of parts."""
        return {parts: self.noticed(rule, parts, share).h_score for parts in choices}


def best_choice(found: Sequence[Mapping[Parts, float]], choices: Sequence[Parts], otherwise: Parts) -> Parts:
    """Return the choice with the highest mean H-score over types, of two alike the one of fewer parts.

    ``otherwise`` is returned where no type could be left out.
    """
    if not found:
        return otherwise
    return max(choices, key=lambda parts: (np.mean([one[parts] for one in found]), -len(parts)))


def can_be_left_out(name: str, labels: Collection[str], known: Sequence[str]) -> bool:
    """Whether enough types and known cells are left without a type, and enough cells of it."""
    n_others = sum(one != name and one in labels for one in known)
    return len(labels) > 2 and list(known).count(name) >= LEAST_CELLS and n_others >= LEAST_CELLS


def summary(measured: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return what evaluation.json says of all held-out types: each, their means, and why others were not."""
    return {
        "holdouts": list(measured),
        "h_score": float(np.mean([one["h_score"] for one in measured])) if measured else None,
        "auroc": float(np.mean([one["auroc"] for one in measured])) if measured else None,
        "not_measured": {name: reason for name, reason in reasons.items() if reason},
    }
