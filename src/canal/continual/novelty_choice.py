"""When a cell is none of the known types: a rule fixed while a stage is learned, from known cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from canal.config.sections import Novelty
from canal.continual.scores import Scored
from canal.continual.type_places import fit_places
from canal.core.errors import TrainingError
from canal.memory.novelty_rule import quantile_threshold
from canal.model.annotator import Annotator
from canal.model.head import Head
from canal.model.novelty import Blend, NoveltyRule
from canal.model.places import PARTS, Apart, TypePlaces

_NARROWEST = 1e-6


def with_rule(
    annotator: Annotator,
    known: Scored,
    trained: Scored,
    settings: Novelty,
    seed: int,
    parts: Sequence[str] = PARTS,
) -> Annotator:
    """Return ``annotator`` with the rule by which it calls a cell Unassigned.

    The bounds between which energy is scaled are those of known cells and of mixtures of them, so that a
    query's answer never depends on its neighbours; bbae047 scales over the query set. To the published score
    are added ``parts``: distance and angle to the nearest learned type (docs/novelty.md). The
    threshold is that of `quantile_threshold`: it keeps a promise about known cells (at most
    ``settings.false_unassigned`` of them are called Unassigned) which the published `mixture_threshold` does
    not, for the mean over mixtures may fall anywhere among the scores of known cells.

    Parameters
    ----------
    annotator
        A learned stage.
    known
        Gene scores and types of cells of known types that were not trained on: the stage's validation cells
        and the probe.
    trained
        Those of cells that were: its training cells and the replayed ones. They say where the types lie.
    settings
        Temperature, number of mixtures and share of known cells that may be called Unassigned.
    seed
        Draws the mixtures.
    parts
        What is added to the published score; see `canal.continual.stage.chosen_parts`.

    Raises
    ------
    TrainingError
        If there are no known cells.
    """
    places = fit_places(*trained).only(parts)
    generator = np.random.default_rng([seed, *b"novelty"])
    rule = rule_of(annotator.network.head, known, places, settings, generator)
    return annotator.with_novelty(rule, places)


def rule_of(
    head: Head,
    known: Scored,
    places: TypePlaces | None,
    settings: Novelty,
    generator: np.random.Generator,
) -> NoveltyRule:
    """Return the rule of a head from known cells."""
    scores, cell_types = known
    if not len(scores):
        raise TrainingError(
            "the novelty threshold needs cells of known types that were not trained on, found none: "
            "types with few cells only train, so add cells or lower split.min_cells"
        )
    manifolds, logits = _answered(head, scores)
    mixed = _logits(head, mix(manifolds, cell_types, settings.mixtures, generator))
    energies = raw_energy(np.concatenate([logits, mixed]), settings.temperature)
    low = float(energies.min())
    high = max(float(energies.max()), low + _NARROWEST)
    published = NoveltyRule(settings.temperature, low, high, threshold=1.0)
    rule, apart = published, None
    if places is not None:
        apart = places.of(scores)
        rule = replace(published, blend=blend_of(published.score(logits), apart, places.parts))
    return replace(rule, threshold=quantile_threshold(rule.score(logits, apart), settings.false_unassigned))


def blend_of(scores: np.ndarray, apart: Apart, names: Sequence[str]) -> Blend:
    """Return what the parts of known cells' novelty usually are; what never varies weighs 1."""
    parts = (scores, *(getattr(apart, name).double().numpy() for name in names))
    return Blend(*(value for part in parts for value in (float(part.mean()), float(part.std()) or 1.0)))


def mixture_threshold(rule: NoveltyRule, mixed: np.ndarray) -> float:
    """Return the published threshold (bbae047): mean over mixtures of (1 - scaled energy + confidence) / 2.

    Parameters
    ----------
    rule
        Its temperature and bounds; its own threshold is not looked at.
    mixed
        Logits of mixtures, ``(n_mixtures, n_types)``.
    """
    # The score is (E + 1 - p) / 2, so (1 - E + p) / 2 is what it lacks to 1.
    return float(np.mean(1.0 - rule.published_score(mixed)))


def mix(manifolds: Tensor, cell_types: Sequence[str], number: int, generator: np.random.Generator) -> Tensor:
    """Return pseudo-novel manifolds ``(number, 128)``: Beta(1, 1) mixtures of two cells of different types.

    With fewer than two types there is nothing to mix, and the result is empty.
    """
    types = np.array(cell_types, dtype=object)
    others = {name: np.flatnonzero(types != name) for name in sorted(set(cell_types))}
    if len(others) < 2:
        return manifolds[:0]
    first = generator.integers(len(types), size=number)
    second = np.array([generator.choice(others[types[i]]) for i in first])
    share = torch.from_numpy(generator.beta(1.0, 1.0, size=(number, 1)).astype(np.float32))
    return share * manifolds[first] + (1 - share) * manifolds[second]


def raw_energy(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return -T log sum_c exp(logit_c / T) of each cell, float64 ``(n_cells,)``."""
    energy: np.ndarray = -temperature * np.logaddexp.reduce(logits.astype(np.float64) / temperature, axis=1)
    return energy


@torch.no_grad()
def _answered(head: Head, scores: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return manifolds and logits that follow from gene scores."""
    answer = head.from_scores(scores)
    return answer.manifold, answer.logits.numpy()


@torch.no_grad()
def _logits(head: Head, manifolds: Tensor) -> np.ndarray:
    logits: np.ndarray = head.answer(manifolds).logits.numpy()
    return logits
