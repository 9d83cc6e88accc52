"""When a cell is none of the known types: a rule fixed while a stage is learned, from known cells alone.

Also where the learned types lie among gene scores, and how their cells usually stray.
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
from canal.memory.prediction import quantile_threshold
from canal.model.annotator import Annotator, spread
from canal.model.compute import in_lanes
from canal.model.head import Blend, Head, NoveltyRule
from canal.model.places import PARTS, Apart, NetworkPlaces, TypeAngle, TypeDistance, TypePlaces

_NARROWEST = 1e-6

Scored = tuple[Tensor, Sequence[str]]
"""Gene scores ``(n_cells, n_genes + 1)`` of cells, and the type of each."""

_EXACT = ("cpu", "float32", "float32")
"""Device, products and features of a training that has kept what the network computes when it is asked."""

MOST_CELLS_A_TYPE = 200
"""Cells of a type that are looked at: bounds time and memory, and no frequent type outweighs the others."""

_LEAST_SHRINKAGE = 1e-3

_LEAST_SPREAD = 0.1
"""Of the spread of all gene scores, what each counts with at least: a silent gene must not decide."""


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
        What is added to the published score; see `canal.continual.shadow.chosen_parts`.

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
    with torch.no_grad():
        answer = head.from_scores(scores)
        manifolds = mix(answer.manifold, cell_types, settings.mixtures, generator)
        logits, mixed = answer.logits.numpy(), head.answer(manifolds).logits.numpy()
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


def gene_scores(annotator: Annotator, cells: LabelledCells, hooks: Hooks | None = None) -> Tensor:
    """Return what the head's filter makes of each position of cells, ``(n_cells, n_genes + 1)``.

    Where ``hooks`` keep frozen features as they are, those are read (and kept, of cells that are new), and
    only the two blocks behind them are computed; else the network is asked.
    """
    if hooks is None or hooks.cache_dir is None or (hooks.device, hooks.dtype, hooks.cache.dtype) != _EXACT:
        return annotator.gene_scores(cells.expression)
    network, space = annotator.network, CacheSpace(hooks.cache_dir, hooks.cache.max_bytes)
    features = PrefixFeatures(network.backbone, cells.tokens(), space)

    @torch.inference_mode()
    def some(rows: Tensor) -> Tensor:
        return network.head.gene_scores(network.backbone.encode_rest(features.rows(rows.numpy())))

    groups = torch.split(torch.arange(len(cells)), network.backbone.cells_at_a_time)
    return torch.cat(in_lanes(some, groups))


# Where the learned types lie.


def chosen_cells(cell_types: Sequence[str]) -> np.ndarray:
    """Return the rows of at most 200 cells of each type, evenly spread over those there are, ascending."""
    types = np.array(cell_types, dtype=object)
    groups = [np.flatnonzero(types == name) for name in sorted(set(cell_types))]
    chosen = [rows[spread(len(rows), MOST_CELLS_A_TYPE)] for rows in groups]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def fit_places(scores: Tensor, cell_types: Sequence[str]) -> TypePlaces:
    """Return where the types lie of cells that were trained on: `fit_distance` and `fit_angle` of some.

    Parameters
    ----------
    scores
        Gene scores ``(n_cells, n_genes + 1)`` of at least one cell; see `chosen_cells` for those that count.
    cell_types
        The type of each.
    """
    rows = chosen_cells(cell_types)
    some, types = scores[torch.from_numpy(rows)], [cell_types[row] for row in rows]
    return TypePlaces(fit_distance(some, types), fit_angle(some, types))


@torch.no_grad()
def fit_network_places(head: Head, scores: Tensor, cell_types: Sequence[str]) -> NetworkPlaces:
    """Return where the types lie for a network that answers with sums; as `fit_places`, in the manifold too.

    Types come in the order of their names.
    """
    rows = chosen_cells(cell_types)
    some, types = scores[torch.from_numpy(rows)], [cell_types[row] for row in rows]
    return NetworkPlaces(fit_angle(some, types), fit_distance(head.from_scores(some).manifold, types))


def fit_distance(scores: Tensor, cell_types: Sequence[str]) -> TypeDistance:
    """Return the Mahalanobis distance to the nearest type (Lee et al. 2018) of cells that were trained on.

    The types share one covariance, of their cells about their own mean, shrunk as Ledoit and Wolf (2004)
    have it, for there may be fewer cells than genes.

    Parameters
    ----------
    scores
        Gene scores ``(n_cells, n_genes + 1)`` of at least one cell; see `chosen_cells`.
    cell_types
        The type of each.
    """
    centres, strays = _centred(scores, cell_types)
    whitening = np.linalg.cholesky(np.linalg.inv(_covariance(strays)))
    return TypeDistance(_float32(centres @ whitening), _float32(whitening))


def fit_angle(scores: Tensor, cell_types: Sequence[str]) -> TypeAngle:
    """Return the angle to the nearest type of cells that were trained on; see `fit_distance`.

    A score counts in units of its spread within types, and a tenth of the spread of all scores more.
    """
    centres, strays = _centred(scores, cell_types)
    usual = strays.std(axis=0) + (_LEAST_SPREAD * strays.std() or 1.0)  # 0 where each type has one cell
    return TypeAngle(_float32(centres / usual), _float32(usual))


def _centred(scores: Tensor, cell_types: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return each type's mean gene scores, and how each cell strays from its type's."""
    values = scores.double().numpy()
    names, own = np.unique(np.array(cell_types, dtype=object), return_inverse=True)
    centres = np.stack([values[own == place].mean(axis=0) for place in range(len(names))])
    return centres, values - centres[own]


def _covariance(strays: np.ndarray) -> np.ndarray:
    from sklearn.covariance import ledoit_wolf

    unit = np.eye(strays.shape[1])
    if not strays.any():  # one cell a type
        return unit
    covariance, _ = ledoit_wolf(strays, assume_centered=True)
    result: np.ndarray = covariance + _LEAST_SHRINKAGE * np.trace(covariance) / len(unit) * unit
    return result


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
