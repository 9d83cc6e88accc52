"""How far a stated confidence may be believed: expected calibration error, and the bins of its diagram."""

from __future__ import annotations

from typing import Any

import numpy as np

N_BINS = 15
N_RESAMPLES = 1000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 100


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
