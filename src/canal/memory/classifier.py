"""The solved exact memory: whole-number weights that say of a cell how well each type explains it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from canal.digests import json_digest
from canal.errors import SumsError
from canal.files import read_json, write_json
from canal.memory.arrays import read_arrays, write_arrays
from canal.memory.basis import Basis

WEIGHTS = "weights.safetensors"
SOLUTION = "solution.json"
FORMAT = 1
_ARRAYS = ("weights", "bias", "owners", "origins", "centroids", "covariance", "mean", "spread")
_WHOLE_FLOAT = 2**53
_FINEST = 40
"""Binary places of the stored weights at most: far finer than what they are solved to."""


@dataclass(frozen=True, eq=False)
class Whole:
    """Linear scores in whole numbers: (weights @ features + bias) / 2**places.

    Attributes
    ----------
    weights : numpy.ndarray
        int64 ``(n_centroids, n_features)``.
    bias : numpy.ndarray
        int64 ``(n_centroids,)``.
    places : int
        Binary places; the sum of |weights| x the largest feature + |bias| is below 2**53 in every row, so a
        product in float64 is exact whatever library, chunk or thread count computes it.
    """

    weights: np.ndarray
    bias: np.ndarray
    places: int

    def of(self, features: np.ndarray) -> np.ndarray:
        """Return exact scores, float64 ``(n_cells, n_centroids)``, of whole features."""
        made = features @ self.weights.T.astype(np.float64) + self.bias.astype(np.float64)
        result: np.ndarray = np.ldexp(made, -self.places)
        return result


@dataclass(frozen=True, eq=False)
class ExactClassifier:
    """Linear discriminants of one covariance, with a centroid for each type and stage.

    Attributes
    ----------
    basis : Basis
        What features are made by.
    labels : tuple of str
        Cell types with at least one cell, in the order of the columns of `scores`.
    stages : tuple of str
        Stages that have centroids.
    owners, origins : numpy.ndarray
        Of each centroid, its type's place in ``labels`` and its stage's in ``stages``, int64
        ``(n_centroids,)``.
    whole : Whole
        The weights that answer.
    centroids : numpy.ndarray
        Float64 ``(n_centroids, n_features)``.
    covariance : numpy.ndarray
        Within types, shrunk, float64 ``(n_features, n_features)``; features without variance stand apart.
    mean : numpy.ndarray
        Of all cells, types alike, float64 ``(n_features,)``.
    spread : numpy.ndarray
        Covariance of all cells around ``mean``, types alike, float64 ``(n_features, n_features)``.
    """

    basis: Basis
    labels: tuple[str, ...]
    stages: tuple[str, ...]
    owners: np.ndarray
    origins: np.ndarray
    whole: Whole
    centroids: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    present: np.ndarray | None = None
    """Features that a data set has, bool ``(n_features,)``; None: all."""

    def scores(self, expression: np.ndarray) -> np.ndarray:
        """Return how well each type explains each cell, in nats, float64 ``(n_cells, n_types)``.

        The log-sum-exp over a type's centroids, each weighed alike. The same for a cell whatever cells stand
        beside it.
        """
        return self.of_features(self.basis.features(expression))

    def of_features(self, features: np.ndarray) -> np.ndarray:
        """Return as `scores` does for features ``(n_cells, n_features)``."""
        found = self.whole.of(features)
        scores = np.full((len(found), len(self.labels)), -np.inf)
        for place in range(len(self.labels)):
            scores[:, place] = np.logaddexp.reduce(found[:, self.owners == place], axis=1)
        return scores

    @property
    def linear(self) -> np.ndarray:
        """The weights as they were solved, in nats a unit, float64 ``(n_centroids, n_features)``."""
        result: np.ndarray = np.ldexp(self.whole.weights.astype(np.float64), -self.whole.places)
        return result

    def without(self, missing: Collection[str]) -> ExactClassifier:
        """Return the classifier for cells of which some genes were never measured: solved without them.

        Of projected features none is a gene's own, so there the genes count as not expressed.
        """
        gone = set(missing)
        present = np.array([gene not in gone for gene in self.basis.genes])
        if self.basis.kind != "genes" or present.all() or not present.any():
            return self
        return self._among(present)

    def _among(self, present: np.ndarray) -> ExactClassifier:
        weights = np.zeros_like(self.centroids)
        weights[:, present] = linear_weights(
            self.centroids[:, present], self.covariance[np.ix_(present, present)]
        )
        bias = -0.5 * np.einsum("cd,cd->c", self.centroids, weights)
        return replace(self, whole=whole_weights(weights, bias, self.basis.highest), present=present)

    def digest(self) -> str:
        """Return the SHA-256 of basis, labels and all stored numbers."""
        digest = hashlib.sha256(bytes.fromhex(self.basis.digest))
        arrays = (self.whole.weights, self.whole.bias, *(getattr(self, name) for name in _ARRAYS[2:]))
        for value in arrays:
            digest.update(np.ascontiguousarray(value).tobytes())
        named = [digest.hexdigest(), list(self.labels), list(self.stages), self.whole.places]
        return json_digest(named)

    def save(self, folder: Path) -> None:
        """Write ``weights.safetensors`` and ``solution.json`` into a folder, the basis below it."""
        arrays = {
            "weights": self.whole.weights,
            "bias": self.whole.bias,
            **{name: getattr(self, name) for name in _ARRAYS[2:]},
        }
        self.basis.save(folder / "basis")
        write_arrays(folder / WEIGHTS, arrays)
        document = {
            "format": FORMAT,
            "labels": list(self.labels),
            "stages": list(self.stages),
            "places": self.whole.places,
        }
        write_json(folder / SOLUTION, document)

    @classmethod
    def load(cls, folder: Path) -> ExactClassifier:
        """Read what `save` wrote.

        Raises
        ------
        SumsError
            If a file is missing or damaged, or files do not fit together.
        """
        basis = Basis.load(folder / "basis")
        arrays = read_arrays(folder / WEIGHTS, _ARRAYS)
        try:
            document = read_json(folder / SOLUTION)
            if document["format"] != FORMAT:
                raise SumsError(f"{folder / SOLUTION} is of a format that this canal does not know")
            labels, stages = tuple(document["labels"]), tuple(document["stages"])
            whole = Whole(arrays["weights"], arrays["bias"], int(document["places"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SumsError(f"{folder / SOLUTION} is missing or damaged ({error})") from error
        found = cls(basis, labels, stages, whole=whole, **{name: arrays[name] for name in _ARRAYS[2:]})
        _check(found, folder)
        return found


def linear_weights(centroids: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return centroids x inverse covariance, float64 ``(n_centroids, n_features)``, on one thread."""
    from scipy.linalg import cho_factor, cho_solve

    with one_thread():
        result: np.ndarray = cho_solve(cho_factor(covariance, lower=True), centroids.T).T
    return result


def whole_weights(weights: np.ndarray, bias: np.ndarray, highest: int) -> Whole:
    """Return weights and bias as whole numbers, as fine as exact products of features up to ``highest`` let.

    Raises
    ------
    SumsError
        If a weight is not finite.
    """
    reach = np.abs(weights).sum(axis=1) * highest + np.abs(bias)
    if not np.isfinite(reach).all():
        raise SumsError("the sums have no solution with finite weights; raise memory.shrinkage")
    # A unit for each rounded entry is kept free, and a bit for good measure.
    room = _WHOLE_FLOAT / 2 - (weights.shape[1] + 1) * highest
    places = min(_FINEST, int(np.floor(np.log2(room / max(float(reach.max()), 1.0)))))
    scaled = np.rint(np.ldexp(weights, places)).astype(np.int64), np.rint(np.ldexp(bias, places))
    return Whole(scaled[0], scaled[1].astype(np.int64), places)


def one_thread() -> AbstractContextManager[object]:
    """Return a block in which the linear algebra of numpy and scipy runs on one thread."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _check(found: ExactClassifier, folder: Path) -> None:
    n, size = len(found.owners), found.basis.size
    shapes = {
        "owners": (n,),
        "origins": (n,),
        "centroids": (n, size),
        "covariance": (size, size),
        "mean": (size,),
        "spread": (size, size),
    }
    fits = (
        all(getattr(found, name).shape == shape for name, shape in shapes.items())
        and found.whole.weights.shape == (n, size)
        and found.whole.bias.shape == (n,)
        and sorted(set(found.owners.tolist())) == list(range(len(found.labels)))
        and set(found.origins.tolist()) <= set(range(len(found.stages)))
        and found.whole.weights.dtype == found.whole.bias.dtype == np.int64
        and all(np.isfinite(getattr(found, name)).all() for name in ("centroids", "covariance", "spread"))
    )
    if not fits:
        raise SumsError(f"{folder}: labels, centroids and weights do not fit together; restore the model")
    reach = np.abs(found.whole.weights).astype(np.float64).sum(axis=1) * found.basis.highest
    if (reach + np.abs(found.whole.bias) >= _WHOLE_FLOAT).any():
        raise SumsError(f"{folder}: weights are too large for exact scores; restore the model")
