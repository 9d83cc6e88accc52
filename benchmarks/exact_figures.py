"""What `benchmarks/exact.py` measures of a learner on one draw of a stream, and its means over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from exact_learners import Answer, Learner, said
from exact_streams import Drawn, of_types

from canal.continual import evaluation as measures
from canal.continual.cells import LabelledCells
from canal.memory.prediction import expected_calibration_error, fit_calibration

LEAST_KNOWN = 5
"""Test cells of known types that a study must have to be left out."""

Figures = dict[str, float | None]


def measured(learner: Learner, drawn: Drawn) -> Figures:
    """Return a learner's figures on one draw of a stream."""
    names = list(drawn.stages)
    answers = {len(names): learner.learned(names)}
    rows = []
    for n in range(1 if learner.step_by_step else len(names), len(names) + 1):
        answers[n] = answers.get(n) or learner.learned(names[:n])
        rows.append([_accuracy(answers[n], drawn, name) for name in names[:n]])
    last = answers[len(names)]
    return {
        "average": measures.average_accuracy([rows[-1]]),
        "forgetting": measures.forgetting(rows) if learner.step_by_step else None,
        **{f"on {name}": value for name, value in zip(names, rows[-1], strict=True)},
        **_last(last, drawn),
        **_left_out(learner, drawn),
    }


def _accuracy(answer: Answer, drawn: Drawn, stage: str) -> float:
    cells = drawn.stages[stage]
    return measures.accuracy(cells.test.cell_types, said(answer, cells.test, cells.missing))


def _last(answer: Answer, drawn: Drawn) -> Figures:
    """Return what is measured over the test cells of all stages, of what all stages taught."""
    known = drawn.known(list(drawn.stages))
    logits = np.concatenate(
        [answer.logits(known.of_stage(name), drawn.stages[name].missing) for name in known.stage_names]
    )
    calibration = fit_calibration(logits, known.targets(answer.labels))
    truth, named, sure, right, scores = [], [], [], [], []
    for cells in drawn.stages.values():
        found = answer.logits(cells.test, cells.missing)
        probabilities, targets = calibration.probabilities(found), cells.test.targets(answer.labels)
        truth.append(cells.test.cell_types)
        named.append([answer.labels[place] for place in found.argmax(axis=1)])
        sure.append(probabilities.max(axis=1))
        right.append(found.argmax(axis=1) == targets)
        scores.append(-np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-12)))
    pairs = list(zip(truth, named, strict=True))
    all_true, all_named = ([name for part in parts for name in part] for parts in (truth, named))
    return {
        "types": measures.balanced_accuracy(all_true, all_named),
        "macro_f1": float(np.mean([measures.macro_f1(true, one) for true, one in pairs])),
        "macro_f1_pooled": measures.macro_f1(all_true, all_named),
        "ece": expected_calibration_error(np.concatenate(sure), np.concatenate(right)),
        "ece_newest": expected_calibration_error(sure[-1], right[-1]),
        "nll": float(np.concatenate(scores).mean()),
        "temperature": calibration.temperature,
        "floor": calibration.floor,
    }


def _left_out(learner: Learner, drawn: Drawn) -> Figures:
    """Return how the others answer for each study that is left out, of types that they know."""
    found = {}
    for name, others, test in studies_to_leave_out(drawn):
        named = said(learner.learned(others), test, drawn.stages[name].missing)
        found[name] = (
            measures.accuracy(test.cell_types, named),
            measures.balanced_accuracy(test.cell_types, named),
        )
    accuracies, balanced = zip(*found.values(), strict=True) if found else ((), ())
    return {
        "left_out": float(np.mean(accuracies)) if found else None,
        "left_out_types": float(np.mean(balanced)) if found else None,
        **{f"without {name}": value for name, (value, _) in found.items()},
    }


def studies_to_leave_out(drawn: Drawn) -> Iterator[tuple[str, list[str], LabelledCells]]:
    """Yield each study, the others, and its test cells of types that these know, where there are enough."""
    for name, cells in drawn.stages.items():
        others = [one for one in drawn.stages if one != name]
        types = {one for other in others for one in drawn.stages[other].train.types}
        test = of_types(cells.test, types)
        if len(types) >= 2 and len(test) >= LEAST_KNOWN:
            yield name, others, test


def differences(
    found: Sequence[Figures], against: Sequence[Figures], key: str
) -> tuple[float, float, float] | None:
    """Return the mean paired difference and its 95 % interval (Student's t over seeds)."""
    from scipy import stats

    pairs = [(one[key], other[key]) for one, other in zip(found, against, strict=True)]
    apart = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if len(apart) < 2:
        return None
    reach = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)))
    return float(apart.mean()), float(apart.mean() - reach), float(apart.mean() + reach)


def mean(figures: Sequence[Figures], key: str) -> float | None:
    """Return the mean over seeds of a figure; None where it was not measured."""
    values = [value for one in figures if (value := one.get(key)) is not None]
    return float(np.mean(values)) if values else None


def interval(apart: tuple[float, float, float] | None) -> str:
    """Return a difference in points with its interval."""
    return "-" if apart is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * one for one in apart))
