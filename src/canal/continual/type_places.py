"""Where the learned types lie among gene scores, and how their cells usually stray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from canal.model.annotator import spread
from canal.model.head import Head
from canal.model.places import NetworkPlaces, TypeAngle, TypeDistance, TypePlaces

MOST_CELLS_A_TYPE = 200
"""Cells of a type that are looked at: bounds time and memory, and no frequent type outweighs the others."""

_LEAST_SHRINKAGE = 1e-3
_LEAST_SPREAD = 0.1
"""Of the spread of all gene scores, what each counts with at least: a silent gene must not decide."""


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
