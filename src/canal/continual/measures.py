"""What a stage's model is judged by: accuracy and its kin, and what continual learning adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = Sequence[float | None]
"""R[i, 0...i]: accuracy of stage i's model on the test cells of each stage up to i; None: not measured."""


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of cells (at least one) whose predicted type is the true one."""
    return float(np.mean(np.array(truth, dtype=object) == np.array(predicted, dtype=object)))


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean over the types present in ``truth`` of the share of their cells that are right."""
    from sklearn.metrics import recall_score

    present = sorted(set(truth))
    return float(recall_score(truth, predicted, labels=present, average="macro", zero_division=0))


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean F1 over the types present in ``truth``; no other type is a term."""
    from sklearn.metrics import f1_score

    present = sorted(set(truth))
    return float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0))


def ari(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the adjusted Rand index of the groupings (Hubert & Arabie 1985); 1 is agreement, 0 chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(truth, predicted))


def recall_by_type(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each type present in ``truth``, sorted, its number of cells and the share that is right."""
    true, said = np.array(truth, dtype=object), np.array(predicted, dtype=object)
    return {
        name: {"n": int((true == name).sum()), "recall": float(np.mean(said[true == name] == name))}
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
    from sklearn.metrics import confusion_matrix

    counts: list[list[int]] = confusion_matrix(truth, predicted, labels=list(labels)).tolist()
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


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
