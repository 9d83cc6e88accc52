"""Heads that are learned without one cell type, to measure and to choose how novel types are detected.

The model itself learns all types; a held-out-type head is learned anew on the frozen network's gene scores.
Used where a stage chooses its novelty rule, and where it is evaluated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.config.sections import Novelty
from canal.continual.cells import LabelledCells
from canal.continual.exact_learner import HeldOutResult, best_choice, can_be_held_out, summary
from canal.continual.fit import Hooks, generator
from canal.continual.novelty_choice import Scored, fit_centroids, gene_scores, rule_of
from canal.core.progress import doing
from canal.model.annotator import Annotator
from canal.model.centroids import PARTS, TypeCentroids
from canal.model.compute import in_threads
from canal.model.head import Head, centre, new_head

Part = tuple[Tensor, np.ndarray]
MIN_TEST_CELLS = 5
MOST_HEADS = 10
"""Types that are held out from a network where params.yaml names none: each takes a head of its own."""
_LEARNING_RATE = 1e-3
_BATCH = 64

_SMOOTHING = 0.1
"""Published label smoothing: without it logits, and so energies, would be unlike the model's own."""

CHOICES: tuple[tuple[str, ...], ...] = ((), PARTS[:1], PARTS)
"""Choices of components that are added to the published score."""

ChoiceScores = Mapping[tuple[str, ...], float]
"""The H-score of each choice, for one held-out type."""


@dataclass(frozen=True, eq=False)
class HeadCells:
    """Cells that held-out-type heads are trained on, calibrated on and measured on.

    Attributes
    ----------
    train : LabelledCells
        Cells that the stage was trained on: its training cells and the replayed ones.
    validation : LabelledCells
        Its validation cells and the probe sets: they set the threshold.
    test : LabelledCells
        Test cells of all stages that can be measured.
    """

    train: LabelledCells
    validation: LabelledCells
    test: LabelledCells


def held_out_type_heads(
    annotator: Annotator, cells: HeadCells, settings: Novelty, seed: int, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Return how well each type that `to_hold_out` names is detected by a head that did not learn it.

    The frozen network's scores of every gene are computed once. For each held-out type the head's linear
    layers are learned anew without its cells, a novelty rule is fitted without them, with the components of
    the annotator's own rule, and the test cells are predicted. The backbone has seen the type, so this is
    kinder than leaving it out of the whole training. ``hooks`` say where the training has kept features of
    its cells.

    Returns
    -------
    dict
        ``holdouts``: for each type ``n_known`` and ``n_unknown`` test cells, ``known_accuracy`` (a known cell
        is right if it is not Unassigned and its type is right), ``unknown_accuracy`` (share of the type's
        cells that are Unassigned), their harmonic mean ``h_score``, and ``auroc`` of the score. ``h_score``
        and ``auroc``: means, or None. ``not_measured``: why a type was not measured.
    """
    reasons = to_hold_out(settings, annotator.labels, cells, by_network=True)
    testable = [name for name, reason in reasons.items() if not reason]
    if not testable:
        return summary([], reasons)
    scores = GeneScores.of(annotator, cells, hooks)
    parts = annotator.novelty.parts if annotator.novelty else ()

    def measure(cell_type: str) -> dict[str, Any]:
        held_out = learn_without(cell_type, scores, settings.shadow_epochs, seed)
        random = np.random.default_rng([seed, *_purpose(cell_type).encode()])
        result = evaluate_head(held_out, settings, random, held_out.centroids().only(parts))
        return result.document(cell_type)

    with doing(f"measuring novelty: {len(testable)} types, each left out once"):
        return summary(in_threads(measure, testable), reasons)


@dataclass(frozen=True, eq=False)
class GeneScores:
    """Gene scores ``(n_cells, n_genes + 1)`` and types of each set of cells, and the labels' order."""

    labels: tuple[str, ...]
    train: Part
    validation: Part
    test: Part

    @classmethod
    def of(cls, annotator: Annotator, cells: HeadCells, hooks: Hooks | None = None) -> GeneScores:
        """Return the frozen network's gene scores of the cells; those of test cells are not cached."""

        def part(some: LabelledCells, hooks: Hooks | None = None) -> Part:
            return gene_scores(annotator, some, hooks), np.array(some.cell_types, dtype=object)

        train, validation = part(cells.train, hooks), part(cells.validation, hooks)
        return cls(annotator.labels, train, validation, part(cells.test))


@dataclass(frozen=True, eq=False)
class HeldOutHead:
    """A head that did not learn one cell type, and the cells that it is evaluated on.

    ``train`` and ``validation`` hold no cell of ``cell_type``; ``test`` holds its cells and those of
    ``labels``.
    """

    cell_type: str
    labels: list[str]
    head: Head
    train: Part
    validation: Part
    test: Part

    def centroids(self) -> TypeCentroids:
        """Return the centroids of the types that the head learned."""
        scores, types = self.train
        return fit_centroids(scores, types.tolist())


def learn_without(cell_type: str, scores: GeneScores, epochs: int, seed: int) -> HeldOutHead:
    """Return a head whose linear layers are learned anew without the cells of a type."""
    train, types = _of_types(scores.train, set(scores.train[1]) - {cell_type})
    labels = [label for label in scores.labels if label in set(types)]
    head = _learn(train, types, labels, epochs, generator(seed, _purpose(cell_type)))
    validation = _of_types(scores.validation, set(labels))
    test = _of_types(scores.test, {*labels, cell_type})
    return HeldOutHead(cell_type, labels, head, (train, types), validation, test)


def to_hold_out(
    settings: Novelty, labels: Sequence[str], cells: HeadCells, by_network: bool
) -> dict[str, str]:
    """Return the types to hold out, each with the reason why it cannot be measured, or ``""``.

    These are ``settings.holdouts``; where it is None every type with enough cells, of a network those
    `MOST_HEADS` with most test cells.
    """
    named = settings.holdouts
    reasons = {name: obstacle(name, labels, cells) for name in (labels if named is None else named)}
    if named is None and by_network:
        counts = Counter(cells.test.cell_types)
        testable = sorted((name for name, why in reasons.items() if not why), key=lambda one: -counts[one])
        why = f"not among the {MOST_HEADS} types with most test cells: novelty.holdouts can name it"
        reasons |= dict.fromkeys(testable[MOST_HEADS:], why)
    return reasons


def obstacle(cell_type: str, labels: Sequence[str], cells: HeadCells) -> str:
    """Return why a held-out type cannot be measured, or ``""``."""
    n_unknown = cells.test.cell_types.count(cell_type)
    learned = set(cells.train.types) - {cell_type}
    if cell_type not in labels:
        return "not learned yet"
    if n_unknown < MIN_TEST_CELLS:
        return f"{n_unknown} test cells, at least {MIN_TEST_CELLS} are needed"
    if len(learned) < 2:
        return f"{len(learned)} other types to train on, at least 2 are needed"
    if not learned & set(cells.validation.types) or not learned & set(cells.test.types):
        return "no validation or test cells of the other types"
    return ""


@torch.no_grad()
def evaluate_head(
    held_out: HeldOutHead, settings: Novelty, random: np.random.Generator, centroids: TypeCentroids | None
) -> HeldOutResult:
    """Fit a novelty rule with these centroids on the head's validation cells, and predict its test cells."""
    (validation, types), (cells, truth) = held_out.validation, held_out.test
    rule = rule_of(held_out.head, (validation, types.tolist()), centroids, settings, random)
    logits = held_out.head.from_scores(cells).logits.numpy()
    score = rule.score(logits, None if centroids is None else centroids.of(cells))
    predicted = np.array(held_out.labels, dtype=object)[logits.argmax(axis=1)]
    return HeldOutResult(truth == held_out.cell_type, score, rule.is_novel(score), predicted == truth)


def _learn(
    scores: Tensor, types: np.ndarray, labels: list[str], epochs: int, random: torch.Generator
) -> Head:
    """Return a head learned on gene scores ``(n_cells, n_genes + 1)``; its filter lets them pass."""
    head = _start(scores, len(labels), random)
    targets = torch.tensor([labels.index(name) for name in types])
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(scores), generator=random), _BATCH):
            logits = head(scores[rows].unsqueeze(-1)).logits
            loss = functional.cross_entropy(logits, targets[rows], label_smoothing=_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head.requires_grad_(False)


@torch.no_grad()
def _start(scores: Tensor, n_types: int, random: torch.Generator) -> Head:
    head = new_head(scores.unsqueeze(-1), n_types, random)
    # Scores have been through the model's filter: this head's own is the identity.
    head.filter.weight.fill_(1.0)
    head.filter.bias.zero_()
    centre(head.to_manifold, scores)
    centre(head.to_representation, head.manifold(scores.unsqueeze(-1)))
    head.filter.requires_grad_(False)
    return head


def _purpose(cell_type: str) -> str:
    """Return the name that random generators are seeded with; another one would give other heads."""
    return f"shadow head without {cell_type}"


def _of_types(part: Part, wanted: set[str]) -> Part:
    scores, types = part
    rows = np.flatnonzero([name in wanted for name in types])
    return scores[torch.from_numpy(rows)], types[rows]


# Choosing the components of a novelty score.


@doing("choosing the novelty score: each type left out once")
def chosen_parts(
    labels: Sequence[str],
    validation: Scored,
    trained: Scored,
    settings: Novelty,
    seed: int,
    heads: dict[str, HeldOutHead] | None = None,
) -> tuple[str, ...]:
    """Choose the components of the novelty score by leave-one-type-out validation.

    Each type is left out in turn: a head is learned without it on the training cells, and evaluated on
    validation cells and probe sets. The choice with the highest mean H-score over types is taken, of equal
    ones that with fewer components. Where no type can be left out, all components are taken.

    Parameters
    ----------
    labels
        The types, in the order of the logits.
    validation, trained
        As in `canal.continual.novelty_choice.with_rule`. No test cell is used.
    heads
        Gains the head that was learned without each type, where the caller needs them further.
    """
    parts = [(scores, np.array(types, dtype=object)) for scores, types in (trained, validation, validation)]
    scores = GeneScores(tuple(labels), *parts)
    return best_parts(list(left_out(scores, settings, seed, heads).values()))


def left_out(
    scores: GeneScores, settings: Novelty, seed: int, heads: dict[str, HeldOutHead] | None = None
) -> dict[str, ChoiceScores]:
    """Return for each type that can be left out the H-score of each choice on the validation cells."""
    (_, types), (_, checked) = scores.train, scores.validation
    learned, validated = types.tolist(), checked.tolist()
    names = [name for name in scores.labels if can_be_held_out(name, {*learned, name}, validated)]
    on_validation = replace(scores, test=scores.validation)
    one = partial(_choice_scores, scores=on_validation, settings=settings, seed=seed, heads=heads)
    return dict(zip(names, in_threads(one, names), strict=True))


def best_parts(h_scores: Sequence[ChoiceScores]) -> tuple[str, ...]:
    """Return the choice with the highest mean H-score; all components where no type was left out."""
    return best_choice(h_scores, CHOICES, PARTS)


def _choice_scores(
    cell_type: str, scores: GeneScores, settings: Novelty, seed: int, heads: dict[str, HeldOutHead] | None
) -> ChoiceScores:
    held_out = learn_without(cell_type, scores, settings.shadow_epochs, seed)
    if heads is not None:
        heads[cell_type] = held_out
    centroids = held_out.centroids()
    return {
        parts: evaluate_head(held_out, settings, np.random.default_rng(seed), centroids.only(parts)).h_score
        for parts in CHOICES
    }
