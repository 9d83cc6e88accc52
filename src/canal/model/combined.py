"""The annotator that combines a network and sums, with weights that were fitted on validation cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from canal.core.digests import json_digest
from canal.core.errors import ModelError
from canal.core.files import write_json
from canal.memory import NETWORK, SUMS
from canal.memory.answer import ExactAnnotator
from canal.memory.levels import log_normalised
from canal.memory.prediction import PARTS, Calibration, PartsRule, Prediction, softmax, unsqueezed
from canal.model import COMBINATION, EXACT
from canal.model.annotator import LABELS, NETWORK_LABELS, Annotator
from canal.model.centroids import NETWORK_PARTS, NetworkCentroids
from canal.model.head import is_number
from canal.model.storage import read_document, weights_digest

FORMAT, FORMAT_WITH_CENTROIDS = 1, 2
"""Of combination.json: without, and with a file of the network's centroids beside it."""

NETWORK_PART, PUBLISHED_PART = "network", "published"
"""Components of a combined novelty score: the network's own score, and the published one (bbae047)."""


@dataclass(frozen=True)
class Combination:
    """How network and sums are combined: log-linear, each at its own temperature.

    Attributes
    ----------
    weight : float
        Of the network's log probabilities, 0...1; those of the sums have the rest. At 0 the sums answer
        alone, and the network is never run.
    network_temperature : float
        Divides the network's logits before they are combined.
    calibration : Calibration
        From combined log probabilities to probabilities.
    fast_margin : float
        Difference of the two largest probabilities by the sums below which a cell is unsure: with
        ``--effort fast`` the network predicts these cells alone.
    """

    weight: float
    network_temperature: float
    calibration: Calibration = field(default_factory=Calibration)
    fast_margin: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.weight, self.network_temperature, self.fast_margin)
        if not all(map(is_number, numbers)) or not 0 <= self.weight <= 1 or self.network_temperature <= 0:
            raise ModelError(
                f"a combination needs a weight of 0...1 and temperatures above 0, found {self}: "
                "restore the model"
            )

    def of(self, network: np.ndarray, exact: np.ndarray) -> np.ndarray:
        """Return combined log probabilities, before their calibration, float64 ``(n_cells, n_types)``.

        A type that one side alone knows (it has -inf on the other) keeps the probability that this side
        gives it; the rest of the mass is divided among the types that both know.

        Parameters
        ----------
        network
            The network's logits ``(n_cells, n_types)``.
        exact
            The sums' log probabilities, types in the same order; -inf for a type that has no sums.
        """
        logs = [log_normalised(np.asarray(network, dtype=np.float64) / self.network_temperature), exact]
        known = [np.isfinite(log).any(axis=0) for log in logs]
        both = known[0] & known[1]
        result = np.full(logs[0].shape, -np.inf)
        for log, own in zip(logs, (known[0] & ~both, known[1] & ~both), strict=True):
            result[:, own] = log[:, own]
        if both.any():
            with np.errstate(divide="ignore"):
                rest = np.log(np.maximum(1.0 - np.exp(result).sum(axis=1, keepdims=True), 0.0))
            shared = self.weight * logs[0][:, both] + (1 - self.weight) * logs[1][:, both]
            result[:, both] = log_normalised(shared) + rest
        return log_normalised(result)

    def to_json(self) -> dict[str, float]:
        """Return the fields as a JSON document."""
        names = ("weight", "network_temperature", "fast_margin")
        return {name: getattr(self, name) for name in names} | self.calibration.to_json()


class CombinedRule(PartsRule):
    """A rule with components of the network (two scores, distances to its centroids) and of the sums."""

    allowed = (NETWORK_PART, PUBLISHED_PART, *NETWORK_PARTS, *PARTS)
    error = ModelError
    what = "a combined novelty rule"

    @property
    def in_network(self) -> tuple[str, ...]:
        """The components that need the network's centroids, as in `NetworkCentroids.parts`."""
        return tuple(name for name in NETWORK_PARTS if name in self.parts)


@dataclass(frozen=True, eq=False)
class CombinedAnnotator:
    """A network and a solved memory whose predictions are combined.

    Attributes
    ----------
    network : Annotator
        As by the published method, with its own temperature and novelty rule.
    exact : ExactAnnotator
    combination : Combination
    novelty : CombinedRule or None
        Without one, no cell is novel.
    centroids : NetworkCentroids or None
        The network's, if the rule needs them.
    """

    network: Annotator
    exact: ExactAnnotator
    combination: Combination
    novelty: CombinedRule | None = None
    centroids: NetworkCentroids | None = None

    def __post_init__(self) -> None:
        n = len(self.network.labels)
        if (self.network.labels, self.network.genes) != (self.exact.labels[:n], self.exact.genes):
            raise ModelError("network and sums are of other types or genes; restore the model")
        needed = self.novelty.in_network if self.novelty else ()
        given = self.centroids.parts if self.centroids else ()
        if needed != given:
            raise ModelError(
                f"the novelty rule needs {', '.join(needed) or 'no component'} from the network's centroids, "
                f"found {', '.join(given) or 'none'}; restore the model"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types, in the order of the logits; the network's, then those that the sums alone know."""
        return self.exact.labels

    @property
    def genes(self) -> tuple[str, ...]:
        """The panel."""
        return self.network.genes

    @property
    def ontology(self) -> Mapping[str, str]:
        """Cell Ontology ids of labels."""
        return self.network.ontology

    @property
    def temperature(self) -> float:
        """Divides combined log probabilities before they become probabilities."""
        return self.combination.calibration.temperature

    def predict(self, expression: np.ndarray) -> Prediction:
        """Return types, confidence and novelty of cells from expression ``(n_cells, n_genes)``."""
        return self.predict_represented(expression)[0]

    def predict_represented(self, expression: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Return the prediction, and the network's manifold ``(n_cells, 128)`` of cells, float32."""
        centroids = self.centroids or NetworkCentroids()
        by_network, (*measured, manifold) = self.network.predict_beside(
            expression, lambda scores, manifold: (*centroids.of(scores, manifold), manifold)
        )
        centred = self.exact.classifier.centred(self.exact.levels(expression))
        own, learned = self.exact.answered_centred(centred)
        by_both = widened(by_network.logits, len(self.labels))
        logits = self.combination.of(by_both, self.exact.log_probabilities(own))
        novelty = None
        if self.novelty is not None:
            parts = {
                **network_parts(self.network, by_network.logits, by_network.novelty),
                **named_distances(centroids, measured),
                **self.exact.novelty_parts_centred(centred),
            }
            score = self.novelty.score(parts)
            novelty = score, self.novelty.is_novel(score)
        answer = Prediction.of(self.labels, logits, self.probabilities(logits), novelty, learned)
        return answer, manifold.float().numpy()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of logits, ``(n_cells, n_types)``."""
        return self.combination.calibration.probabilities(logits)

    def without(self, missing: Collection[str]) -> CombinedAnnotator:
        """Return this annotator for cells of which some genes were never measured; the network is shared."""
        without = replace(self, network=self.network.without(missing), exact=self.exact.without(missing))
        if self.centroids is None or not missing:
            return without
        return replace(without, centroids=self.centroids.among(self.network.present(missing)))

    def gene_weights(self) -> np.ndarray:
        """Return the weight of each gene for each type, sides by their shares, ``(n_types, n_genes)``."""
        sides = self.gene_weights_by_side()
        result: np.ndarray = sides[NETWORK] + np.abs(sides[SUMS])
        return result

    def gene_weights_by_side(self) -> dict[str, np.ndarray]:
        """Return each side's part of `gene_weights`; a type that no network learned is all the sums'."""
        share = self.combination.weight
        sides = (self.network.gene_weights(), self.exact.gene_weights_by_side()[SUMS])
        own, exact = (side / np.maximum(np.abs(side).sum(axis=1, keepdims=True), 1e-300) for side in sides)
        network = np.zeros_like(exact)
        network[: len(own)] = share * own
        exact[: len(own)] *= 1 - share
        return {NETWORK: network, SUMS: exact}

    def represented(self, expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the network's manifold ``(n_cells, 128)`` and combined logits ``(n_cells, n_types)``."""
        manifold, logits = self.network.represented(expression)
        exact = self.exact.log_probabilities(self.exact.logits(expression))
        return manifold, self.combination.of(widened(logits, len(self.labels)), exact)

    def on(self, device: str) -> CombinedAnnotator:
        """Move the network to a device and return this annotator."""
        self.network.on(device)
        return self

    def about(self) -> dict[str, Any]:
        """Return the settings of a prediction, for an annotation's record."""
        return {
            "novelty": None if self.novelty is None else self.novelty.to_json(),
            **self.combination.calibration.to_json(),
            **self.exact.expected(),
            "method": "combined",
            "network_weight": self.combination.weight,
        }

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that decide an answer."""
        own = [self.combination.to_json(), self.about()]
        own += [] if self.centroids is None else [{"places": weights_digest(self.centroids.tensors())}]
        return json_digest([self.network.digest(), self.exact.digest(), *own])

    def save(self, folder: Path) -> None:
        """Write the network's files as the published method does, ``exact/`` and ``combination.json``.

        Where the rule needs the network's centroids, they are one more file.
        """
        self.network.save(folder)
        if self.labels != self.network.labels:
            write_json(folder / NETWORK_LABELS, list(self.network.labels))
            write_json(folder / LABELS, list(self.labels))
        self.exact.save(folder / EXACT)
        rule = None if self.novelty is None else self.novelty.to_json()
        number = FORMAT if self.centroids is None else FORMAT_WITH_CENTROIDS
        if self.centroids is not None:
            self.centroids.save(folder)
        write_json(folder / COMBINATION, {"format": number, **self.combination.to_json(), "novelty": rule})

    @classmethod
    def load(cls, folder: Path) -> CombinedAnnotator:
        """Read what `save` wrote; raises `CanalError` if anything is missing, damaged or does not fit."""
        combination, rule = read_combination(folder)
        network, exact = Annotator.load(folder), ExactAnnotator.load(folder / EXACT)
        centroids = NetworkCentroids.load(folder, len(network.genes) + 1, len(network.labels))
        return cls(network, exact, combination, rule, centroids)


@dataclass(frozen=True, eq=False)
class FastAnnotator:
    """The sums predict, and the network the cells of which the sums are unsure.

    A cell is unsure where the probabilities of the two likeliest types by the sums differ by less than a
    margin, which was set so that 2 % of the validation cells are unsure: the result for a cell does not
    depend on other cells.

    Attributes
    ----------
    whole : CombinedAnnotator
    """

    whole: CombinedAnnotator

    @property
    def labels(self) -> tuple[str, ...]:
        """Cell types, in the order of the logits."""
        return self.whole.labels

    @property
    def genes(self) -> tuple[str, ...]:
        """The panel."""
        return self.whole.genes

    @property
    def ontology(self) -> Mapping[str, str]:
        """Cell Ontology ids of labels."""
        return self.whole.ontology

    @property
    def temperature(self) -> float:
        """That of the sums."""
        return self.whole.exact.temperature

    def predict(self, expression: np.ndarray) -> Prediction:
        """Return types, confidence and novelty of cells from expression ``(n_cells, n_genes)``.

        ``logits`` are log probabilities, since cells are predicted in two ways.
        """
        fast = self.whole.exact.predict(expression)
        logits = self.whole.exact.log_probabilities(fast.logits)
        unsure = margins(fast.probabilities) < self.whole.combination.fast_margin
        labels = np.array(fast.labels, dtype=object)
        if unsure.any():
            more = self.whole.predict(expression[unsure])
            labels[unsure] = more.labels
            fast.confidence[unsure], fast.novelty[unsure] = more.confidence, more.novelty
            fast.is_novel[unsure], fast.probabilities[unsure] = more.is_novel, more.probabilities
            logits[unsure] = self.whole.combination.calibration.log_probabilities(more.logits)
        return replace(fast, labels=labels.tolist(), logits=logits, by_network=unsure)

    def predict_represented(self, expression: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Return the prediction, and the network's manifold ``(n_cells, 128)`` of all cells, float32."""
        return self.predict(expression), self.whole.network.represented(expression)[0]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return softmax(logits), ``(n_cells, n_types)``."""
        return softmax(logits)

    def without(self, missing: Collection[str]) -> FastAnnotator:
        """Return this annotator for cells of which some genes were never measured; the network is shared."""
        return FastAnnotator(self.whole.without(missing))

    def gene_weights(self) -> np.ndarray:
        """Return the weight of each gene for each type in the sums, which predict most cells."""
        return self.whole.exact.gene_weights()

    def gene_weights_by_side(self) -> dict[str, np.ndarray]:
        """Return those of the sums, which predict most cells."""
        return self.whole.exact.gene_weights_by_side()

    def represented(self, expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the network's manifold ``(n_cells, 128)`` and the logits that give the labels."""
        return self.whole.represented(expression)[0], self.predict(expression).logits

    def on(self, device: str) -> FastAnnotator:
        """Move the network to a device and return this annotator."""
        self.whole.on(device)
        return self

    def about(self) -> dict[str, Any]:
        """Return the settings of a prediction, for an annotation's record."""
        return {**self.whole.about(), "effort": "fast", "fast_margin": self.whole.combination.fast_margin}

    def digest(self) -> str:
        """Return the SHA-256 of all numbers that decide an answer."""
        return json_digest([self.whole.digest(), "fast"])


def widened(logits: np.ndarray, n_types: int) -> np.ndarray:
    """Return a network's logits with -inf for further types, which it does not know."""
    more = np.full((len(logits), n_types - logits.shape[1]), -np.inf)
    return np.concatenate([logits, more], axis=1) if more.size else logits


def network_parts(network: Annotator, logits: np.ndarray, novelty: np.ndarray) -> dict[str, np.ndarray]:
    """Return the network's components of novelty, from its logits and its own score of cells."""
    rule = network.novelty
    published = novelty if rule is None else rule.published_score(logits)
    return {NETWORK_PART: unsqueezed(novelty), PUBLISHED_PART: published}


def named_distances(centroids: NetworkCentroids, measured: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Return the distances from `NetworkCentroids.of` by name, float64."""
    return {name: one.double().numpy() for name, one in zip(centroids.parts, measured, strict=True)}


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of the likeliest type less that of the second, ``(n_cells,)``."""
    top = np.sort(probabilities, axis=1)
    result: np.ndarray = top[:, -1] - top[:, -2] if top.shape[1] > 1 else top[:, 0]
    return result


def read_combination(folder: Path) -> tuple[Combination, CombinedRule | None]:
    """Read ``combination.json`` of a model folder; raises `ModelError` if it is damaged."""
    document = dict(read_document(folder, COMBINATION))
    try:
        number, rule = document.pop("format"), document.pop("novelty")
        if number not in (FORMAT, FORMAT_WITH_CENTROIDS):
            raise ModelError(f"{folder / COMBINATION} is of a format that this canal does not know")
        found = None if rule is None else CombinedRule.from_json(rule)
        if (number == FORMAT_WITH_CENTROIDS) != bool(found and found.in_network):
            raise ModelError(
                f"{folder / COMBINATION} is damaged: no rule of format {number} is {rule!r:.200}; "
                "restore the model"
            )
        calibration = Calibration(document.pop("temperature"), document.pop("floor"))
        return Combination(calibration=calibration, **document), found
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / COMBINATION} is damaged ({error}); restore the model") from error
