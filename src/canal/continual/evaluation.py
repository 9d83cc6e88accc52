"""Evaluate a model on the test cells of every stage that it has learned: evaluation.json, predictions.csv.

Holds the measures, too: accuracy, calibration, and those of continual learning (forgetting, transfer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError
from canal.core.files import new_file, write_json
from canal.core.progress import each
from canal.memory.prediction import calibration, softmax

if TYPE_CHECKING:
    import pandas as pd

    from canal.memory.prediction import Prediction
    from canal.model.load import CellAnnotator


FORMAT = 1
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
COLUMNS = ("cell_id", "stage", "truth", "predicted", "confidence", "novelty", "is_novel")
_NO_TEST_CELLS = "it has no test cells: types with few cells only train, or were drawn for no test"

Row = Sequence[float | None]
"""R[i, 0...i]: accuracy of stage i's model on the test cells of each stage up to i; None: not measured."""


@dataclass(frozen=True, eq=False)
class Examination:
    """Test cells, probe sets and earlier results that a model is evaluated with.

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
        Stage -> genes of the panel that its file lacks, where the model uses that.
    parent : CellAnnotator or None
        The model that the stage was learned on; None for a lineage's first stage.

    Raises
    ------
    TrainingError
        If there is no stage, or not one row of matching length for each stage before the last.
    """

    tests: Mapping[str, LabelledCells | None]
    earlier: Sequence[Row]
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
    """The results: the document of evaluation.json, and one row a test cell."""

    document: dict[str, Any]
    predictions: pd.DataFrame


def evaluate(
    annotator: CellAnnotator, exam: Examination, novelty: Mapping[str, Any], seed: int
) -> Evaluation:
    """Measure a stage's model.

    Accuracy and the measures of agreement use the likeliest type, Unassigned or not, as published; the share
    of Unassigned cells is reported beside them. Test cells of a type that the model has not learned are
    counted as wrong, and told of (``not_learned``).

    Parameters
    ----------
    annotator
        The model, with its novelty rule if it has one.
    exam
        The cells, and the results of the stages before.
    novelty
        Results for held-out types, from `canal.continual.held_out_heads.held_out_type_heads`.
    seed
        Draws the resamples of the calibration error's interval.
    """
    answers = {
        stage: annotator.without(exam.missing.get(stage, ())).predict(exam.measured[stage].expression)
        for stage in each(list(exam.measured), "predicting test cells of {}".format)
    }
    per_stage = {
        stage: _stage_measures(cells, answers[stage], annotator.labels)
        for stage, cells in exam.measured.items()
    }
    truth = [name for cells in exam.measured.values() for name in cells.cell_types]
    novel = [bool(one) for stage in exam.measured for one in answers[stage].is_novel]
    called = [(name, one) for name, one in zip(truth, novel, strict=True) if name in annotator.labels]
    row = {stage: per_stage[stage]["accuracy"] if stage in per_stage else None for stage in exam.tests}
    matrix = [*(list(earlier) for earlier in exam.earlier), list(row.values())]
    document = {
        "format": FORMAT,
        "stage": list(exam.tests)[-1],
        "stages": list(exam.tests),
        "labels": list(annotator.labels),
        "row": row,
        "matrix": matrix,
        **accuracy_before(exam),
        "average_accuracy": average_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "per_stage": per_stage,
        "probe": _probe_measures(annotator, exam),
        "calibration": _calibration(exam.measured, answers, annotator, seed),
        "novelty": {
            "threshold": rule["threshold"] if (rule := annotator.about()["novelty"]) else None,
            "false_unassigned": unassigned_by_type([one[0] for one in called], [one[1] for one in called]),
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
    truth, predicted = cells.cell_types, answer.labels
    unknown = sorted(set(truth) - set(labels))
    names = [*labels, *unknown]
    told = {"not_learned": {name: truth.count(name) for name in unknown}} if unknown else {}
    return told | {
        "n": len(cells),
        "accuracy": accuracy(truth, predicted),
        "balanced_accuracy": balanced_accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted),
        "ari": ari(truth, predicted),
        "unassigned": float(np.mean(answer.is_novel)),
        "recall": recall_by_type(truth, predicted),
        "confusion": {"labels": names, "counts": confusion(truth, predicted, names)},
    }


def accuracy_before(exam: Examination) -> dict[str, Any]:
    """Return the parent model's accuracy on the new stage's test cells of types that it knows.

    Empty where there is no parent, or no such cell.
    """
    stage = list(exam.tests)[-1]
    cells = exam.measured.get(stage)
    if exam.parent is None or cells is None:
        return {}
    known = [row for row, name in enumerate(cells.cell_types) if name in exam.parent.labels]
    if not known:
        return {}
    parent = exam.parent.without(exam.missing.get(stage, ()))
    predicted = parent.predict(cells.expression[known][:, : len(exam.parent.genes)]).labels
    right = accuracy([cells.cell_types[row] for row in known], predicted)
    return {"before": {"n": len(known), "accuracy": right}}


def _probe_measures(annotator: CellAnnotator, exam: Examination) -> dict[str, Any]:
    measures = {}
    for stage in exam.probe.stage_names:
        cells = exam.probe.of_stage(stage)
        predicted = annotator.without(exam.missing.get(stage, ())).predict(cells.expression).labels
        measures[stage] = {"n": len(cells), "accuracy": accuracy(cells.cell_types, predicted)}
    return measures


def _calibration(
    tests: Mapping[str, LabelledCells], answers: Mapping[str, Prediction], annotator: CellAnnotator, seed: int
) -> dict[str, Any] | None:
    """Return the calibration over the test cells of all stages together; None without any.

    ``uncalibrated`` is the calibration error without the annotator's ``temperature``.
    """
    if not tests:
        return None
    truth = np.array([name for cells in tests.values() for name in cells.cell_types], dtype=object)
    predicted = np.array([name for stage in tests for name in answers[stage].labels], dtype=object)

    def of(confidences: Iterable[np.ndarray]) -> dict[str, Any]:
        generator = np.random.default_rng([seed, *b"calibration"])
        return calibration(
            np.concatenate(list(confidences)).astype(np.float64), truth == predicted, generator
        )

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


# Measures.


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of cells (at least one) whose predicted type is the true one."""
    return float(np.mean(np.array(truth, dtype=object) == np.array(predicted, dtype=object)))


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean over the types present in ``truth`` of the share of their cells that are right."""
    present = sorted(set(truth))
    return float(_sklearn().recall_score(truth, predicted, labels=present, average="macro", zero_division=0))


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean F1 over the types present in ``truth``; no other type is a term."""
    present = sorted(set(truth))
    return float(_sklearn().f1_score(truth, predicted, labels=present, average="macro", zero_division=0))


def ari(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the adjusted Rand index of the groupings (Hubert & Arabie 1985); 1 is agreement, 0 chance."""
    return float(_sklearn().adjusted_rand_score(truth, predicted))


def recall_by_type(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each type present in ``truth``, sorted, its number of cells and the share that is right."""
    true, named = np.array(truth, dtype=object), np.array(predicted, dtype=object)
    return {
        name: {"n": int((true == name).sum()), "recall": float(np.mean(named[true == name] == name))}
        for name in sorted(set(truth))
    }


def unassigned_by_type(truth: Sequence[str], novel: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Return for each type present in ``truth``, sorted, its number of cells and the share called novel.

    All these types are known, so each such cell is called Unassigned wrongly.
    """
    true, called = np.array(truth, dtype=object), np.array(novel, dtype=bool)
    return {
        name: {"n": int((true == name).sum()), "unassigned": float(np.mean(called[true == name]))}
        for name in sorted(set(truth))
    }


def confusion(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """Return counts, one row a true type and one column a predicted type, in the order of ``labels``."""
    counts: list[list[int]] = _sklearn().confusion_matrix(truth, predicted, labels=list(labels)).tolist()
    return counts


def average_accuracy(matrix: Sequence[Row]) -> float | None:
    """Return A_T = mean over j of R[T, j]; None where no entry of the last row was measured."""
    return _mean([value for value in matrix[-1] if value is not None])


def backward_transfer(matrix: Sequence[Row]) -> float | None:
    """Return BWT = mean over j < T of R[T, j] - R[j, j] (Lopez-Paz & Ranzato 2017); below 0: forgotten.

    Stages without both entries are left out; None where none is left, as after the first stage.
    """
    pairs = [(now, matrix[j][j]) for j, now in enumerate(matrix[-1][:-1])]
    return _mean([now - then for now, then in pairs if now is not None and then is not None])


def forgetting(matrix: Sequence[Row]) -> float | None:
    """Return F = mean over j < T of max over i < T of R[i, j], less R[T, j] (Chaudhry et al. 2018).

    Entries that were not measured are left out; None where nothing is left, as after the first stage.
    """
    losses = []
    for j, now in enumerate(matrix[-1][:-1]):
        before = [value for row in matrix[j:-1] if (value := row[j]) is not None]
        if now is not None and before:
            losses.append(max(before) - now)
    return _mean(losses)


def harmonic_mean(first: float, second: float) -> float:
    """Return 2ab / (a + b), 0 where both are 0: the H-score of known and unknown accuracy."""
    total = first + second
    return 2 * first * second / total if total > 0 else 0.0


def _sklearn() -> Any:
    """Return scikit-learn's measures, which take a second to import."""
    import sklearn.metrics

    return sklearn.metrics


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
