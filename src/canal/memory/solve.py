"""From sums to a classifier: discriminant analysis with a centroid for each type and stage, in closed form.

Streaming linear discriminant analysis (Hayes & Kanan 2020) with more than one centroid a type: stages differ
by laboratory and chemistry, and a type has its place in each. Solved in float64 on one thread; the weights
are then stored as whole numbers, so that every score is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from canal.errors import SumsError
from canal.memory.basis import Basis
from canal.memory.classifier import ExactClassifier, linear_weights, one_thread, whole_weights
from canal.memory.sums import Sums

_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True)
class SolveSettings:
    """How sums become a classifier.

    Attributes
    ----------
    shrinkage : float
        Share by which the covariance is drawn to its diagonal, 0...1 (Friedman 1989).
    centroid_shrinkage : float
        Share by which a stage's centroid of a type is drawn to the type's own, 0...1: at 0 each stage has
        its own, which suits the learned studies best; at 1 a type has one, which suits unseen ones.
    stage_power : float
        A stage of n cells weighs n to this power in the covariance: at 1 every cell counts alike, at 0
        every stage.
    """

    shrinkage: float = 0.1
    centroid_shrinkage: float = 0.0
    stage_power: float = 1.0


class _Part(NamedTuple):
    """One type in one stage: its places, n, mean and scatter around the mean."""

    owner: int
    origin: int
    n: int
    mean: np.ndarray
    scatter: np.ndarray


def solve(stages: Mapping[str, Sums], basis: Basis, settings: SolveSettings) -> ExactClassifier:
    """Return the classifier of the sums of some stages.

    The same sums give the same classifier on one platform, whatever the order of the stages.

    Parameters
    ----------
    stages
        Stage -> its sums.

    Raises
    ------
    SumsError
        If the sums are not of this basis, or hold fewer than two types.
    """
    if wrong := [name for name, sums in stages.items() if sums.basis != basis.digest]:
        raise SumsError(f"the sums of {', '.join(wrong[:5])} are not of this basis ({basis.digest[:12]}...)")
    names = tuple(sorted((name for name, sums in stages.items() if sums.types), key=str.encode))
    labels = tuple(sorted({one for sums in stages.values() for one in sums.types}, key=str.encode))
    if len(labels) < 2:
        raise SumsError(f"a classifier needs cells of at least two types, found {len(labels)}")
    with one_thread():
        parts = list(_parts([stages[name] for name in names], labels))
        means = _type_means(parts, len(labels))
        covariance = _covariance(parts, means, settings)
        mean, spread = _around(means, parts, covariance, settings)
        centroids = np.stack([_drawn(part, means, settings) for part in parts])
        weights = linear_weights(centroids, covariance)
        bias = -0.5 * np.einsum("cd,cd->c", centroids, weights)
    return ExactClassifier(
        basis=basis,
        labels=labels,
        stages=names,
        owners=np.array([part.owner for part in parts], dtype=np.int64),
        origins=np.array([part.origin for part in parts], dtype=np.int64),
        whole=whole_weights(weights, bias, basis.highest),
        centroids=centroids,
        covariance=covariance,
        mean=mean,
        spread=spread,
    )


def _parts(stages: Sequence[Sums], labels: Sequence[str]) -> list[_Part]:
    """Return each type of each stage, stages in order, types within them."""
    found = []
    for origin, sums in enumerate(stages):
        for row, name in enumerate(sums.types):
            n = int(sums.counts[row])
            mean = sums.totals[row].astype(np.float64) / n
            scatter = sums.scatter(row) - n * np.outer(mean, mean)
            found.append(_Part(labels.index(name), origin, n, mean, scatter))
    return found


def _type_means(parts: Sequence[_Part], n_types: int) -> np.ndarray:
    """Return the mean of each type over all its cells, ``(n_types, n_features)``."""
    means = np.zeros((n_types, len(parts[0].mean)))
    cells = np.zeros(n_types)
    for part in parts:
        means[part.owner] += part.n * part.mean
        cells[part.owner] += part.n
    result: np.ndarray = means / cells[:, None]
    return result


def _weights(parts: Sequence[_Part], settings: SolveSettings) -> np.ndarray:
    """Return how much a cell of each part counts: its stage's n to the power less one."""
    cells: dict[int, int] = {}
    for part in parts:
        cells[part.origin] = cells.get(part.origin, 0) + part.n
    return np.array([float(cells[part.origin]) ** (settings.stage_power - 1) for part in parts])


def _covariance(parts: Sequence[_Part], means: np.ndarray, settings: SolveSettings) -> np.ndarray:
    """Return the covariance within types, drawn to its diagonal; a feature that never varies stands apart."""
    drawn = settings.centroid_shrinkage
    made, degrees = np.zeros_like(parts[0].scatter), 0.0
    for part, weight in zip(parts, _weights(parts, settings), strict=True):
        off = drawn * (part.mean - means[part.owner])
        made += weight * (part.scatter + part.n * np.outer(off, off))
        degrees += weight * (part.n - 1)
    made /= max(degrees, 1.0)
    return _shrunk(made, settings.shrinkage)


def _shrunk(covariance: np.ndarray, share: float) -> np.ndarray:
    """Return a covariance drawn to its diagonal; what never varies has variance 1 and goes with nothing."""
    diagonal = np.diag(covariance).copy()
    result = (1 - share) * covariance
    np.fill_diagonal(result, diagonal)
    still = diagonal < _LEAST_VARIANCE
    result[still, :] = 0.0
    result[:, still] = 0.0
    result[still, still] = 1.0
    return result


def _around(
    means: np.ndarray, parts: Sequence[_Part], covariance: np.ndarray, settings: SolveSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of all cells, every type counting alike."""
    mean = means.mean(axis=0)
    off = means - mean
    spread = covariance + off.T @ off / len(means)
    return mean, spread


def _drawn(part: _Part, means: np.ndarray, settings: SolveSettings) -> np.ndarray:
    """Return a stage's centroid of a type, drawn to the type's own."""
    share = settings.centroid_shrinkage
    result: np.ndarray = (1 - share) * part.mean + share * means[part.owner]
    return result
