"""Fit the novelty rule of a network on validation cells, and the centroids of the learned types.

The rule decides when a cell is none of the known types; it is fixed while a stage is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from canal.config.sections import Novelty
from canal.continual.cells import LabelledCells
from canal.continual.feature_cache import PrefixFeatures
from canal.continual.fit import Hooks
from canal.continual.segments import CacheSpace
from canal.core.errors import TrainingError
from canal.core.progress import doing
from canal.memory.prediction import quantile_threshold
from canal.model.annotator import Annotator, spread
from canal.model.centroids import (
    PARTS,
    CentroidDistances,
    NetworkCentroids,
    TypeAngle,
    TypeCentroids,
    TypeDistance,
)
from canal.model.compute import in_threads
from canal.model.head import Blend, Head, NoveltyRule

_NARROWEST = 1e-6

Scored = tuple[Tensor, Sequence[str]]
"""Gene scores ``(n_cells, n_genes + 1)`` of cells, and the type of each."""

_EXACT = ("cpu", "float32", "float32")
"""Device, products and features with which a training's cache holds the same values as a prediction."""

MOST_CELLS_A_TYPE = 200
"""Cells of a type that are used at most: bounds time and memory, and no frequent type outweighs others."""

_LEAST_SHRINKAGE = 1e-3

_LEAST_SPREAD = 0.1
"""Share of the spread of all gene scores that is added to each gene's: a silent gene must not decide."""


def with_rule(
    annotator: Annotator,
    validation: Scored,
    trained: Scored,
    settings: Novelty,
    seed: int,
    parts: Sequence[str] = PARTS,
) -> Annotator:
    """Return ``annotator`` with the rule by which it calls a cell Unassigned.

    The energy is scaled between bounds taken from validation cells and mixtures of them, so that the result
    for a cell never depends on the other cells of a query; bbae047 scales over the query set. ``parts`` are
    added to the published score: distance and angle to the nearest centroid (docs/novelty.md). The threshold
    is that of `quantile_threshold`: at most ``settings.false_unassigned`` of the validation cells are called
    Unassigned. The published `mixture_threshold` has no such bound: the mean over mixtures may fall anywhere
    among the scores of known cells.

    Parameters
    ----------
    annotator
        A learned stage.
    validation
        Gene scores and types of cells that were not trained on: the stage's validation cells and the probe
        sets.
    trained
        Those of its training cells and the replayed ones, which give the centroids.
    settings
        Temperature, number of mixtures and share of validation cells that may be called Unassigned.
    seed
        Draws the mixtures.
    parts
        What is added to the published score; see `canal.continual.held_out_heads.chosen_parts`.

    Raises
    ------
    TrainingError
        If there are no validation cells.
    """
    centroids = fit_centroids(*trained).only(parts)
    generator = np.random.default_rng([seed, *b"novelty"])
    rule = rule_of(annotator.network.head, validation, centroids, settings, generator)
    return annotator.with_novelty(rule, centroids)


def rule_of(
    head: Head,
    validation: Scored,
    centroids: TypeCentroids | None,
    settings: Novelty,
    generator: np.random.Generator,
) -> NoveltyRule:
    """Return the novelty rule of a head, fitted on validation cells."""
    scores, cell_types = validation
    if not len(scores):
        raise TrainingError(
            "the novelty threshold needs cells of known types that were not trained on, found none: "
            "types with few cells only train (or are drawn for some sets alone, by split.rule: independent), "
            "so add cells or lower split.min_cells"
        )
    with torch.no_grad():
        answer = head.from_scores(scores)
        manifolds = mix(answer.manifold, cell_types, settings.mixtures, generator)
        logits, mixed = answer.logits.numpy(), head.answer(manifolds).logits.numpy()
    energies = raw_energy(np.concatenate([logits, mixed]), settings.temperature)
    low = float(energies.min())
    high = max(float(energies.max()), low + _NARROWEST)
    published = NoveltyRule(settings.temperature, low, high, threshold=1.0)
    rule, distances = published, None
    if centroids is not None:
        distances = centroids.of(scores)
        rule = replace(published, blend=blend_of(published.score(logits), distances, centroids.parts))
    return replace(
        rule, threshold=quantile_threshold(rule.score(logits, distances), settings.false_unassigned)
    )


def blend_of(scores: np.ndarray, distances: CentroidDistances, names: Sequence[str]) -> Blend:
    """Return mean and standard deviation of each component over validation cells; 1 for a constant one."""
    parts = (scores, *(getattr(distances, name).double().numpy() for name in names))
    return Blend(*(value for part in parts for value in (float(part.mean()), float(part.std()) or 1.0)))


def mixture_threshold(rule: NoveltyRule, mixed: np.ndarray) -> float:
    """Return the published threshold (bbae047): mean over mixtures of (1 - scaled energy + confidence) / 2.

    Parameters
    ----------
    rule
        Its temperature and bounds; its own threshold is not used.
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


@doing("computing the network's gene scores of the cells")
def gene_scores(annotator: Annotator, cells: LabelledCells, hooks: Hooks | None = None) -> Tensor:
    """Return the output of the head's filter at each position, ``(n_cells, n_genes + 1)``.

    Where ``hooks`` name a cache of unrounded features, those are read (and stored, for new cells), and only
    the two blocks behind them are computed; else the whole network.
    """
    if hooks is None or hooks.cache_dir is None or (hooks.device, hooks.dtype, hooks.cache.dtype) != _EXACT:
        return annotator.gene_scores(cells.expression)
    network, space = annotator.network, CacheSpace(hooks.cache_dir, hooks.cache.max_bytes)
    features = PrefixFeatures(network.backbone, cells.tokens(), space)

    @torch.inference_mode()
    def some(rows: Tensor) -> Tensor:
        return network.head.gene_scores(network.backbone.encode_rest(features.rows(rows.numpy())))

    groups = torch.split(torch.arange(len(cells)), network.backbone.cells_at_a_time)
    return torch.cat(in_threads(some, groups))


# Centroids of the learned types.


def chosen_cells(cell_types: Sequence[str]) -> np.ndarray:
    """Return the rows of at most 200 cells of each type, evenly spread over its cells, ascending."""
    types = np.array(cell_types, dtype=object)
    groups = [np.flatnonzero(types == name) for name in sorted(set(cell_types))]
    chosen = [rows[spread(len(rows), MOST_CELLS_A_TYPE)] for rows in groups]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def fit_centroids(scores: Tensor, cell_types: Sequence[str]) -> TypeCentroids:
    """Return the centroids of training cells: `fit_distance` and `fit_angle` of the `chosen_cells`.

    Parameters
    ----------
    scores
        Gene scores ``(n_cells, n_genes + 1)`` of at least one cell.
    cell_types
        The type of each.
    """
    rows = chosen_cells(cell_types)
    some, types = scores[torch.from_numpy(rows)], [cell_types[row] for row in rows]
    return TypeCentroids(fit_distance(some, types), fit_angle(some, types))


@torch.no_grad()
def fit_network_centroids(head: Head, scores: Tensor, cell_types: Sequence[str]) -> NetworkCentroids:
    """Return the centroids for a network that is combined with sums: angle, and distance in the manifold.

    Types are in the order of their names.
    """
    rows = chosen_cells(cell_types)
    some, types = scores[torch.from_numpy(rows)], [cell_types[row] for row in rows]
    return NetworkCentroids(fit_angle(some, types), fit_distance(head.from_scores(some).manifold, types))


def fit_distance(scores: Tensor, cell_types: Sequence[str]) -> TypeDistance:
    """Return the Mahalanobis distance to the nearest type (Lee et al. 2018), fitted on training cells.

    The types share one covariance, of their cells about their own mean, shrunk as by Ledoit and Wolf (2004),
    since there may be fewer cells than genes.

    Parameters
    ----------
    scores
        Gene scores ``(n_cells, n_genes + 1)`` of at least one cell; see `chosen_cells`.
    cell_types
        The type of each.
    """
    centres, deviations = _centred(scores, cell_types)
    whitening = np.linalg.cholesky(np.linalg.inv(shrunk_covariance(deviations)))
    return TypeDistance(_float32(centres @ whitening), _float32(whitening))


def fit_angle(scores: Tensor, cell_types: Sequence[str]) -> TypeAngle:
    """Return the angle to the nearest type, fitted on training cells; see `fit_distance`.

    Each score is divided by its spread within types plus a tenth of the spread of all scores.
    """
    centres, deviations = _centred(scores, cell_types)
    usual = deviations.std(axis=0) + (
        _LEAST_SPREAD * deviations.std() or 1.0
    )  # 0 where each type has one cell
    return TypeAngle(_float32(centres / usual), _float32(usual))


def _centred(scores: Tensor, cell_types: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each type's mean gene scores, and each cell's deviation from its type's mean."""
    values = scores.double().numpy()
    names, own = np.unique(np.array(cell_types, dtype=object), return_inverse=True)
    centres = np.stack([values[own == number].mean(axis=0) for number in range(len(names))])
    return centres, values - centres[own]


def shrunk_covariance(deviations: np.ndarray) -> np.ndarray:
    """Return the Ledoit-Wolf covariance of deviations from the mean, invertible whatever they are."""
    from sklearn.covariance import ledoit_wolf

    unit = np.eye(deviations.shape[1])
    if not deviations.any():  # one cell a type
        return unit
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    result: np.ndarray = covariance + _LEAST_SHRINKAGE * np.trace(covariance) / len(unit) * unit
    return result


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
