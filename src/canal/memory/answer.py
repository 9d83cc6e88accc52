"""The annotator by sums alone: cell types, confidence and novelty from a solved exact memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from canal.core.digests import json_digest
from canal.core.errors import SumsError
from canal.core.files import new_folder, read_json, write_json
from canal.memory import SUMS
from canal.memory.classifier import ExactClassifier
from canal.memory.levels import Linear, Whole, linear_scores, one_thread
from canal.memory.prediction import Calibration, Prediction, SumsRule

CONFIG = "answer.json"
FORMAT = 1

PROMISE = 0.05
"""Share of known cells that a rule calls Unassigned at most, where a model states no other."""


@dataclass(frozen=True, eq=False)
class NoveltyScores:
    """The components of the novelty score, by the centroids of a classifier.

    Attributes
    ----------
    classifier : ExactClassifier
    """

    classifier: ExactClassifier

    def of_centred(self, centred: np.ndarray) -> dict[str, np.ndarray]:
        """Return each component for levels from `ExactClassifier.centred`, float64 ``(n_cells,)``.

        The larger, the more novel. ``relative`` is the squared Mahalanobis distance to the nearest centroid
        less that to the one Gaussian of all cells (Ren et al. 2021); ``angle`` is 1 - the cosine to the
        nearest centroid, levels in units of their spread. The spread is that within types and between
        studies: a cell is no more novel for being of a study as distant as the learned ones are from each
        other. Where genes are missing, both use the genes that are present, and the distance is scaled to
        the number of all.
        """
        there = self.classifier.there
        n, size = int(there.sum()), len(self._centroids)
        cells, made = centred / n, self._columns.scores(centred, n)
        nearest, cosine = made[:, :size].max(axis=1), made[:, size : 2 * size].max(axis=1)
        bent = np.square(made[:, 2 * size + 1 :]).sum(axis=1)
        relative = bent + made[:, 2 * size] + self._around[2] - 2 * nearest
        lengths = np.sqrt(np.square(cells * self._all(1 / self._spread)).sum(axis=1))
        return {
            "relative": relative * (len(there) / n),
            "angle": 1 - cosine / np.maximum(lengths, 1e-12),
        }

    @cached_property
    def _columns(self) -> Whole:
        """All that cells are multiplied by, in whole numbers: no result depends on the number of cells."""
        profiles = self._centroids / self._spread
        profiles = profiles / np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
        bent, linear, _ = self._around
        rows = np.concatenate([self._near.weights, profiles / self._spread, linear[None], bent.T])
        bias = np.zeros(len(rows))
        bias[: len(self._centroids)] = self._near.bias
        return Whole.of(Linear(self._all(rows), bias))

    def _all(self, values: np.ndarray) -> np.ndarray:
        """Return values ``(..., n_present)`` of present genes over all genes, 0 for missing ones."""
        there = self.classifier.there
        result = np.zeros((*values.shape[:-1], len(there)))
        result[..., there] = values
        return result

    @cached_property
    def _centroids(self) -> np.ndarray:
        own = self.classifier.centroids[:, self.classifier.there]
        result: np.ndarray = own - own.mean(axis=1, keepdims=True)
        return result

    @cached_property
    def _wide(self) -> np.ndarray:
        """Covariance within types and between studies, of the present genes."""
        there = self.classifier.there
        rows = self.classifier.apart[:, there]
        result: np.ndarray = self.classifier.covariance[np.ix_(there, there)] + rows.T @ rows
        return result

    @cached_property
    def _spread(self) -> np.ndarray:
        result: np.ndarray = np.sqrt(np.diag(self._wide))
        return result

    @cached_property
    def _near(self) -> Linear:
        with one_thread():
            return linear_scores(self._centroids, self._wide)

    @cached_property
    def _around(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return F, l and c: |x F|^2 + l x + c, less twice the best linear score, is the relative distance.

        The Gaussian of all cells has the centroids' own scatter beside the spread, so the difference of the
        two inverse covariances has no more rows than there are centroids (Woodbury's identity).
        """
        mean = self._centroids.mean(axis=0)
        off = (self._centroids - mean) / np.sqrt(len(self._centroids))
        with one_thread():
            solved = np.linalg.solve(self._wide, off.T)
            inner = np.linalg.inv(np.eye(len(off)) + off @ solved)
            bent = solved @ np.linalg.cholesky(inner)
            plain = np.linalg.solve(self._wide, mean)
        linear = plain - bent @ (bent.T @ mean)
        return bent, 2 * linear, -float(mean @ linear)


@dataclass(frozen=True, eq=False)
class ExactAnnotator:
    """A solved memory with the lineage's labels and genes; it needs no network.

    Attributes
    ----------
    classifier : ExactClassifier
    labels : tuple of str
        Cell types in the lineage's order; one without cells in the sums is never predicted.
    genes : tuple of str
        The panel, in the order of the columns of ``expression``; the basis's genes are its beginning.
    calibration : Calibration
        From scores to probabilities.
    novelty : SumsRule or None
        Without one, no cell is novel.
    ontology : dict
        Cell Ontology ids of labels.
    strays : dict
        Stage -> share of its known cells that is Unassigned where it is left out of the sums: an estimate for
        a new study.
    promise : float
        The share of known cells of learned studies that the rule may call Unassigned.
    """

    classifier: ExactClassifier
    labels: tuple[str, ...]
    genes: tuple[str, ...]
    calibration: Calibration = field(default_factory=Calibration)
    novelty: SumsRule | None = None
    ontology: Mapping[str, str] = field(default_factory=dict)
    strays: Mapping[str, float] = field(default_factory=dict)
    promise: float = PROMISE

    def __post_init__(self) -> None:
        if unknown := [name for name in self.classifier.labels if name not in self.labels]:
            raise SumsError(f"the sums hold types that are no labels: {', '.join(unknown[:5])}")
        if self.genes[: len(self.classifier.basis.genes)] != self.classifier.basis.genes:
            raise SumsError("the panel does not begin with the genes of the basis; restore the model")

    def predict(self, expression: np.ndarray) -> Prediction:
        """Return types, confidence and novelty of cells from expression ``(n_cells, n_genes)``.

        Raises
        ------
        SumsError
            If the number of columns is not the number of genes.
        """
        centred = self.classifier.centred(self.levels(expression))
        logits, learned = self.answered_centred(centred)
        novelty = None
        if self.novelty is not None:
            score = self.novelty.score(self.novelty_parts_centred(centred))
            novelty = score, self.novelty.is_novel(score)
        return Prediction.of(self.labels, logits, self.probabilities(logits), novelty, learned)

    def levels(self, expression: np.ndarray) -> np.ndarray:
        """Return the levels of expression ``(n_cells, n_genes)``."""
        if expression.ndim != 2 or expression.shape[1] != len(self.genes):
            raise SumsError(
                f"expression must have one column for each of the {len(self.genes)} panel genes, "
                f"found shape {expression.shape}"
            )
        return self.classifier.basis.levels(expression)

    def logits_of(self, levels: np.ndarray) -> np.ndarray:
        """Return scores in the order of the labels, float64 ``(n_cells, n_types)``; -inf without sums."""
        return self.answered_centred(self.classifier.centred(levels))[0]

    def answered_centred(self, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `logits_of` of centred levels, and whether a cell resembles those of the learned studies."""
        logits = np.full((len(centred), len(self.labels)), -np.inf)
        logits[:, self.positions], learned = self.classifier.answered_centred(centred)
        return logits, learned

    def logits(self, expression: np.ndarray) -> np.ndarray:
        """Return as `logits_of` does for expression ``(n_cells, n_genes)``."""
        return self.logits_of(self.levels(expression))

    def novelty_parts(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the components of the novelty of cells; see `NoveltyScores`."""
        return self.novelty_parts_centred(self.classifier.centred(levels))

    def novelty_parts_centred(self, centred: np.ndarray) -> dict[str, np.ndarray]:
        """Return as `novelty_parts` does for levels that `ExactClassifier.centred` has centred."""
        return self.novelty_scores.of_centred(centred)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of logits, ``(n_cells, n_types)``."""
        return self.calibration.probabilities(logits)

    def log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return logarithms of `probabilities`; -inf only for a type without sums."""
        return self.calibration.log_probabilities(logits)

    def without(self, missing: Collection[str]) -> ExactAnnotator:
        """Return this annotator for cells of which some genes were never measured."""
        return _without_genes(self, frozenset(missing)) if missing else self

    def with_rule(self, calibration: Calibration, novelty: SumsRule | None) -> ExactAnnotator:
        """Return this annotator with another calibration and novelty rule."""
        return replace(self, calibration=calibration, novelty=novelty)

    def with_ontology(self, ids: Mapping[str, str]) -> ExactAnnotator:
        """Return this annotator with more Cell Ontology ids, but for those of no label of its own."""
        own = {name: ids[name] for name in self.labels if name in ids}
        return replace(self, ontology={**self.ontology, **own})

    def gene_weights(self) -> np.ndarray:
        """Return the weight of each gene for each type, at least 0, float64 ``(n_types, n_genes)``.

        The largest change over a type's centroids of its score, less the mean of all centroids, by a step of
        the gene, times the gene's standard deviation within types.
        """
        weights: np.ndarray = np.abs(self.gene_weights_by_side()[SUMS])
        return weights

    def gene_weights_by_side(self) -> dict[str, np.ndarray]:
        """Return `gene_weights` with signs, as ``SUMS``: the sign is that of the centroid that decides."""
        classifier = self.classifier
        linear = classifier.own.linear.weights
        made = (linear - linear.mean(axis=0)) * np.sqrt(np.diag(classifier.covariance))
        weights = np.zeros((len(self.labels), len(self.genes)))
        for owner, position in enumerate(self.positions):
            own = made[classifier.owners == owner]
            decides = np.abs(own).argmax(axis=0)
            weights[position, : made.shape[1]] = np.take_along_axis(own, decides[None], axis=0)[0]
        return {SUMS: weights}

    def attributions(self, expression: np.ndarray, types: np.ndarray) -> np.ndarray:
        """Return how much each gene's level changes a type's score beside the mean of all others' scores.

        Scores are linear, so this is level times weight, for the type's centroid that is nearest to the cell.

        Parameters
        ----------
        expression
            float32 log2(1 + counts per 10,000), ``(n_cells, n_genes)``.
        types
            For each cell the position of a type among the labels, ``(n_cells,)``.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_cells, n_genes)``; 0 for a type without sums.
        """
        classifier = self.classifier
        result = np.zeros(expression.shape, dtype=np.float32)
        levels, n = self.levels(expression), int(classifier.there.sum())
        scores, linear = classifier.own.scores(classifier.centred(levels), n), classifier.own.linear.weights
        linear = linear - linear[:, classifier.there].mean(axis=1, keepdims=True)  # levels are centred
        mean = np.stack(
            [linear[classifier.owners == owner].mean(axis=0) for owner in range(len(classifier.labels))]
        )
        for owner, position in enumerate(self.positions):
            rows = np.flatnonzero(types == position)
            own = np.flatnonzero(classifier.owners == owner)
            nearest = own[scores[rows][:, own].argmax(axis=1)]
            others = np.delete(mean, owner, axis=0).mean(axis=0)
            result[rows, : levels.shape[1]] = levels[rows] * (linear[nearest] - others)
        return result

    def represented(self, expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a score for each centroid, and logits ``(n_cells, n_types)`` of cells.

        Centroids' scores span the space in which the types differ; each cell's are taken from their mean.
        """
        levels, classifier = self.levels(expression), self.classifier
        scores = classifier.own.scores(classifier.centred(levels), int(classifier.there.sum()))
        return scores - scores.mean(axis=1, keepdims=True), self.logits_of(levels)

    def predict_represented(self, expression: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Return the prediction, and the centroids' scores of `represented`, as float32."""
        return self.predict(expression), self.represented(expression)[0].astype(np.float32)

    @property
    def temperature(self) -> float:
        """Divides scores before they become probabilities."""
        return self.calibration.temperature

    def on(self, device: str) -> ExactAnnotator:
        """Return this annotator: sums are computed on the CPU, where whole numbers are exact."""
        return self

    def about(self) -> dict[str, Any]:
        """Return the settings of a prediction, for an annotation's record."""
        rule = None if self.novelty is None else self.novelty.to_json()
        return {"novelty": rule, **self.calibration.to_json(), "method": "exact", **self.expected()}

    def expected(self) -> dict[str, Any]:
        """Return the expected shares of Unassigned known cells, where they were estimated."""
        if not self.strays:
            return {}
        promised = {} if self.promise == PROMISE else {"false_unassigned": self.promise}
        return {"strays": dict(self.strays), **promised}

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that decide an answer."""
        return json_digest([self.classifier.digest(), list(self.labels), list(self.genes), self.about()])

    @cached_property
    def positions(self) -> np.ndarray:
        """Positions of the sums' types among the labels, int64 ``(n_types of the sums,)``."""
        return np.array([self.labels.index(name) for name in self.classifier.labels], dtype=np.int64)

    @cached_property
    def novelty_scores(self) -> NoveltyScores:
        """The components of the novelty score, whose solution is kept between predictions."""
        return NoveltyScores(self.classifier)

    def save(self, folder: Path) -> None:
        """Write classifier, basis, labels, genes and rule to ``folder``, whole or not at all."""
        document = {
            "format": FORMAT,
            "labels": list(self.labels),
            "genes": list(self.genes),
            **self.calibration.to_json(),
            "novelty": None if self.novelty is None else self.novelty.to_json(),
            "ontology": dict(self.ontology),
            "strays": {},
            **self.expected(),
            "digest": self._stored_digest(),
        }
        with new_folder(folder) as temporary:
            self.classifier.save(temporary)
            write_json(temporary / CONFIG, document)

    def _stored_digest(self) -> str:
        return json_digest([self.digest(), dict(self.ontology)])

    @classmethod
    def load(cls, folder: Path) -> ExactAnnotator:
        """Read what `save` wrote; raises `SumsError` if anything is missing, damaged or does not fit."""
        classifier, path = ExactClassifier.load(folder), folder / CONFIG
        try:
            document = read_json(path)
            if document["format"] != FORMAT:
                raise SumsError(f"{path} is of a format that this canal does not know")
            rule = document["novelty"]
            found = cls(
                classifier,
                _names(document["labels"]),
                _names(document["genes"]),
                Calibration(float(document["temperature"]), float(document["floor"])),
                None if rule is None else SumsRule.from_json(rule),
                dict(document["ontology"]),
                {str(name): float(share) for name, share in document["strays"].items()},
                float(document.get("false_unassigned", PROMISE)),
            )
            if found._stored_digest() != document["digest"]:
                raise SumsError(f"{folder} holds other numbers than {CONFIG} says; restore the model")
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error


@lru_cache(maxsize=8)  # a service's client sends the same genes again and again
def _without_genes(annotator: ExactAnnotator, missing: frozenset[str]) -> ExactAnnotator:
    return replace(annotator, classifier=annotator.classifier.without(missing))


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(str(name) for name in values)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names must be unique and at least one, found {list(names)[:10]}")
    return names
