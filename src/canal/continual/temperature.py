"""How sure a model may be: one scalar that its logits are divided by (Guo et al. 2017)."""

from __future__ import annotations

import math

import numpy as np

LOWEST, HIGHEST = 0.05, 20.0
_SPREAD = math.log(2)
_DIGITS = 4


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
