"""How sure a model may be: one scalar that its logits are divided by (Guo et al. 2017)."""

from __future__ import annotations

import math

import numpy as np

from canal.memory.answer import Calibration

FLOORS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
"""Shares of probability that may be spread over all types; the smallest is tried first."""

LOWEST, HIGHEST = 0.05, 20.0
_SPREAD = math.log(2)
_DIGITS = 4
_LEAST = 1e-300


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature at which the probabilities of known cells fit what the cells are.

    It minimises the cross-entropy of softmax(logits / T) over log T. Label smoothing teaches a network to
    be less sure than it is right, so T is usually below 1. A normal prior on log T, of mean 0 and standard
    deviation log 2, is added: hundreds of cells do not notice it, but a handful that all happen to be right
    do not make the model certain, and without cells T is 1.

    Parameters
    ----------
    logits
        Of cells that were not trained on, ``(n_cells, n_types)``.
    targets
        The place of each cell's true type among the types, int ``(n_cells,)``.
    """
    from scipy.optimize import minimize_scalar

    values, rows = np.asarray(logits, dtype=np.float64), np.arange(len(targets))

    def cost(log_temperature: float) -> float:
        scaled = values * math.exp(-log_temperature)
        fit = float((np.logaddexp.reduce(scaled, axis=1) - scaled[rows, targets]).sum())
        return fit + (log_temperature / _SPREAD) ** 2 / 2

    if not len(targets):
        return 1.0
    found = minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return round(math.exp(float(found.x)), _DIGITS)


def fit_calibration(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Return temperature and floor at which the probabilities of known cells fit what the cells are.

    As `fit_temperature`, with a share of the probability spread over all types: a few cells that are
    confidently wrong would else drag the temperature of all others. Where no cell of n is wrong, the share
    is about 1/n (a prior of Beta(2, 1), which is Laplace's rule of succession): that no error was seen
    among a few hundred cells does not mean that there is none, and an answer that is certain of one costs
    more than all others together.

    Parameters
    ----------
    logits, targets
        As in `fit_temperature`; types without any chance have -inf.
    """
    from scipy.optimize import minimize_scalar

    if not len(targets):
        return Calibration()
    values, rows = np.asarray(logits, dtype=np.float64), np.arange(len(targets))
    best: tuple[float, Calibration] | None = None
    for floor in FLOORS:

        def cost(log_temperature: float, floor: float = floor) -> float:
            found = Calibration(math.exp(log_temperature), floor).probabilities(values)
            fit = -float(np.log(np.maximum(found[rows, targets], _LEAST)).sum())
            return fit + (log_temperature / _SPREAD) ** 2 / 2 - math.log(floor)

        found = minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
        if best is None or float(found.fun) < best[0]:
            best = float(found.fun), Calibration(round(math.exp(float(found.x)), _DIGITS), floor)
    assert best is not None  # noqa: S101 - there are floors
    return best[1]
