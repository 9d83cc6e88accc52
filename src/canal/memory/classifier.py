"""The classifier that sums are solved to: whole-number weights for the score of each cell type."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from canal.core.digests import json_digest
from canal.core.errors import SumsError
from canal.core.files import read_json, write_json
from canal.memory.levels import (
    Basis,
    Linear,
    Whole,
    linear_scores,
    log_normalised,
    log_sum_exp,
    one_thread,
    read_arrays,
    write_arrays,
)

WEIGHTS = "weights.safetensors"
SOLUTION = "solution.json"
FORMAT = 1
_LINEARS = ("own", "within", "new")
_ARRAYS = ("owners", "origins", "patterns", "centroids", "covariance", "apart")

FEW_MISSING = 0.05
"""Share of the genes that a file may lack without being a new study for that alone."""


@dataclass(frozen=True, eq=False)
class ExactClassifier:
    """Linear discriminants with a centroid for each type and stage, and two ways to score a cell.

    A cell like those of the learned studies is scored by their own centroids, each study's under a covariance
    that is partly its own; a cell as of another study is scored under a covariance that includes how far
    studies are apart. The cell's own density under both decides which way is taken, so that its result does
    not depend on other cells.

    Attributes
    ----------
    basis : Basis
        The genes whose levels are used.
    labels : tuple of str
        Cell types with at least one cell, in the order of the columns of `scores`.
    stages : tuple of str
        Stages that have centroids.
    owners, origins : numpy.ndarray
        For each centroid the position of its type in ``labels`` and of its stage in ``stages``, int64
        ``(n_centroids,)``.
    patterns : numpy.ndarray
        For each stage which genes its file has, bool ``(n_stages, n_genes)``.
    own, within, new : Whole
        Scores of the centroids under the common covariance, under each stage's, and under that for new
        studies (None while no type was learned in two stages).
    centroids : numpy.ndarray
        Of centred levels, float64 ``(n_centroids, n_genes)``.
    covariance : numpy.ndarray
        Within types, shrunk, float64 ``(n_genes, n_genes)``.
    apart : numpy.ndarray
        How far studies are apart: rows whose products are added to the covariance for new studies, float64
        ``(n_rows, n_genes)``; no row while no type was learned in two stages.
    soft, bonus : float
        As ``soft`` and ``own`` of `canal.memory.stage_sums.SolveSettings`.
    present : numpy.ndarray
        Genes that a data set has, bool ``(n_genes,)``; by default all.
    strange : bool
        Whether no learned study has just these genes: then all cells count as of a new study.
    """

    basis: Basis
    labels: tuple[str, ...]
    stages: tuple[str, ...]
    owners: np.ndarray
    origins: np.ndarray
    patterns: np.ndarray
    own: Whole
    within: Whole
    new: Whole | None
    centroids: np.ndarray
    covariance: np.ndarray
    apart: np.ndarray
    soft: float
    bonus: float
    present: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    strange: bool = False

    @property
    def there(self) -> np.ndarray:
        """Genes that are present, bool ``(n_genes,)``."""
        return self.present if len(self.present) else np.ones(self.basis.size, dtype=bool)

    def without(self, missing: Collection[str]) -> ExactClassifier:
        """Return the classifier for cells of which some genes were never measured.

        Levels are then centred by their mean over the other genes, and a missing gene has that mean, as for a
        learned study that lacks it. Where a file lacks more than a few genes and no learned study lacks just
        these, it is a new study, and its scores are solved without them. With all genes missing, they count
        as not expressed.
        """
        present = self.there & self.basis.present(missing)
        if (present == self.there).all() or not present.any():
            return self
        few = (~present).mean() <= FEW_MISSING and not self.strange
        if few or (self.patterns == present).all(axis=1).any():
            return replace(self, present=present, strange=False)
        return replace(self, present=present, strange=True, new=self._solved_among(present))

    def _solved_among(self, present: np.ndarray) -> Whole:
        """Return scores for new studies from some genes alone, each cell centred by its mean over them."""
        n = int(present.sum())
        if n == 1:  # a single gene equals its own mean, whatever its level
            return Whole.of(Linear(np.zeros_like(self.centroids), np.zeros(len(self.centroids))))
        centring = np.eye(n) - 1.0 / n
        block = np.ix_(present, present)
        rows = self.apart[:, present]
        wide = centring @ (self.covariance[block] + rows.T @ rows) @ centring
        # Nothing that is centred lies along (1, ..., 1), so any spread along it gives the same scores.
        wide += np.trace(wide) / n**2
        own = self.centroids[:, present]
        weights = np.zeros_like(self.centroids)
        with one_thread():
            linear = linear_scores(own - own.mean(axis=1, keepdims=True), wide)
        weights[:, present] = linear.weights
        return Whole.of(Linear(weights, linear.bias))

    def centred(self, levels: np.ndarray) -> np.ndarray:
        """Return levels ``(n_cells, n_genes)`` less their mean over the genes present, times their number.

        Whole numbers, float64; genes that are missing are 0.
        """
        there = self.there
        n = int(there.sum())
        result: np.ndarray = (n * levels - levels[:, there].sum(axis=1, keepdims=True)) * there
        return result

    def scores(self, levels: np.ndarray) -> np.ndarray:
        """Return log probabilities of each type, with equal priors, float64 ``(n_cells, n_types)``."""
        return self.answered(levels)[0]

    def answered(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `scores`, and whether a cell was taken for one of the learned studies, ``(n_cells,)``."""
        return self.answered_centred(self.centred(levels))

    def answered_centred(self, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return as `answered` does for levels that are centred already."""
        n = int(self.there.sum())
        if self.strange and self.new is not None:
            return self._of_new(self.new.scores(centred, n)), np.zeros(len(centred), dtype=bool)
        own = self.own.scores(centred, n)
        if self.new is None:
            return self._of_learned(own, self.within.scores(centred, n)), np.ones(len(centred), dtype=bool)
        new = self.new.scores(centred, n)
        # By how many nats a cell is likelier among the learned studies than among others.
        factor, constant = self.density_ratio
        curved = np.square(factor.scores(centred, n)).sum(axis=1)
        gain = log_sum_exp(own) - log_sum_exp(new) + constant - 0.5 * curved
        learned: np.ndarray = gain + self.bonus > 0
        result = np.empty((len(centred), len(self.labels)))
        result[learned] = self._of_learned(own[learned], self.within.scores(centred[learned], n))
        result[~learned] = self._of_new(new[~learned])
        return result, learned

    def _of_learned(self, own: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Return log probabilities by the stage that a cell resembles, and the types of that stage."""
        stages = range(len(self.stages))
        shares = np.stack([log_sum_exp(own[:, self.origins == one]) for one in stages], axis=1)
        shares = log_normalised(shares)
        refined = np.empty_like(own)
        for one in stages:
            columns = self.origins == one
            refined[:, columns] = log_normalised(within[:, columns]) + shares[:, [one]]
        return log_normalised(self._by_type(refined))

    def _of_new(self, new: np.ndarray) -> np.ndarray:
        """Return log probabilities where a type's centroids in all stages have equal weights."""
        return log_normalised(self._by_type(new, self.soft) - self.sharing_penalty)

    @cached_property
    def sharing_penalty(self) -> np.ndarray:
        """The part of a type's premium for being learned in several stages that is taken off its score.

        To be learned in several stages makes a type likelier in a new one, as far as types are shared at all:
        in full where a third of the types or more are shared, in proportion below.
        """
        shared = np.bincount(self.owners, minlength=len(self.labels))
        earned = min(1.0, 3 * float((shared > 1).mean()))
        result: np.ndarray = (1 - earned) * np.log(shared) / self.soft
        return result

    def _by_type(self, scores: np.ndarray, soft: float = 1.0) -> np.ndarray:
        """Return the log-sum-exp of the scores of each type's centroids."""
        columns = [
            log_sum_exp(scores[:, self.owners == owner] * soft) / soft for owner in range(len(self.labels))
        ]
        return np.stack(columns, axis=1)

    @cached_property
    def density_ratio(self) -> tuple[Whole, float]:
        """The factor F and constant of the log ratio of a cell's densities under both covariances.

        The squared length of F x is the difference of the squared distances of x under both, the constant
        half the difference of the logarithms of both determinants (Woodbury's identity). F is in whole
        numbers, as all that cells are multiplied by: else the last bits of a cell's result would depend on
        the number of cells.
        """
        with one_thread():
            solved = np.linalg.solve(self.covariance, self.apart.T)
            inner = np.eye(len(self.apart)) + self.apart @ solved
            factor = np.linalg.cholesky(np.linalg.inv(inner))
            constant = 0.5 * np.linalg.slogdet(inner)[1]
        rows = (solved @ factor).T
        return Whole.of(Linear(rows, np.zeros(len(rows)))), float(constant)

    def like(self, other: ExactClassifier) -> bool:
        """Whether another classifier equals this one but for its weights, up to rounding between machines."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in _ARRAYS]
        return self._document() == other._document() and all(
            left.shape == right.shape and np.allclose(left, right, rtol=1e-6, atol=1e-6)
            for left, right in pairs
        )

    def digest(self) -> str:
        """Return the SHA-256 of basis, labels and all stored numbers."""
        digest = hashlib.sha256(bytes.fromhex(self.basis.digest))
        for name, value in sorted(self._stored().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return json_digest([digest.hexdigest(), self._document()])

    def save(self, folder: Path) -> None:
        """Write ``weights.safetensors`` and ``solution.json`` into a folder, the basis below it."""
        self.basis.save(folder / "basis")
        write_arrays(folder / WEIGHTS, self._stored())
        write_json(folder / SOLUTION, self._document())

    @classmethod
    def load(cls, folder: Path) -> ExactClassifier:
        """Read what `save` wrote.

        Raises
        ------
        SumsError
            If a file is missing or damaged, or files do not fit together.
        """
        basis = Basis.load(folder / "basis")
        try:
            document = read_json(folder / SOLUTION)
            if document["format"] != FORMAT:
                raise SumsError(f"{folder / SOLUTION} is of a format that this canal does not know")
            places = {str(name): int(n) for name, n in document["places"].items()}
            names = [f"{name}.{what}" for name in places for what in ("weights", "bias")]
            arrays = read_arrays(folder / WEIGHTS, (*_ARRAYS, *names))
            wholes = {
                name: Whole(arrays[f"{name}.weights"], arrays[f"{name}.bias"], places[name])
                for name in places
            }
            found = cls(
                basis,
                tuple(document["labels"]),
                tuple(document["stages"]),
                own=wholes["own"],
                within=wholes["within"],
                new=wholes.get("new"),
                owners=arrays["owners"],
                origins=arrays["origins"],
                patterns=arrays["patterns"],
                centroids=arrays["centroids"],
                covariance=arrays["covariance"],
                apart=arrays["apart"],
                soft=float(document["soft"]),
                bonus=float(document["bonus"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SumsError(f"{folder / SOLUTION} is missing or damaged ({error})") from error
        _check(found, folder)
        return found

    def _wholes(self) -> dict[str, Whole]:
        linears = {name: getattr(self, name) for name in _LINEARS}
        return {name: value for name, value in linears.items() if value is not None}

    def _stored(self) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name, whole in self._wholes().items():
            arrays |= {f"{name}.weights": whole.weights, f"{name}.bias": whole.bias}
        return arrays

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "labels": list(self.labels),
            "stages": list(self.stages),
            "places": {name: whole.places for name, whole in self._wholes().items()},
            "soft": self.soft,
            "bonus": self.bonus,
        }


def _check(classifier: ExactClassifier, folder: Path) -> None:
    n, size = len(classifier.owners), classifier.basis.size
    shapes = {
        "owners": (n,),
        "origins": (n,),
        "patterns": (len(classifier.stages), size),
        "centroids": (n, size),
        "covariance": (size, size),
        "apart": (len(classifier.apart), size),
    }
    fits = (
        all(getattr(classifier, name).shape == shape for name, shape in shapes.items())
        and all(whole.fits(n, size) for whole in classifier._wholes().values())
        and sorted(set(classifier.owners.tolist())) == list(range(len(classifier.labels)))
        and sorted(set(classifier.origins.tolist())) == list(range(len(classifier.stages)))
        and all(np.isfinite(getattr(classifier, name)).all() for name in _ARRAYS[3:])
        and classifier.soft > 0
    )
    if not fits:
        raise SumsError(f"{folder}: labels, centroids and weights do not fit together; restore the model")
