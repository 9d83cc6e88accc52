"""What a version's novelty is made of: what best notices types that a head never learned, each in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from canal.config.sections import Novelty
from canal.continual.noticed import best_choice, can_be_left_out
from canal.continual.scores import Scored
from canal.continual.shadow import GeneScores, Shadow, ask, learn_without
from canal.model.lanes import in_lanes
from canal.model.places import PARTS

CHOICES: tuple[tuple[str, ...], ...] = ((), PARTS[:1], PARTS)
"""What may be added to the published score."""

Noticed = Mapping[tuple[str, ...], float]
"""Of each choice, the H-score with which it notices a type."""


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
        As in `canal.continual.novelty.with_rule`. No test cell is looked at.
    shadows
        Gains the head that was learned without each type, where somebody needs them further.
    """
    parts = [(scores, np.array(types, dtype=object)) for scores, types in (trained, known, known)]
    return best_parts(list(left_out(GeneScores(tuple(labels), *parts), settings, seed, shadows).values()))


def left_out(
    scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None = None
) -> dict[str, Noticed]:
    """Return for each type that can be left out how well each choice notices it among the known cells."""
    names = [name for name in scores.labels if _can_be_left_out(name, scores)]
    known = replace(scores, test=scores.known)
    one = partial(_noticed, scores=known, settings=settings, seed=seed, shadows=shadows)
    return dict(zip(names, in_lanes(one, names), strict=True))


def best_parts(found: Sequence[Noticed]) -> tuple[str, ...]:
    """Return the choice with the highest mean H-score; all parts where there is nothing to go by."""
    return best_choice(found, CHOICES, PARTS)


def _can_be_left_out(name: str, scores: GeneScores) -> bool:
    (_, learned), (_, known) = scores.train, scores.known
    return can_be_left_out(name, {*learned.tolist(), name}, known.tolist())


def _noticed(
    name: str, scores: GeneScores, settings: Novelty, seed: int, shadows: dict[str, Shadow] | None
) -> Noticed:
    shadow = learn_without(name, scores, settings.shadow_epochs, seed)
    if shadows is not None:
        shadows[name] = shadow
    places, unknown = shadow.places(), shadow.test[1] == name
    found = {}
    for parts in CHOICES:
        asked = ask(shadow, settings, np.random.default_rng(seed), places.only(parts))
        found[parts] = asked.noticed(unknown).h_score
    return found
