"""A model measured on the test cells of every stage it has learned: evaluation.json, predictions.csv.

Also how far a stated confidence may be believed: expected calibration error, and the bins of its diagram.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.continual import measures
from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError
from canal.core.files import new_file, write_json
from canal.memory.answer import softmax

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.answer import Prediction
    from canal.model.load import CellAnnotator

FORMAT = 1
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
COLUMNS = ("cell_id", "stage", "truth", "predicted", "confidence", "novelty", "is_novel")
_NO_TEST_CELLS = "it has no test cells: types with few cells only train"
N_BINS = 15
N_RESAMPLES = 1000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, eq=False)
class Examination:
    """What a model is measured on.

    Attributes
    ----------
    tests : dict
        Test cells of every stage the model has learned, oldest first and its own last; None where the cells
        are not available.
    earlier : sequence
        R of the stages before, a row each: accuracies on the stages up to that one, None where not measured.
    probe : LabelledCells
        The probe of all stages, also of those whose test cells are gone.
    reasons : dict
        Why a stage's test cells are not available.
    missing : dict
        Stage -> genes of the panel that its file lacks, where the model is to know.
    parent : CellAnnotator or None
        The model that the stage was learned on; None for a lineage's first stage.

    Raises
    ------
    TrainingError
        If there is no stage, or not one row of matching length for each stage before the last.
    """

    tests: Mapping[str, LabelledCells | None]
    earlier: Sequence[measures.Row]
    probe: LabelledCells
    reasons: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parent: CellAnnotator | None = None

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.earlier]
        expected = list(range(1, len(self.tests)))
        if not self.tests or lengths != expected:
            raise TrainingError(
                f"R needs rows of {expected} entries for the stages before the last of {list(self.tests)}, "
                f"found {lengths}: evaluate the stages in their order"
            )

    @property
    def measured(self) -> dict[str, LabelledCells]:
        """The stages with test cells, in order."""
        return {stage: cells for stage, cells in self.tests.items() if cells is not None and len(cells)}

    @property
    def not_measured(self) -> dict[str, str]:
        """Why the other stages have no accuracy."""
        return {
            stage: self.reasons.get(stage, "its source is not available") if cells is None else _NO_TEST_CELLS
            for stage, cells in self.tests.items()
            if stage not in self.measured
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured: the document of evaluation.json, and one row a test cell."""

    document: dict[str, Any]
    predictions: pd.DataFrame


def evaluate(
    annotator: CellAnnotator, exam: Examination, novelty: Mapping[str, Any], seed: int
) -> Evaluation:
    """Measure a stage's model.

    Accuracy and its kin judge the likeliest type, Unassigned or not, as published; how many cells are
    Unassigned stands beside them.

    Parameters
    ----------
    annotator
        The model, with its novelty rule if it has one.
    exam
        The cells it is measured on, and what was measured of its ancestors.
    novelty
        From `canal.continual.shadow.shadow_heads`.
    seed
        Draws the resamples of the calibration error's interval.
    """
    answers = {
        stage: annotator.without(exam.missing.get(stage, ())).predict(cells.expression)
        for stage, cells in exam.measured.items()
    }
    per_stage = {
        stage: _stage_measures(cells, answers[stage], annotator.labels)
        for stage, cells in exam.measured.items()
    }
    row = {stage: per_stage[stage]["accuracy"] if stage in per_stage else None for stage in exam.tests}
    matrix = [*(list(earlier) for earlier in exam.earlier), list(row.values())]
    document = {
        "format": FORMAT,
        "stage": list(exam.tests)[-1],
        "stages": list(exam.tests),
        "labels": list(annotator.labels),
        "row": row,
        "matrix": matrix,
        **_before(exam),
        "average_accuracy": measures.average_accuracy(matrix),
        "backward_transfer": measures.backward_transfer(matrix),
        "forgetting": measures.forgetting(matrix),
        "per_stage": per_stage,
        "probe": _probe_measures(annotator, exam),
        "calibration": _calibration(exam.measured, answers, annotator, seed),
        "novelty": {
            "threshold": rule["threshold"] if (rule := annotator.about()["novelty"]) else None,
            "false_unassigned": _false_unassigned(exam.measured, answers),
            **novelty,
        },
        "not_measured": exam.not_measured,
    }
    return Evaluation(document, _predictions(exam.measured, answers))


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and predictions.csv to ``folder``; equal measures give equal bytes."""
    write_json(folder / EVALUATION, evaluation.document)
    with new_file(folder / PREDICTIONS) as temporary:
        evaluation.predictions.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")


def _stage_measures(cells: LabelledCells, answer: Prediction, labels: Sequence[str]) -> dict[str, Any]:
    truth, said = cells.cell_types, answer.labels
    names = [*labels, *sorted(set(truth) - set(labels))]
    return {
        "n": len(cells),
        "accuracy": measures.accuracy(truth, said),
        "balanced_accuracy": measures.balanced_accuracy(truth, said),
        "macro_f1": measures.macro_f1(truth, said),
        "ari": measures.ari(truth, said),
        "unassigned": float(np.mean(answer.is_novel)),
        "recall": measures.recall_by_type(truth, said),
        "confusion": {"labels": names, "counts": measures.confusion(truth, said, names)},
    }


def _before(exam: Examination) -> dict[str, Any]:
    """Return how the parent's model did on the new stage's test cells, before it was learned.

    Only cells of types that it knows are judged; nothing is returned where there is none of them.
    """
    stage = list(exam.tests)[-1]
    cells = exam.measured.get(stage)
    if exam.parent is None or cells is None:
        return {}
    known = [place for place, name in enumerate(cells.cell_types) if name in exam.parent.labels]
    if not known:
        return {}
    parent = exam.parent.without(exam.missing.get(stage, ()))
    said = parent.predict(cells.expression[known][:, : len(exam.parent.genes)]).labels
    accuracy = measures.accuracy([cells.cell_types[place] for place in known], said)
    return {"before": {"n": len(known), "accuracy": accuracy}}


def _probe_measures(annotator: CellAnnotator, exam: Examination) -> dict[str, Any]:
    found = {}
    for stage in exam.probe.stage_names:
        cells = exam.probe.of_stage(stage)
        said = annotator.without(exam.missing.get(stage, ())).predict(cells.expression).labels
        found[stage] = {"n": len(cells), "accuracy": measures.accuracy(cells.cell_types, said)}
    return found


def _false_unassigned(
    tests: Mapping[str, LabelledCells], answers: Mapping[str, Prediction]
) -> dict[str, dict[str, Any]]:
    """Return by type how many test cells of all stages are called Unassigned; all types are known."""
    truth = [name for cells in tests.values() for name in cells.cell_types]
    novel = [bool(one) for stage in tests for one in answers[stage].is_novel]
    return measures.unassigned_by_type(truth, novel)


def _calibration(
    tests: Mapping[str, LabelledCells], answers: Mapping[str, Prediction], annotator: CellAnnotator, seed: int
) -> dict[str, Any] | None:
    """Return the calibration over the test cells of all stages together; None without any.

    ``uncalibrated`` is what it would be without the annotator's ``temperature``.
    """
    if not tests:
        return None
    truth = np.array([name for cells in tests.values() for name in cells.cell_types], dtype=object)
    said = np.array([name for stage in tests for name in answers[stage].labels], dtype=object)

    def of(confidences: Iterable[np.ndarray]) -> dict[str, Any]:
        generator = np.random.default_rng([seed, *b"calibration"])
        return calibration(np.concatenate(list(confidences)).astype(np.float64), truth == said, generator)

    before = of(softmax(answers[stage].logits).max(axis=1) for stage in tests)
    return {
        **of(answers[stage].confidence for stage in tests),
        "temperature": annotator.temperature,
        "uncalibrated": {name: before[name] for name in ("ece", "low", "high")},
    }


def _predictions(tests: Mapping[str, LabelledCells], answers: Mapping[str, Prediction]) -> pd.DataFrame:
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "cell_id": cells.cell_ids,
                "stage": stage,
                "truth": cells.cell_types,
                "predicted": answers[stage].labels,
                "confidence": answers[stage].confidence.astype(np.float64),
                "novelty": answers[stage].novelty.astype(np.float64),
                "is_novel": answers[stage].is_novel,
            }
        ).sort_values("cell_id")
        for stage, cells in tests.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def calibration(
    confidence: np.ndarray, correct: np.ndarray, generator: np.random.Generator
) -> dict[str, Any]:
    """Return the ECE of predictions with its 95 % interval, and the bins behind it.

    Parameters
    ----------
    confidence
        Probability of the predicted type, 0...1, ``(n_cells,)`` of at least one cell.
    correct
        Whether the predicted type is the true one, bool ``(n_cells,)``.
    generator
        Draws the resamples of cells.

    Returns
    -------
    dict
        ``n``, ``ece``, ``low``, ``high`` and ``bins``: mean ``confidence``, ``accuracy`` and ``n`` of every
        bin that holds cells.
    """
    groups = bin_of(confidence)
    ece = expected_calibration_error(confidence, correct)
    low, high = bootstrap_interval(confidence, correct, generator)
    bins = [
        {
            "confidence": float(confidence[groups == number].mean()),
            "accuracy": float(correct[groups == number].mean()),
            "n": int((groups == number).sum()),
        }
        for number in np.unique(groups)
    ]
    return {"n": len(confidence), "ece": ece, "low": low, "high": high, "bins": bins}


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return each confidence's bin, 0 to 14, of equal width; a value on an edge belongs to the bin above."""
    bins: np.ndarray = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
    return bins


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean over cells of |accuracy - confidence| of their bin (Guo et al. 2017)."""
    gaps = _gaps(confidence, correct)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


def bootstrap_interval(
    confidence: np.ndarray, correct: np.ndarray, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % basic bootstrap interval of the ECE from 1,000 resamples of cells.

    The ECE of a sample is too large on average, since chance alone moves bins off the diagonal, and
    resampling adds as much again. The basic interval reflects the resamples about the estimate, which takes
    that excess out where percentiles would count it twice. It is clipped to 0...1 and widened to hold the
    estimate.
    """
    gaps, n = _gaps(confidence, correct), len(confidence)
    estimates = []
    for _ in range(N_RESAMPLES // _RESAMPLES_AT_ONCE):
        times_drawn = generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES_AT_ONCE)
        estimates.append(np.abs(times_drawn @ gaps).sum(axis=1) / n)
    estimate = expected_calibration_error(confidence, correct)
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(np.concatenate(estimates), [tail, 1 - tail])
    low, high = np.clip([2 * estimate - upper, 2 * estimate - lower], 0.0, 1.0)
    return float(min(low, estimate)), float(max(high, estimate))


def _gaps(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return correct - confidence of each cell in the column of its bin, float64 ``(n_cells, 15)``."""
    gaps = np.zeros((len(confidence), N_BINS))
    gaps[np.arange(len(confidence)), bin_of(confidence)] = correct.astype(np.float64) - confidence
    return gaps
