"""How network and sums become one answer: weights, temperatures and novelty, set on known cells.

Also how well that answer notices a type that neither sums nor network ever learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canal.config.sections import Memory, Novelty
from canal.continual.fit import Hooks
from canal.continual.novelty_choice import fit_network_places
from canal.continual.remembering import (
    AskedParts,
    Known,
    Noticed,
    asked_without,
    best_choice,
    can_be_left_out,
    summary,
    without_type,
)
from canal.continual.shadow import GeneScores, Part, Shadow, ShadowCells, ask, learn_without, obstacle
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import PARTS, SumsRule, fit_calibration, unsqueezed
from canal.memory.stage_sums import StageSums
from canal.model.annotator import Annotator
from canal.model.combined import (
    NETWORK_PART,
    PUBLISHED_PART,
    Combination,
    CombinedAnnotator,
    CombinedRule,
    margins,
    told_apart,
)
from canal.model.compute import in_lanes
from canal.model.head import Head
from canal.model.places import NETWORK_PARTS, NetworkPlaces

WEIGHTS = (0.0, 0.25, 0.5, 0.75)
"""Weights of the network that are tried; at 0 the sums answer alone."""

FAST_SHARE = 0.02
"""Share of known cells about which the network is asked where a fast answer is wanted."""

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
"""What the novelty of both may be made of."""


def combine(
    network: Annotator,
    exact: ExactAnnotator,
    known: Known,
    logits: np.ndarray,
    apart: Mapping[str, np.ndarray],
    settings: Novelty,
    parts: Sequence[str],
) -> CombinedAnnotator:
    """Return network and sums as one annotator.

    The weight is the one with the least cross-entropy on known cells, unless the sums alone come within one
    standard error of it: then they answer alone, and the network is never run (the one-standard-error rule;
    Breiman et al. 1984).

    Parameters
    ----------
    network, exact
        Each with its own temperature and novelty rule.
    known
        Cells that neither has learned from.
    logits, apart
        What the network says of them, ``(n_cells, n_types)``, and its parts of their novelty.
    settings
        What share of known cells may be called Unassigned.
    parts
        What the novelty of both is made of, where both answer.
    """
    said = exact.log_probabilities(known.logits(exact))
    targets = np.array([network.labels.index(name) for name in known.cell_types], dtype=np.int64)
    plain = Combination(0.0, network.temperature)
    weight = chosen_weight(plain, logits, said, targets)
    chosen = replace(plain, weight=weight, fast_margin=_margin(np.exp(said)))
    calibration = fit_calibration(chosen.of(logits, said), targets)
    whole = CombinedAnnotator(network, exact, replace(chosen, calibration=calibration))
    return with_rule(whole, known, apart, settings, parts)


def with_rule(
    whole: CombinedAnnotator,
    known: Known,
    apart: Mapping[str, np.ndarray],
    settings: Novelty,
    parts: Sequence[str],
    places: NetworkPlaces | None = None,
) -> CombinedAnnotator:
    """Return an annotator whose novelty is made of some parts, its rule set on known cells; as `combine`.

    ``places`` are those in the network, needed where one of the parts is theirs.
    """
    rule = rule_of({**apart, **known.apart(whole.exact)}, parts, settings)
    kept = None if rule is None or places is None else places.only(parts)
    return replace(whole, novelty=rule, places=kept)


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
    apart = costs[WEIGHTS[0]] - costs[best]
    error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.inf
    return WEIGHTS[0] if apart.mean() <= error else best


def rule_of(found: Mapping[str, np.ndarray], parts: Sequence[str], settings: Novelty) -> CombinedRule | None:
    """Return a rule of these parts that keeps its promise on known cells; None without any."""
    return CombinedRule.fitted(found, parts, settings.false_unassigned)


@dataclass(frozen=True, eq=False)
class LeavingOut:
    """Types left out of network and sums, each in turn.

    Attributes
    ----------
    scores : GeneScores
        What the network makes of trained, known and tested cells.
    sums : StageSums
    known, test : Known
        The known and the tested cells in the basis, in the order of ``scores``.
    memory, novelty, seed
        As in `canal.config.params.Config`.
    parts : sequence of str
        What the network's own novelty is made of.
    combination : Combination
        Of the annotator itself.
    """

    scores: GeneScores
    sums: StageSums
    known: Known
    test: Known
    memory: Memory
    novelty: Novelty
    seed: int
    parts: Sequence[str]
    combination: Combination

    def chosen_parts(self, shadows: dict[str, Shadow]) -> tuple[str, ...]:
        """Return what of `CHOICES` best notices types that neither network nor sums have learned.

        Of two choices alike the one of fewer parts; where no type can be left out, all parts. ``shadows``
        are heads that were learned without a type already; more are added.
        """
        labels, types = self.scores.labels, self.known.cell_types
        found = [
            self._noticed(name, shadows) for name in labels if can_be_left_out(name, self.sums.types, types)
        ]
        return best_choice(found, CHOICES, (PUBLISHED_PART, *PARTS))

    def measured(self, name: str, parts: Sequence[str], shadows: dict[str, Shadow]) -> Noticed:
        """Return how the tested cells look to network and sums that never learned type ``name``."""
        return self._asked(name, shadows).noticed(CombinedRule, parts, self.novelty.false_unassigned)

    def _noticed(self, name: str, shadows: dict[str, Shadow]) -> dict[tuple[str, ...], float]:
        known = replace(self, scores=replace(self.scores, test=self.scores.known), test=self.known)
        return known._asked(name, shadows).h_scores(CombinedRule, CHOICES, self.novelty.false_unassigned)

    def _asked(self, name: str, shadows: dict[str, Shadow]) -> AskedParts:
        """Return all that network and sums without type ``name`` say of known and tested cells."""
        if name not in shadows:
            shadows[name] = learn_without(name, self.scores, self.novelty.shadow_epochs, self.seed)
        shadow = shadows[name]
        labels = tuple(shadow.labels)
        exact = without_type(self.sums, name, labels, self.known, self.memory, self.novelty, PARTS)
        known, test = self.known.of(labels), self.test.of({*labels, name})
        with torch.no_grad():
            logits = shadow.head.from_scores(shadow.test[0]).logits.numpy()
        truth = np.array(test.cell_types, dtype=object)
        said = self.combination.of(logits, exact.log_probabilities(test.logits(exact))).argmax(axis=1)
        ask_network = self._asking(shadow, name)
        return AskedParts(
            {**ask_network(shadow.known), **known.apart(exact)},
            {**ask_network(shadow.test), **test.apart(exact)},
            truth == name,
            np.array(labels, dtype=object)[said] == truth,
        )

    def _asking(self, shadow: Shadow, name: str) -> Callable[[Part], dict[str, np.ndarray]]:
        """Return what tells the network's parts of novelty of cells, given what a head makes of them."""
        train, types = shadow.train
        in_network = fit_network_places(shadow.head, train, types.tolist())
        places = {NETWORK_PART: shadow.places().only(self.parts), PUBLISHED_PART: None}

        def parts_of(cells: Part) -> dict[str, np.ndarray]:
            asked, seed = replace(shadow, test=cells), [self.seed, *name.encode()]
            scores = {
                part: ask(asked, self.novelty, np.random.default_rng(seed), place).score
                for part, place in places.items()
            }
            beside = apart_in_network(shadow.head, in_network, cells[0])
            return {**scores, NETWORK_PART: unsqueezed(scores[NETWORK_PART]), **beside}

        return parts_of


@torch.no_grad()
def apart_in_network(head: Head, places: NetworkPlaces, scores: Tensor) -> dict[str, np.ndarray]:
    """Return what places in a network tell of cells of gene scores ``(n_cells, n_genes + 1)``."""
    return told_apart(places, places.of(scores, head.from_scores(scores).manifold))


def _margin(probabilities: np.ndarray) -> float:
    """Return the margin below which about `FAST_SHARE` of known cells lie."""
    if not len(probabilities) or probabilities.shape[1] < 2:
        return 0.0
    return float(np.quantile(margins(probabilities), FAST_SHARE, method="lower"))


# Types that were held out.


def held_out_types(
    annotator: ExactAnnotator | CombinedAnnotator,
    sums: StageSums,
    cells: ShadowCells,
    memory: Memory,
    novelty: Novelty,
    seed: int,
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Return how well each type of ``novelty.holdouts`` is noticed; as `canal.continual.shadow.shadow_heads`.

    From the sums a type is left out with its scatter, exactly; of a network its head is learned anew. The
    rule is set without the type, of the parts that the annotator's own is made of.
    """
    reasons = {name: obstacle(name, annotator.labels, cells) for name in novelty.holdouts}
    names = [name for name, reason in reasons.items() if not reason]
    one = _asker(annotator, sums, cells, memory, novelty, seed, hooks, names) if names else None
    measured = [] if one is None else [one(name).document(name) for name in names]
    return summary(measured, reasons)


def _asker(
    annotator: ExactAnnotator | CombinedAnnotator,
    sums: StageSums,
    cells: ShadowCells,
    memory: Memory,
    novelty: Novelty,
    seed: int,
    hooks: Hooks | None,
    names: Sequence[str],
) -> Callable[[str], Noticed]:
    """Return what asks about the tested cells, given the name of the type that is left out."""
    known, test = (Known.of_cells(some, sums) for some in (cells.known, cells.test))
    parts = tuple(annotator.novelty.parts) if annotator.novelty else ()
    if isinstance(annotator, ExactAnnotator):
        labels, share = annotator.labels, novelty.false_unassigned
        return lambda name: asked_without(name, sums, labels, known, test, memory, novelty).noticed(
            SumsRule, parts, share
        )
    network = annotator.network
    leaving = LeavingOut(
        GeneScores.of(network, cells, hooks),
        sums,
        known,
        test,
        memory,
        novelty,
        seed,
        network.novelty.parts if network.novelty else (),
        annotator.combination,
    )
    heads = in_lanes(
        partial(learn_without, scores=leaving.scores, epochs=novelty.shadow_epochs, seed=seed), names
    )
    shadows = dict(zip(names, heads, strict=True))
    return lambda name: leaving.measured(name, parts, shadows)
