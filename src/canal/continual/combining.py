"""Combine network and sums into one annotator: weight, temperatures and novelty rule, by validation cells.

Also how well the combined annotator detects a type that neither network nor sums have learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canal.config.sections import Novelty
from canal.continual.exact_learner import (
    ExactLearner,
    HeldOutResult,
    LabelledLevels,
    NoveltyParts,
    best_choice,
    can_be_held_out,
    summary,
)
from canal.continual.fit import Hooks
from canal.continual.held_out_heads import (
    GeneScores,
    HeadCells,
    HeldOutHead,
    Part,
    evaluate_head,
    learn_without,
    to_hold_out,
)
from canal.continual.novelty_choice import fit_network_centroids
from canal.core.progress import doing, each
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import PARTS, SumsRule, fit_calibration, unsqueezed
from canal.model.annotator import Annotator
from canal.model.centroids import NETWORK_PARTS, NetworkCentroids
from canal.model.combined import (
    NETWORK_PART,
    PUBLISHED_PART,
    Combination,
    CombinedAnnotator,
    CombinedRule,
    margins,
    named_distances,
    widened,
)
from canal.model.compute import in_threads
from canal.model.head import Head

WEIGHTS = (0.0, 0.25, 0.5, 0.75)
"""Weights of the network that are tried; at 0 the sums answer alone."""

FAST_SHARE = 0.02
"""Share of validation cells that the network predicts with ``--effort fast``."""

CHOICES: tuple[tuple[str, ...], ...] = (
    (NETWORK_PART,),
    PARTS[:1],
    PARTS[1:],
    (NETWORK_PART, *PARTS[:1]),
    (PUBLISHED_PART, *PARTS[:1]),
    (PUBLISHED_PART, *PARTS[1:]),
    PARTS,
    (NETWORK_PART, *PARTS),
    (PUBLISHED_PART, *PARTS),
    NETWORK_PARTS[:1],
    NETWORK_PARTS[1:],
    (NETWORK_PARTS[0], *PARTS[:1]),
    (NETWORK_PARTS[1], *PARTS[:1]),
    (PUBLISHED_PART, *NETWORK_PARTS),
)
"""Choices of components for the combined novelty score."""


@dataclass(frozen=True, eq=False)
class NetworkOutputs:
    """Outputs of a network for validation cells.

    Attributes
    ----------
    logits : numpy.ndarray
        ``(n_cells, n_types)``.
    novelty_parts : dict
        The network's components of their novelty, ``(n_cells,)`` each.
    """

    logits: np.ndarray
    novelty_parts: Mapping[str, np.ndarray]


@doing("weighing network and sums")
def combine(
    network: Annotator,
    exact: ExactAnnotator,
    validation: LabelledLevels,
    outputs: NetworkOutputs,
    settings: Novelty,
    parts: Sequence[str],
) -> CombinedAnnotator:
    """Return network and sums as one annotator.

    The weight is the one with the least cross-entropy on validation cells, unless the sums alone come within
    one standard error of it: then they answer alone, and the network is never run (the one-standard-error
    rule; Breiman et al. 1984).

    Parameters
    ----------
    network, exact
        Each with its own temperature and novelty rule.
    validation
        Cells that neither has learned from.
    outputs
        The network's, for these cells.
    settings
        Which share of validation cells may be called Unassigned.
    parts
        Components of the combined novelty score, where both answer.
    """
    log_probabilities = exact.log_probabilities(validation.logits(exact))
    targets = np.array([exact.labels.index(name) for name in validation.cell_types], dtype=np.int64)
    plain, by_network = Combination(0.0, network.temperature), widened(outputs.logits, len(exact.labels))
    weight = chosen_weight(plain, by_network, log_probabilities, targets)
    chosen = replace(plain, weight=weight, fast_margin=fast_margin(np.exp(log_probabilities)))
    calibration = fit_calibration(chosen.of(by_network, log_probabilities), targets)
    combined = CombinedAnnotator(network, exact, replace(chosen, calibration=calibration))
    return with_rule(combined, validation, outputs.novelty_parts, settings, parts)


def with_rule(
    combined: CombinedAnnotator,
    validation: LabelledLevels,
    network_parts: Mapping[str, np.ndarray],
    settings: Novelty,
    parts: Sequence[str],
    centroids: NetworkCentroids | None = None,
) -> CombinedAnnotator:
    """Return the annotator with a novelty rule of some components, fitted on validation cells.

    ``network_parts`` are the network's components for these cells; ``centroids`` are needed where one of the
    chosen components is a distance to them.
    """
    rule = rule_of({**network_parts, **validation.novelty_parts(combined.exact)}, parts, settings)
    kept = None if rule is None or centroids is None else centroids.only(parts)
    return replace(combined, novelty=rule, centroids=kept)


def chosen_weight(plain: Combination, network: np.ndarray, exact: np.ndarray, targets: np.ndarray) -> float:
    """Return the network's weight by the one-standard-error rule; a half where nothing can be measured."""
    if not len(targets):
        return 0.5
    rows = np.arange(len(targets))
    costs = {}
    for weight in WEIGHTS:
        logs = np.maximum(replace(plain, weight=weight).of(network, exact), np.log(1e-12))
        costs[weight] = -logs[rows, targets]
    best = min(WEIGHTS, key=lambda weight: (costs[weight].mean(), weight))
    gain = costs[WEIGHTS[0]] - costs[best]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return WEIGHTS[0] if gain.mean() <= error else best


def rule_of(
    components: Mapping[str, np.ndarray], parts: Sequence[str], settings: Novelty
) -> CombinedRule | None:
    """Return the novelty rule of these components, fitted on validation cells; None without cells."""
    return CombinedRule.fitted(components, parts, settings.false_unassigned)


@dataclass(frozen=True, eq=False)
class ComponentChoice:
    """Leave-one-type-out validation of network and sums together.

    Attributes
    ----------
    scores : GeneScores
        The network's gene scores of training, validation and test cells.
    learner : ExactLearner
        The sums, and how they are solved.
    validation, test : LabelledLevels
        Validation and test cells in the basis, in the order of ``scores``.
    seed : int
    parts : sequence of str
        Components of the network's own novelty score.
    combination : Combination
        That of the annotator itself.
    """

    scores: GeneScores
    learner: ExactLearner
    validation: LabelledLevels
    test: LabelledLevels
    seed: int
    parts: Sequence[str]
    combination: Combination

    def chosen_parts(self, heads: dict[str, HeldOutHead]) -> tuple[str, ...]:
        """Return the entry of `CHOICES` that best detects held-out types.

        Of two equal choices the one with fewer components is taken; where no type can be held out, all
        components of the sums with the published score. ``heads`` are held-out-type heads that were learned
        before; further ones are added.
        """
        on_validation = replace(
            self, scores=replace(self.scores, test=self.scores.validation), test=self.validation
        )
        share, known = self.learner.novelty.false_unassigned, self.learner.sums.types
        h_scores = [
            on_validation._novelty_parts(name, heads).h_scores(CombinedRule, CHOICES, share)
            for name in each(self.scores.labels, "choosing the novelty score: without {}".format)
            if can_be_held_out(name, known, self.validation.cell_types)
        ]
        return best_choice(h_scores, CHOICES, (PUBLISHED_PART, *PARTS))

    def result(self, cell_type: str, parts: Sequence[str], heads: dict[str, HeldOutHead]) -> HeldOutResult:
        """Return the predictions of test cells by network and sums that never learned ``cell_type``."""
        share = self.learner.novelty.false_unassigned
        return self._novelty_parts(cell_type, heads).result(CombinedRule, parts, share)

    def _novelty_parts(self, cell_type: str, heads: dict[str, HeldOutHead]) -> NoveltyParts:
        """Return all components for validation and test cells, by network and sums without a type."""
        if cell_type not in heads:
            epochs = self.learner.novelty.shadow_epochs
            heads[cell_type] = learn_without(cell_type, self.scores, epochs, self.seed)
        held_out = heads[cell_type]
        labels = tuple(held_out.labels)
        exact = self.learner.without_type(cell_type, labels, self.validation, PARTS)
        validation, test = self.validation.of_types(labels), self.test.of_types({*labels, cell_type})
        with torch.no_grad():
            logits = held_out.head.from_scores(held_out.test[0]).logits.numpy()
        truth = np.array(test.cell_types, dtype=object)
        combined = self.combination.of(logits, exact.log_probabilities(test.logits(exact)))
        network_parts_of = self._network_parts(held_out)
        return NoveltyParts(
            {**network_parts_of(held_out.validation), **validation.novelty_parts(exact)},
            {**network_parts_of(held_out.test), **test.novelty_parts(exact)},
            truth == cell_type,
            np.array(labels, dtype=object)[combined.argmax(axis=1)] == truth,
        )

    def _network_parts(self, held_out: HeldOutHead) -> Callable[[Part], dict[str, np.ndarray]]:
        """Return a function from gene scores of cells to the network's components of their novelty."""
        train, types = held_out.train
        in_network = fit_network_centroids(held_out.head, train, types.tolist())
        centroids = {NETWORK_PART: held_out.centroids().only(self.parts), PUBLISHED_PART: None}

        def parts_of(cells: Part) -> dict[str, np.ndarray]:
            tested, seed = replace(held_out, test=cells), [self.seed, *held_out.cell_type.encode()]
            scores = {
                part: evaluate_head(tested, self.learner.novelty, np.random.default_rng(seed), own).score
                for part, own in centroids.items()
            }
            distances = distances_in_network(held_out.head, in_network, cells[0])
            return {**scores, NETWORK_PART: unsqueezed(scores[NETWORK_PART]), **distances}

        return parts_of


@torch.no_grad()
def distances_in_network(head: Head, centroids: NetworkCentroids, scores: Tensor) -> dict[str, np.ndarray]:
    """Return by name how far cells of gene scores ``(n_cells, n_genes + 1)`` are from the centroids."""
    return named_distances(centroids, centroids.of(scores, head.from_scores(scores).manifold))


def fast_margin(probabilities: np.ndarray) -> float:
    """Return the margin of the two likeliest types that a share `FAST_SHARE` of cells does not reach."""
    if not len(probabilities) or probabilities.shape[1] < 2:
        return 0.0
    return float(np.quantile(margins(probabilities), FAST_SHARE, method="lower"))


# Held-out types.


def held_out_types(
    annotator: ExactAnnotator | CombinedAnnotator,
    learner: ExactLearner,
    cells: HeadCells,
    seed: int,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Return how well each type that `canal.continual.held_out_heads.to_hold_out` names is detected.

    As `canal.continual.held_out_heads.held_out_type_heads`, for annotators with sums: a type is left out of
    the sums with its scatter, exactly; a network's head is learned anew without the type. The rule is fitted
    without the type, with the components of the annotator's own rule.
    """
    novelty = learner.novelty
    by_network = isinstance(annotator, CombinedAnnotator)
    reasons = to_hold_out(novelty, annotator.labels, cells, by_network)
    names = [name for name, reason in reasons.items() if not reason]
    if not names:
        return summary([], reasons)
    validation, test = (
        LabelledLevels.of_cells(some, learner.sums) for some in (cells.validation, cells.test)
    )
    parts = tuple(annotator.novelty.parts) if annotator.novelty else ()
    if isinstance(annotator, ExactAnnotator):
        results = [
            learner.parts_without_type(name, annotator.labels, validation, test).result(
                SumsRule, parts, novelty.false_unassigned
            )
            for name in each(names, "measuring novelty: without {}".format)
        ]
    else:
        network = annotator.network
        own_parts = network.novelty.parts if network.novelty else ()
        scores = GeneScores.of(network, cells, hooks)
        choice = ComponentChoice(scores, learner, validation, test, seed, own_parts, annotator.combination)
        learn = partial(learn_without, scores=scores, epochs=novelty.shadow_epochs, seed=seed)
        with doing(f"measuring novelty: learning {len(names)} heads, each without one type"):
            heads = dict(zip(names, in_threads(learn, names), strict=True))
        without = each(names, "measuring novelty: without {}".format)
        results = [choice.result(name, parts, heads) for name in without]
    return summary([one.document(name) for name, one in zip(names, results, strict=True)], reasons)
