"""From logits to predictions: cell type, calibrated confidence, and whether a cell is Unassigned.

Confidences are calibrated on validation cells (Guo et al. 2017), which set the threshold of novelty, too.
The expected calibration error and the bins of its diagram are computed here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from canal.core.errors import CanalError, SumsError
from canal.memory.levels import log_normalised

FLOORS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
"""Shares of probability that may be spread over all types; the smallest is tried first."""

LOWEST, HIGHEST = 0.05, 20.0
_SPREAD = math.log(2)
_DIGITS = 4
_LEAST = 1e-300

PARTS = ("relative", "angle")
"""Components of the novelty score of sums: the relative Mahalanobis distance to the nearest type, and the
angle to the pattern of the nearest type."""

N_BINS = 15
N_RESAMPLES = 1000
LEVEL = 0.95
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Prediction:
    """Predictions of an annotator, one row a cell.

    ``labels`` are the likeliest types whether or not the cell is novel; ``confidence`` is the probability of
    that type, ``novelty`` the score in 0...1 (0 without a rule), ``is_novel`` whether it is above the
    threshold; ``probabilities``, as the annotator's temperature has them, and ``logits``, as they came, are
    ``(n_cells, n_types)``, types in the order of the labels. ``by_network`` marks the cells that the network
    predicted, ``of_learned`` those that resemble cells of the learned studies; None where that is not known.
    """

    labels: list[str]
    confidence: np.ndarray
    novelty: np.ndarray
    is_novel: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray
    by_network: np.ndarray | None = None
    of_learned: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        logits: np.ndarray,
        probabilities: np.ndarray,
        novelty: tuple[np.ndarray, np.ndarray] | None,
        of_learned: np.ndarray | None = None,
    ) -> Prediction:
        """Return the prediction; ``novelty`` is the score of each cell, and whether it is novel."""
        best = logits.argmax(axis=1)
        none = np.zeros(len(best))
        score, novel = (none, none.astype(bool)) if novelty is None else novelty
        confidence = probabilities[np.arange(len(best)), best]
        names = [labels[i] for i in best]
        return cls(names, confidence, score, novel, probabilities, logits, of_learned=of_learned)


@dataclass(frozen=True)
class Calibration:
    """From logits to probabilities: (1 - floor) x softmax(logits / temperature) + floor / number of types.

    Attributes
    ----------
    temperature : float
        Above 0.
    floor : float
        Share of the probability that is spread over all types that can be predicted, 0...1.
    """

    temperature: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0 and 0 <= self.floor < 1):
            raise SumsError(f"a calibration needs a temperature above 0 and a floor of 0...1, found {self}")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities of logits ``(n_cells, n_types)``; a type at -inf has none."""
        shares = softmax(logits / self.temperature)
        if not self.floor:
            return shares
        able = np.isfinite(logits)
        result: np.ndarray = (1 - self.floor) * shares + self.floor * able / able.sum(axis=1, keepdims=True)
        return result

    def log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return logarithms of `probabilities`; only a type at -inf has -inf, however unlikely another is."""
        logs = log_normalised(logits / self.temperature)
        if not self.floor:
            return logs
        able = np.isfinite(logits)
        least = np.log(self.floor) - np.log(able.sum(axis=1, keepdims=True))
        return np.where(able, np.logaddexp(logs + np.log1p(-self.floor), least), -np.inf)

    def to_json(self) -> dict[str, float]:
        """Return the fields as a JSON document."""
        return {"temperature": self.temperature, "floor": self.floor}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature at which the probabilities of validation cells fit their types best.

    It minimises the cross-entropy of softmax(logits / T) over log T. Label smoothing makes a network less
    confident than it is accurate, so T is usually below 1. A normal prior on log T, of mean 0 and standard
    deviation log 2, is added: it does not matter for hundreds of cells, but a handful that all happen to be
    right do not make the model certain, and without cells T is 1.

    Parameters
    ----------
    logits
        Of cells that were not trained on, ``(n_cells, n_types)``.
    targets
        The position of each cell's true type among the types, int ``(n_cells,)``.
    """
    values, rows = np.asarray(logits, dtype=np.float64), np.arange(len(targets))

    def cost(log_temperature: float) -> float:
        scaled = values * math.exp(-log_temperature)
        fit = float((np.logaddexp.reduce(scaled, axis=1) - scaled[rows, targets]).sum())
        return fit + (log_temperature / _SPREAD) ** 2 / 2

    if not len(targets):
        return 1.0
    minimum = _least(cost)
    return round(math.exp(float(minimum.x)), _DIGITS)


def fit_calibration(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Return temperature and floor at which the probabilities of validation cells fit their types best.

    As `fit_temperature`, with a share of the probability spread over all types: a few cells that are
    confidently wrong would else change the temperature of all others. Where no cell of n is wrong, the share
    is about 1/n (a prior of Beta(2, 1), which is Laplace's rule of succession): no error among a few hundred
    cells does not prove that errors are impossible, and one certain error costs more than all other cells
    together.

    Parameters
    ----------
    logits, targets
        As in `fit_temperature`; types without any chance have -inf.
    """
    if not len(targets):
        return Calibration()
    values, rows = np.asarray(logits, dtype=np.float64), np.arange(len(targets))
    best: tuple[float, Calibration] | None = None
    for floor in FLOORS:

        def cost(log_temperature: float, floor: float = floor) -> float:
            shares = Calibration(math.exp(log_temperature), floor).probabilities(values)
            fit = -float(np.log(np.maximum(shares[rows, targets], _LEAST)).sum())
            return fit + (log_temperature / _SPREAD) ** 2 / 2 - math.log(floor)

        minimum = _least(cost)
        if best is None or float(minimum.fun) < best[0]:
            best = float(minimum.fun), Calibration(round(math.exp(float(minimum.x)), _DIGITS), floor)
    assert best is not None  # noqa: S101 - there are floors
    return best[1]


def _least(cost: Callable[[float], float]) -> Any:
    """Return scipy's result for the logarithm of a temperature at which a cost is least."""
    from scipy.optimize import minimize_scalar

    return minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")


# Novelty rules.


@dataclass(frozen=True)
class PartsRule:
    """A novelty rule: components in standard deviations above the mean of known cells, and a threshold.

    Attributes
    ----------
    parts : dict
        Component -> its mean and standard deviation over validation cells.
    threshold : float
        A score above it is novel.
    """

    parts: Mapping[str, tuple[float, float]]
    threshold: float

    allowed: ClassVar[tuple[str, ...]] = PARTS
    error: ClassVar[type[CanalError]] = SumsError
    what: ClassVar[str] = "a novelty rule of sums"

    def __post_init__(self) -> None:
        numbers = [value for pair in self.parts.values() for value in pair]
        known = self.parts and set(self.parts) <= set(self.allowed)
        if not known or not np.isfinite([*numbers, self.threshold]).all() or min(numbers[1::2]) <= 0:
            raise self.error(
                f"{self.what} needs parts of {self.allowed} with spreads > 0, found {self}: restore the model"
            )

    @classmethod
    def fitted(cls, components: Mapping[str, np.ndarray], parts: Sequence[str], share: float) -> Self | None:
        """Return the rule of these components that calls at most a ``share`` of validation cells novel.

        Parameters
        ----------
        components
            Each component of the validation cells, ``(n_cells,)``; without cells there is no rule. A constant
            component gets a standard deviation of 1.
        """
        if not len(components[parts[0]]):
            return None
        usual = {
            name: (float(components[name].mean()), float(components[name].std()) or 1.0) for name in parts
        }
        return cls(usual, quantile_threshold(cls(usual, 0.0).score(components), share))

    def score(self, components: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the sum of components in standard deviations above their means, squeezed into 0...1."""
        parts = sorted(self.parts.items())  # as JSON has them: the sum's last bits are those of a stored rule
        total = sum((components[name] - mean) / spread for name, (mean, spread) in parts)
        return squeezed(np.asarray(total, dtype=np.float64))

    def is_novel(self, score: np.ndarray) -> np.ndarray:
        """Return for each score whether it is above the threshold."""
        result: np.ndarray = np.asarray(score) > self.threshold
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        parts = {name: list(pair) for name, pair in self.parts.items()}
        return {"parts": parts, "threshold": self.threshold}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Return the rule that `to_json` wrote; raises the class's error on anything else."""
        try:
            parts = {str(name): (float(a), float(b)) for name, (a, b) in document["parts"].items()}
            return cls(parts, float(document["threshold"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise cls.error(f"{cls.what} is damaged ({error}): {document!r:.200}") from error


class SumsRule(PartsRule):
    """A novelty rule of the sums' own components."""


def quantile_threshold(scores: np.ndarray, false_unassigned: float) -> float:
    """Return the lowest of the scores that at most a share ``false_unassigned`` of them exceeds."""
    return float(np.quantile(scores, 1.0 - false_unassigned, method="higher"))


def squeezed(total: np.ndarray) -> np.ndarray:
    """Return standard deviations as a score in 0...1; 0.5 is the average of known cells."""
    result: np.ndarray = 0.5 + 0.5 * np.tanh(total / 4.0)
    return result


def unsqueezed(score: np.ndarray) -> np.ndarray:
    """Return a score of 0...1 as it was before `squeezed`."""
    inside = np.clip(np.asarray(score, dtype=np.float64), 1e-12, 1 - 1e-12)
    result: np.ndarray = 4.0 * np.arctanh(2.0 * inside - 1.0)
    return result


# Calibration error.


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
