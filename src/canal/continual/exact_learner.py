"""Learn an annotator from sums: solve them, calibrate the confidences and choose the novelty rule.

Used for every stage whose method keeps sums. The components of the novelty rule are chosen by
leave-one-type-out validation.
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
"""Choices of components for the novelty score of sums."""

MOST_CELLS = 2000
"""Validation cells that are used at most where types or stages are held out: more change no choice."""

LEAST_CELLS = 5
"""Validation cells that a held-out type, and all other types together, need at least."""

Parts = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LabelledLevels:
    """Labelled cells with their levels of expression, as sums use them.

    Attributes
    ----------
    levels : numpy.ndarray
        In the basis, float64 ``(n_cells, n_genes)``.
    cell_types : tuple of str
    missing : tuple of tuple of str
        For each cell the genes of the basis that its file lacks.
    stages : tuple of str
        For each cell the stage that it belongs to.
    """

    levels: np.ndarray
    cell_types: tuple[str, ...]
    missing: tuple[tuple[str, ...], ...]
    stages: tuple[str, ...]

    @classmethod
    def of_cells(cls, cells: LabelledCells, sums: StageSums) -> LabelledLevels:
        """Return the levels of labelled cells, whose stages are among those of the sums."""
        missing = tuple(sums.missing.get(stage, ()) for stage in cells.stages)
        return cls(sums.basis.levels(cells.expression), cells.cell_types, missing, cells.stages)

    def of_types(self, cell_types: Iterable[str]) -> LabelledLevels:
        """Return the cells of these types."""
        wanted = set(cell_types)
        return self._take([row for row, name in enumerate(self.cell_types) if name in wanted])

    def of_stages(self, stages: Iterable[str]) -> LabelledLevels:
        """Return the cells of these stages."""
        wanted = set(stages)
        return self._take([row for row, name in enumerate(self.stages) if name in wanted])

    def sample(self) -> LabelledLevels:
        """Return at most `MOST_CELLS` of the cells, evenly spread over their order."""
        n = len(self.levels)
        if n <= MOST_CELLS:
            return self
        return self._take(np.linspace(0, n - 1, MOST_CELLS).astype(np.int64).tolist())

    def _take(self, rows: Sequence[int]) -> LabelledLevels:
        return LabelledLevels(
            self.levels[list(rows)],
            tuple(self.cell_types[row] for row in rows),
            tuple(self.missing[row] for row in rows),
            tuple(self.stages[row] for row in rows),
        )

    def logits(self, annotator: ExactAnnotator) -> np.ndarray:
        """Return the annotator's logits of the cells, each without the genes that its file lacks."""
        result = np.zeros((len(self.levels), len(annotator.labels)))
        for missing, rows in self._by_missing_genes():
            result[rows] = annotator.without(missing).logits_of(self.levels[rows])
        return result

    def novelty_parts(self, annotator: ExactAnnotator) -> dict[str, np.ndarray]:
        """Return the components of the cells' novelty, each cell without the genes that its file lacks."""
        result = {name: np.zeros(len(self.levels)) for name in PARTS}
        for missing, rows in self._by_missing_genes():
            for name, values in annotator.without(missing).novelty_parts(self.levels[rows]).items():
                result[name][rows] = values
        return result

    def _by_missing_genes(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        patterns = dict.fromkeys(self.missing)
        return [(genes, np.flatnonzero([own == genes for own in self.missing])) for genes in patterns]


@dataclass(frozen=True, eq=False)
class ExactLearner:
    """Sums of some stages, with the settings by which they become an annotator.

    Attributes
    ----------
    sums : StageSums
    memory : Memory
        How sums are solved.
    novelty : Novelty
        Which share of validation cells the rule may call Unassigned.
    """

    sums: StageSums
    memory: Memory
    novelty: Novelty

    def annotator(
        self, labels: Sequence[str], genes: Sequence[str], validation: LabelledLevels
    ) -> ExactAnnotator:
        """Return the annotator of the sums, calibrated and with a novelty rule by validation cells.

        Parameters
        ----------
        labels, genes
            The lineage's, in its order.
        validation
            Validation cells of the newest stage, and the probe sets of earlier stages where they are kept.
        """
        bare = uncalibrated(self.sums, labels, genes, self.memory)
        usable = validation.of_types(bare.classifier.labels)
        calibration = calibration_of(bare, usable)
        parts = self.chosen_parts(bare.classifier.labels, usable.sample())
        rule = rule_of(bare, usable, parts, self.novelty)
        strays = self.strays_by_study(usable.sample(), parts)
        calibrated = bare.with_rule(calibration, rule)
        return replace(calibrated, strays=strays, promise=self.novelty.false_unassigned)

    def strays_by_study(self, validation: LabelledLevels, parts: Sequence[str]) -> dict[str, float]:
        """Return by study the share of its cells that is Unassigned when the sums leave the study out.

        Each stage is left out in turn, and its cells of types that the other stages know are predicted: an
        estimate for a new study. Stages with fewer than `LEAST_CELLS` such cells, or whose absence leaves
        fewer than two types, are not measured.
        """
        shares = {}
        for stage in self.sums.stages:
            rest = self.sums.without_stage(stage)
            if len(rest.types) < 2:
                continue
            bare = uncalibrated(rest, rest.types, rest.basis.genes, self.memory)
            others = validation.of_stages(rest.stages).of_types(rest.types)
            rule = rule_of(bare, others, parts, self.novelty)
            own = validation.of_stages([stage]).of_types(rest.types)
            if rule is not None and len(own.levels) >= LEAST_CELLS:
                novel = rule.is_novel(rule.score(own.novelty_parts(bare)))
                shares[stage] = round(float(novel.mean()), 4)
        return shares

    def chosen_parts(self, labels: Sequence[str], validation: LabelledLevels) -> tuple[str, ...]:
        """Choose the components of the novelty score by leave-one-type-out validation.

        A held-out type's scatter is left out, too. Of two equal choices the one with fewer components is
        taken; where no type can be held out, all components.
        """
        h_scores = [
            self.parts_without_type(name, labels, validation, validation).h_scores(
                SumsRule, CHOICES, self.novelty.false_unassigned
            )
            for name in labels
            if can_be_held_out(name, labels, validation.cell_types)
        ]
        return best_choice(h_scores, CHOICES, PARTS)

    def without_type(
        self, cell_type: str, labels: Sequence[str], validation: LabelledLevels, parts: Sequence[str]
    ) -> ExactAnnotator:
        """Return the annotator of the sums without a cell type, its rule of these components."""
        others = tuple(label for label in labels if label != cell_type)
        rest = self.sums.without_types({cell_type, *self.sums.types} - set(others))
        bare = uncalibrated(rest, others, rest.basis.genes, self.memory)
        usable = validation.of_types(others)
        return bare.with_rule(calibration_of(bare, usable), rule_of(bare, usable, parts, self.novelty))

    def parts_without_type(
        self, cell_type: str, labels: Sequence[str], validation: LabelledLevels, test: LabelledLevels
    ) -> NoveltyParts:
        """Return the novelty components of validation and test cells, from sums without a cell type.

        The test cells include those of the held-out type, the validation cells do not.
        """
        without = self.without_type(cell_type, labels, validation, PARTS)
        others, tested = validation.of_types(without.labels), test.of_types({*without.labels, cell_type})
        truth = np.array(tested.cell_types, dtype=object)
        predicted = np.array(without.labels, dtype=object)[tested.logits(without).argmax(axis=1)]
        return NoveltyParts(
            others.novelty_parts(without),
            tested.novelty_parts(without),
            truth == cell_type,
            predicted == truth,
        )


def uncalibrated(
    sums: StageSums, labels: Sequence[str], genes: Sequence[str], memory: Memory
) -> ExactAnnotator:
    """Return the annotator of solved sums, with neither calibration nor novelty rule."""
    settings = SolveSettings(**memory.model_dump(include=set(SolveSettings.__dataclass_fields__)))
    return ExactAnnotator(solve(sums, settings), tuple(labels), tuple(genes))


def calibration_of(bare: ExactAnnotator, validation: LabelledLevels) -> Calibration:
    """Return the calibration that fits the annotator's probabilities to the types of validation cells."""
    targets = np.array([bare.labels.index(name) for name in validation.cell_types], dtype=np.int64)
    return fit_calibration(validation.logits(bare), targets)


def rule_of(
    bare: ExactAnnotator, validation: LabelledLevels, parts: Sequence[str], settings: Novelty
) -> SumsRule | None:
    """Return the novelty rule of these components, fitted on validation cells; None without cells."""
    return SumsRule.fitted(validation.novelty_parts(bare), parts, settings.false_unassigned)


# How well a held-out type is detected.


@dataclass(frozen=True, eq=False)
class HeldOutResult:
    """Predictions of an annotator that never learned one type; one entry a cell.

    Attributes
    ----------
    unknown : numpy.ndarray
        Whether a cell is of the held-out type.
    score, novel : numpy.ndarray
        Its novelty score, and whether it is called Unassigned.
    right : numpy.ndarray
        Whether the likeliest type is the cell's.
    """

    unknown: np.ndarray
    score: np.ndarray
    novel: np.ndarray
    right: np.ndarray

    @property
    def accuracies(self) -> tuple[float, float]:
        """Share of known cells that are right and not Unassigned, and of unknown cells Unassigned."""
        known = float(np.mean((self.right & ~self.novel)[~self.unknown]))
        return known, float(np.mean(self.novel[self.unknown]))

    @property
    def h_score(self) -> float:
        """The harmonic mean of both accuracies."""
        return harmonic_mean(*self.accuracies)

    def document(self, cell_type: str) -> dict[str, Any]:
        """Return the entry of evaluation.json for a held-out type."""
        from sklearn.metrics import roc_auc_score

        known_accuracy, unknown_accuracy = self.accuracies
        return {
            "type": cell_type,
            "n_known": int((~self.unknown).sum()),
            "n_unknown": int(self.unknown.sum()),
            "known_accuracy": known_accuracy,
            "unknown_accuracy": unknown_accuracy,
            "h_score": self.h_score,
            "auroc": float(roc_auc_score(self.unknown, self.score)),
        }


@dataclass(frozen=True, eq=False)
class NoveltyParts:
    """All components of the novelty of validation and test cells, before some of them are chosen.

    Attributes
    ----------
    validation, test : dict
        Each component, ``(n_cells,)``; no validation cell is of the held-out type.
    unknown, right : numpy.ndarray
        For each test cell; as in `HeldOutResult`.
    """

    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    unknown: np.ndarray
    right: np.ndarray

    def result(self, rule: type[PartsRule], parts: Sequence[str], share: float) -> HeldOutResult:
        """Return how test cells are predicted by a rule of some components, fitted on validation cells."""
        fitted = rule.fitted(self.validation, parts, share) if parts else None
        if fitted is None:
            nothing = np.zeros(len(self.unknown))
            return HeldOutResult(self.unknown, nothing, nothing.astype(bool), self.right)
        score = fitted.score(self.test)
        return HeldOutResult(self.unknown, score, fitted.is_novel(score), self.right)

    def h_scores(self, rule: type[PartsRule], choices: Sequence[Parts], share: float) -> dict[Parts, float]:
        """Return the H-score of each choice of components."""
        return {parts: self.result(rule, parts, share).h_score for parts in choices}


def best_choice(
    h_scores: Sequence[Mapping[Parts, float]], choices: Sequence[Parts], otherwise: Parts
) -> Parts:
    """Return the choice with the highest mean H-score over types; of equal ones that of fewer components.

    ``otherwise`` is returned where no type could be held out.
    """
    if not h_scores:
        return otherwise
    return max(choices, key=lambda parts: (np.mean([one[parts] for one in h_scores]), -len(parts)))


def can_be_held_out(cell_type: str, labels: Collection[str], validation: Sequence[str]) -> bool:
    """Whether enough types and validation cells remain without a type, and the type has enough cells.

    ``validation`` are the types of the validation cells.
    """
    n_others = sum(one != cell_type and one in labels for one in validation)
    n_own = list(validation).count(cell_type)
    return len(labels) > 2 and n_own >= LEAST_CELLS and n_others >= LEAST_CELLS


def summary(measured: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of evaluation.json on held-out types: each, their means, why others are missing."""
    return {
        "holdouts": list(measured),
        "h_score": float(np.mean([one["h_score"] for one in measured])) if measured else None,
        "auroc": float(np.mean([one["auroc"] for one in measured])) if measured else None,
        "not_measured": {name: reason for name, reason in reasons.items() if reason},
    }
