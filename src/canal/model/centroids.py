"""Centroids of the learned types among gene scores, and the distance of cells to the nearest one.

`TypeDistance` is the Mahalanobis distance of a cell's gene scores; `TypeAngle` compares their pattern,
whatever their strength. Both are components of the novelty score.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from canal.core.errors import ModelError
from canal.model.storage import MANIFOLD, write_tensors

CENTROIDS, NETWORK_CENTROIDS = "novelty.safetensors", "network_places.safetensors"
_DISTANCE, _ANGLE = ("centres", "whitening"), ("profiles", "spread")
PARTS = ("distance", "angle")
"""Components of `TypeCentroids`: the first alone, or both."""
_GENE_ANGLE, _MANIFOLD = ("angle.profiles", "angle.spread"), ("manifold.centres", "manifold.whitening")
NETWORK_PARTS = ("network_angle", "manifold")
"""Components of `NetworkCentroids`: each alone, or both."""


@dataclass(frozen=True, eq=False)
class TypeDistance:
    """Centroids of the learned types among gene scores, with the whitening of their common covariance.

    Attributes
    ----------
    centres : Tensor
        Float32 ``(n_types, n_genes + 1)``, already whitened.
    whitening : Tensor
        Float32 ``(n_genes + 1, n_genes + 1)``; gene scores are multiplied by it from the right. From
        `among`, it has a column for each position that is present, and zeros in the rows of all others.
    """

    centres: Tensor
    whitening: Tensor

    def of(self, scores: Tensor) -> Tensor:
        """Return each cell's squared distance to the nearest centre, float32 ``(n_cells,)`` on the CPU.

        Gene scores ``(n_cells, n_genes + 1)`` may be on any device. A cell's distance does not depend on
        other cells, and is float32 whatever the precision of the network.
        """
        with torch.autocast("cpu", enabled=False):
            whitened = scores.float().cpu() @ self.whitening
            # Differences, not a matrix product, which loses the digits of small distances.
            distances = torch.cdist(whitened, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
            return distances.amin(dim=1).square()

    def among(self, present: np.ndarray) -> TypeDistance:
        """Return the distance among these positions alone, as if the others had never been scored.

        The others are marginalised: centroids and covariance are those of the present positions. Squared
        distances are scaled by n_genes + 1 over their number, by which they are shorter where deviations
        follow the covariance: scores of known cells stay as high as they were.

        Parameters
        ----------
        present
            Which gene scores count, bool ``(n_genes + 1,)``, at least one; with all it is this distance.
        """
        return self if present.all() else _among(self, present.tobytes())


@lru_cache(maxsize=1)  # a service's client sends the same genes again and again
def _among(distance: TypeDistance, which: bytes) -> TypeDistance:
    present = np.frombuffer(which, dtype=bool)
    kept, gone = (torch.from_numpy(np.flatnonzero(those)) for those in (present, ~present))
    whitening = distance.whitening.double()
    inverse = whitening @ whitening.T  # of the covariance
    linked = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, kept])
    narrow = torch.linalg.cholesky(inverse[kept][:, kept] - inverse[kept][:, gone] @ linked)
    narrow *= math.sqrt(len(present) / len(kept))
    centres = torch.linalg.solve(whitening.T, distance.centres.double().T).T
    wide = torch.zeros(len(present), len(kept), dtype=torch.float64)
    wide[kept] = narrow
    return TypeDistance((centres[:, kept] @ narrow).float(), wide.float())


@dataclass(frozen=True, eq=False)
class TypeAngle:
    """Centroids of the learned types among gene scores, each score in units of its usual spread.

    Distance grows where all of a cell's scores are high or low together, as in a deeper or shallower library;
    the angle to a centroid does not, and depends on the pattern alone.

    Attributes
    ----------
    profiles : Tensor
        Float32 ``(n_types, n_genes + 1)``: centres over spread.
    spread : Tensor
        Float32 ``(n_genes + 1,)``, above 0: how much scores vary within a type.
    factors : Tensor or None
        Float32 ``(n_types,)``, by which the angles to each profile are multiplied; None: by 1.
    """

    profiles: Tensor
    spread: Tensor
    factors: Tensor | None = None

    def of(self, scores: Tensor) -> Tensor:
        """Return 1 - the cosine to the nearest profile, float32 ``(n_cells,)`` on the CPU, from 0 up.

        Gene scores ``(n_cells, n_genes + 1)``, none below 0, may be on any device. A cell without any score
        is at a right angle to all. Float32 whatever the precision of the network.
        """
        with torch.autocast("cpu", enabled=False):
            angles = 1 - normalize(scores.float().cpu() / self.spread) @ normalize(self.profiles).T
            return (angles if self.factors is None else angles * self.factors).amin(dim=1).clamp(min=0)

    def among(self, present: np.ndarray) -> TypeAngle:
        """Return the angle among these gene scores alone, as if the others had never been scored.

        Among some scores the angle of a type's cells to its profile is usually larger or smaller than among
        all: the angle is divided by that ratio, so that known cells stay as near as they were. A cell
        deviates from a profile p by about 1 in each of n scores, so the cosine is |p| / sqrt(|p|^2 + n).

        Parameters
        ----------
        present
            Which gene scores count, bool ``(n_genes + 1,)``, at least one; with all it is this angle.
        """
        if present.all():
            return self
        there = torch.from_numpy(present)
        profiles = self.profiles * there
        factors = _usual(self.profiles, len(present)) / _usual(profiles, int(present.sum()))
        return TypeAngle(profiles, torch.where(there, self.spread, torch.inf), factors)


def _usual(profiles: Tensor, n: int) -> Tensor:
    lengths = profiles.square().sum(dim=1)
    return 1 - (lengths / (lengths + n)).sqrt()


class CentroidDistances(NamedTuple):
    """Distances of cells to the nearest centroid, by `TypeDistance` and `TypeAngle`, ``(n_cells,)`` each."""

    distance: Tensor
    angle: Tensor


@dataclass(frozen=True, eq=False)
class TypeCentroids:
    """Centroids of the learned types; models of the first format have no angle."""

    distance: TypeDistance
    angle: TypeAngle | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that can be computed."""
        return PARTS[:1] if self.angle is None else PARTS

    def only(self, parts: Collection[str]) -> TypeCentroids | None:
        """Return the centroids for these components alone; None without components."""
        return replace(self, angle=self.angle if "angle" in parts else None) if parts else None

    def of(self, scores: Tensor) -> CentroidDistances:
        """Return how far cells of gene scores ``(n_cells, n_genes + 1)`` are; angles are 0 without one."""
        distance = self.distance.of(scores)
        return CentroidDistances(
            distance, torch.zeros_like(distance) if self.angle is None else self.angle.of(scores)
        )

    def among(self, present: np.ndarray) -> TypeCentroids:
        """Return the centroids among these positions alone, bool ``(n_genes + 1,)``, at least one."""
        angle = None if self.angle is None else self.angle.among(present)
        return TypeCentroids(self.distance.among(present), angle)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        found = {name: getattr(self.distance, name) for name in _DISTANCE}
        if self.angle is not None:
            found |= {name: getattr(self.angle, name) for name in _ANGLE}
        return {name: value.contiguous() for name, value in found.items()}

    def save(self, folder: Path) -> None:
        """Write ``novelty.safetensors`` into ``folder``."""
        write_tensors(self.tensors(), folder / CENTROIDS)

    @classmethod
    def load(cls, folder: Path, n_scores: int) -> TypeCentroids | None:
        """Return the centroids of a model folder, for ``n_scores`` gene scores a cell; None without the file.

        Raises
        ------
        ModelError
            If the file is damaged or does not fit the model.
        """
        path = folder / CENTROIDS
        if not path.is_file():
            return None
        found = _read(path)
        if not _fits(found, n_scores):
            shapes = _shapes(found)
            raise ModelError(
                f"{path} must hold finite float32 centres (types x {n_scores}) and whitening "
                f"({n_scores} x {n_scores}), and with or without both profiles (like centres) and spread "
                f"({n_scores}, above 0), found {shapes}; restore the model"
            )
        distance = TypeDistance(*(found[name] for name in _DISTANCE))
        return cls(distance, TypeAngle(*(found[name] for name in _ANGLE)) if "spread" in found else None)


@dataclass(frozen=True, eq=False)
class NetworkCentroids:
    """Centroids of the learned types for a network that is combined with sums.

    Attributes
    ----------
    angle : TypeAngle or None
        Among gene scores, without the distance there: ``network_angle``.
    manifold : TypeDistance or None
        In the manifold, ``(n_types, 128)`` centres: ``manifold``.
    """

    angle: TypeAngle | None = None
    manifold: TypeDistance | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that can be computed."""
        there = (self.angle is not None, self.manifold is not None)
        return tuple(name for name, has in zip(NETWORK_PARTS, there, strict=True) if has)

    def only(self, parts: Collection[str]) -> NetworkCentroids | None:
        """Return the centroids for these components alone; None without components."""
        angle, manifold = (name in parts for name in NETWORK_PARTS)
        kept = NetworkCentroids(self.angle if angle else None, self.manifold if manifold else None)
        return kept if kept.parts else None

    def of(self, scores: Tensor, manifold: Tensor) -> list[Tensor]:
        """Return the cells' distances, ``(n_cells,)`` for each component.

        Parameters
        ----------
        scores, manifold
            Gene scores ``(n_cells, n_genes + 1)`` and manifold ``(n_cells, 128)``, on any device.
        """
        both = (self.angle, scores), (self.manifold, manifold)
        return [centroids.of(values) for centroids, values in both if centroids is not None]

    def among(self, present: np.ndarray) -> NetworkCentroids:
        """Return the centroids among these positions alone, bool ``(n_genes + 1,)``, at least one.

        The manifold is computed from all positions, and stays.
        """
        return replace(self, angle=None if self.angle is None else self.angle.among(present))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        found: dict[str, Tensor] = {}
        if self.angle is not None:
            found |= zip(_GENE_ANGLE, (self.angle.profiles, self.angle.spread), strict=True)
        if self.manifold is not None:
            found |= zip(_MANIFOLD, (self.manifold.centres, self.manifold.whitening), strict=True)
        return {name: value.contiguous() for name, value in found.items()}

    def save(self, folder: Path) -> None:
        """Write ``network_places.safetensors`` into ``folder``."""
        write_tensors(self.tensors(), folder / NETWORK_CENTROIDS)

    @classmethod
    def load(cls, folder: Path, n_scores: int, n_types: int) -> NetworkCentroids | None:
        """Return the centroids of a model folder, for ``n_scores`` gene scores a cell; None without the file.

        Raises
        ------
        ModelError
            If the file is damaged or does not fit the model.
        """
        path = folder / NETWORK_CENTROIDS
        if not path.is_file():
            return None
        found = _read(path)
        whole = [names for names in (_GENE_ANGLE, _MANIFOLD) if set(names) <= set(found)]
        some = sum(whole, ())
        n = len(found[some[0]]) if some else 0  # a type without training cells has no centroid
        sizes = ((n, n_scores), (n_scores,), (n, MANIFOLD), (MANIFOLD, MANIFOLD))
        shapes = dict(zip(_GENE_ANGLE + _MANIFOLD, sizes, strict=True))
        right = set(some) == set(found) and all(
            tuple(value.shape) == shapes[name] and _is_number(value) for name, value in found.items()
        )
        wide = bool((found.get(_GENE_ANGLE[1], torch.ones(1)) > 0).all())
        if not 0 < n <= n_types or not right or not wide:
            raise ModelError(
                f"{path} must hold finite float32 angle.profiles (up to {n_types} types x {n_scores}) with "
                f"angle.spread ({n_scores}, above 0), manifold.centres (types x {MANIFOLD}) with "
                f"manifold.whitening ({MANIFOLD} x {MANIFOLD}), or both, found {_shapes(found)}; "
                "restore the model"
            )
        return cls(
            TypeAngle(*(found[name] for name in _GENE_ANGLE)) if _GENE_ANGLE in whole else None,
            TypeDistance(*(found[name] for name in _MANIFOLD)) if _MANIFOLD in whole else None,
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); restore the model") from error


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in sorted(tensors.items())}


def _fits(tensors: dict[str, Tensor], n_scores: int) -> bool:
    if sorted(tensors) not in (sorted(_DISTANCE), sorted(_DISTANCE + _ANGLE)):
        return False
    n_types = len(tensors["centres"])
    shapes = {
        "centres": (n_types, n_scores),
        "whitening": (n_scores, n_scores),
        "profiles": (n_types, n_scores),
        "spread": (n_scores,),
    }
    right = all(value.shape == shapes[name] and _is_number(value) for name, value in tensors.items())
    return right and n_types > 0 and bool((tensors.get("spread", torch.ones(1)) > 0).all())


def _is_number(value: Tensor) -> bool:
    return value.dtype == torch.float32 and bool(torch.isfinite(value).all())
