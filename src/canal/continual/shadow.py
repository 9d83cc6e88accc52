"""Heads that never learned one type: how well they notice it, and what of a novelty score does so best.

The model itself learns all types; such a shadow head is learned anew on the frozen network's gene scores.
"""

from __future__ import annotations

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
from canal.continual.fit import Hooks, generator
from canal.continual.novelty_choice import Scored, fit_places, gene_scores, rule_of
from canal.continual.remembering import Noticed, best_choice, can_be_left_out, summary
from canal.model.annotator import Annotator
from canal.model.compute import in_lanes
from canal.model.head import Head, centre, new_head
from canal.model.places import PARTS, TypePlaces

Part = tuple[Tensor, np.ndarray]
MIN_TEST_CELLS = 5
_LEARNING_RATE = 1e-3
_BATCH = 64

_SMOOTHING = 0.1
"""Published label smoothing: without it logits, and so energies, would be unlike the model's own."""

CHOICES: tuple[tuple[str, ...], ...] = ((), PARTS[:1], PARTS)
"""What may be added to the published score."""

HScores = Mapping[tuple[str, ...], float]
"""Of each choice, the H-score with which it notices a type."""


@dataclass(frozen=True, eq=False)
class ShadowCells:
    """What shadow heads learn from, are set by and are measured on.

    Attributes
    ----------
    train : LabelledCells
        Cells that the stage was trained on: its training cells and the replayed ones.
    known : LabelledCells
        Its validation cells and the probe: they set the threshold.
    test : LabelledCells
        Test cells of all stages that can be measured.
    """

    train: LabelledCells
    known: LabelledCells
    test: LabelledCells


def shadow_heads(
    annotator: Annotator, cells: ShadowCells, settings: Novelty, seed: int, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Return how well each type of ``settings.holdouts`` is noticed by a head that did not learn it.

    The frozen network's scores of every gene are computed once. For each held-out type the head's linear
    layers are learned anew without its cells, a novelty rule is set without them, and the test cells are
    asked; the rule is made of the parts that the annotator's own is made of. The backbone has seen the type,
    so this is kinder than leaving it out of the whole training. ``hooks`` say where the training has kept
    features of its cells.

    Returns
    -------
    dict
        ``holdouts``: for each type ``n_known`` and ``n_unknown`` test cells, ``known_accuracy`` (a known cell
        is right if it is not Unassigned and its type is right), ``unknown_accuracy`` (share of the type's
        cells that are Unassigned), their harmonic mean ``h_score``, and ``auroc`` of the score. ``h_score``
        and ``auroc``: means, or None. ``not_measured``: why a type was not measured.
    """
    reasons = {name: obstacle(name, annotator.labels, cells) for name in settings.holdouts}
    testable = [name for name, reason in reasons.items() if not reason]
    scores = GeneScores.of(annotator, cells, hooks) if testable else None
    measured = []
    if scores is not None:
        parts = annotator.novelty.parts if annotator.novelty else ()
        one = partial(_measure, scores=scores, settings=settings, seed=seed, parts=parts)
        measured = in_lanes(one, testable)
    return summary(measured, reasons)


@dataclass(frozen=True, eq=False)
class GeneScores:
    """Gene scores ``(n_cells, n_genes + 1)`` and types of each part of the cells, and the labels' order."""

    labels: tuple[str, ...]
    train: Part
    known: Part
    test: Part

    @classmethod
    def of(cls, annotator: Annotator, cells: ShadowCells, hooks: Hooks | None = None) -> GeneScores:
        """Return what a frozen network makes of the cells; none of a test cell is kept."""

        def part(some: LabelledCells, hooks: Hooks | None = None) -> Part:
            return gene_scores(annotator, some, hooks), np.array(some.cell_types, dtype=object)

        return cls(annotator.labels, part(cells.train, hooks), part(cells.known, hooks), part(cells.test))


@dataclass(frozen=True, eq=False)
class Shadow:
    """A head that did not learn one type, and the cells it is asked about.

    ``train`` and ``known`` hold no cell of the type; ``test`` holds its cells and those of ``labels``.
    """

    labels: list[str]
    head: Head
    train: Part
    known: Part
    test: Part

    def places(self) -> TypePlaces:
        """Return where the types lie that it learned."""
        scores, types = self.train
        return fit_places(scores, types.tolist())


def learn_without(name: str, scores: GeneScores, epochs: int, seed: int) -> Shadow:
    """Return a head whose linear layers are learned anew without the cells of type ``name``."""
    train, types = _of_types(scores.train, set(scores.train[1]) - {name})
    labels = [label for label in scores.labels if label in set(types)]
    head = _learn(train, types, labels, epochs, generator(seed, _purpose(name)))
    known, test = _of_types(scores.known, set(labels)), _of_types(scores.test, {*labels, name})
    return Shadow(labels, head, (train, types), known, test)


def obstacle(name: str, labels: Sequence[str], cells: ShadowCells) -> str:
    """Return why type ``name`` cannot be measured, or ``""``."""
    n_unknown = cells.test.cell_types.count(name)
    learned = set(cells.train.types) - {name}
    if name not in labels:
        return "not learned yet"
    if n_unknown < MIN_TEST_CELLS:
        return f"{n_unknown} test cells, at least {MIN_TEST_CELLS} are needed"
    if len(learned) < 2:
        return f"{len(learned)} other types to train on, at least 2 are needed"
    if not learned & set(cells.known.types) or not learned & set(cells.test.types):
        return "no validation or test cells of the other types"
    return ""


def _measure(
    name: str, scores: GeneScores, settings: Novelty, seed: int, parts: Sequence[str]
) -> dict[str, Any]:
    shadow = learn_without(name, scores, settings.shadow_epochs, seed)
    random = np.random.default_rng([seed, *_purpose(name).encode()])
    asked = ask(shadow, settings, random, shadow.places().only(parts))
    return asked.noticed(shadow.test[1] == name).document(name)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a shadow head says of its test cells: novelty, whether that is Unassigned, whether it is right."""

    score: np.ndarray
    novel: np.ndarray
    right: np.ndarray

    def noticed(self, unknown: np.ndarray) -> Noticed:
        """Return the same, knowing which of the cells are of the type that the head never learned."""
        return Noticed(unknown, self.score, self.novel, self.right)


@torch.no_grad()
def ask(shadow: Shadow, settings: Novelty, random: np.random.Generator, places: TypePlaces | None) -> Asked:
    """Set a rule with these places on the cells that a head knows, and ask about its test cells."""
    (known, types), (cells, truth) = shadow.known, shadow.test
    rule = rule_of(shadow.head, (known, types.tolist()), places, settings, random)
    logits = shadow.head.from_scores(cells).logits.numpy()
    score = rule.score(logits, None if places is None else places.of(cells))
    said = np.array(shadow.labels, dtype=object)[logits.argmax(axis=1)]
    return Asked(score, rule.is_novel(score), said == truth)


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


def _purpose(name: str) -> str:
    return f"shadow head without {name}"


def _of_types(part: Part, wanted: set[str]) -> Part:
    scores, types = part
    rows = np.flatnonzero([name in wanted for name in types])
    return scores[torch.from_numpy(rows)], types[rows]


# What novelty is made of.


def chosen_parts(
    labels: Sequence[str],
    known: Scored,
    trained: Scored,
    settings: Novelty,
    seed: int,
    shadows: dict[str, Shadow] | None = None,
) -> tuple[str, ...]:
    """Return what is added to the published score of a version, chosen on cells of known types alone.

    Each type is left out in turn: a head is learned without it on the trained cells, and asked about
    validation cells and probes. Taken is the choice with the highest mean H-score over types, of two alike
    the one of fewer parts. Where no type can be left out, all parts are taken.

    Parameters
    ----------
    labels
        The types, in the order of the logits.
    known, trained
        As in `canal.continual.novelty_choice.with_rule`. No test cell is looked at.
    shadows
        Gains the head that was learned without each type, where somebody needs them further.
    """
    parts = [(scores, np.array(types, dtype=object)) for scores, types in (trained, known, known)]
    return best_parts(list(left_out(GeneScores(tuple(labels), *parts), settings, seed, shadows).values()))


def left_out(
    scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None = None
) -> dict[str, HScores]:
    """Return for each type that can be left out how well each choice notices it among the known cells."""
    (_, types), (_, checked) = scores.train, scores.known
    learned, asked = types.tolist(), checked.tolist()
    names = [name for name in scores.labels if can_be_left_out(name, {*learned, name}, asked)]
    known = replace(scores, test=scores.known)
    one = partial(_noticed, scores=known, settings=settings, seed=seed, shadows=shadows)
    return dict(zip(names, in_lanes(one, names), strict=True))


def best_parts(found: Sequence[HScores]) -> tuple[str, ...]:
    """Return the choice with the highest mean H-score; all parts where there is nothing to go by."""
    return best_choice(found, CHOICES, PARTS)


def _noticed(
    name: str, scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None
) -> HScores:
    shadow = learn_without(name, scores, settings.shadow_epochs, seed)
    if shadows is not None:
        shadows[name] = shadow
    places, unknown = shadow.places(), shadow.test[1] == name
    found = {}
    for parts in CHOICES:
        asked = ask(shadow, settings, np.random.default_rng(seed), places.only(parts))
        found[parts] = asked.noticed(unknown).h_score
    return found
