"""Where the learned types lie among gene scores, and how far from all of them a cell is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from canal.core.errors import ModelError
from canal.model.angle import TypeAngle
from canal.model.distance import TypeDistance
from canal.model.head import MANIFOLD
from canal.model.storage import write_tensors

PLACES, NETWORK_PLACES = "novelty.safetensors", "network_places.safetensors"
_DISTANCE, _ANGLE = ("centres", "whitening"), ("profiles", "spread")
PARTS = ("distance", "angle")
"""What places may tell of a cell, the first alone or both."""
_GENE_ANGLE, _MANIFOLD = ("angle.profiles", "angle.spread"), ("manifold.centres", "manifold.whitening")
NETWORK_PARTS = ("network_angle", "manifold")
"""What `NetworkPlaces` may tell of a cell, each alone or both."""


class Apart(NamedTuple):
    """How far cells are from the nearest learned type: of `TypeDistance` and `TypeAngle`, ``(n_cells,)``."""

    distance: Tensor
    angle: Tensor


@dataclass(frozen=True, eq=False)
class TypePlaces:
    """Where the learned types lie; models from before canal looked at angles have none."""

    distance: TypeDistance
    angle: TypeAngle | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What it tells of a cell."""
        return PARTS[:1] if self.angle is None else PARTS

    def only(self, parts: Collection[str]) -> TypePlaces | None:
        """Return the places that tell these of its parts alone; for nothing there are none."""
        return replace(self, angle=self.angle if "angle" in parts else None) if parts else None

    def of(self, scores: Tensor) -> Apart:
        """Return how far cells of gene scores ``(n_cells, n_genes + 1)`` are; angles are 0 without one."""
        distance = self.distance.of(scores)
        return Apart(distance, torch.zeros_like(distance) if self.angle is None else self.angle.of(scores))

    def among(self, present: np.ndarray) -> TypePlaces:
        """Return the places among these positions alone, bool ``(n_genes + 1,)``, at least one."""
        angle = None if self.angle is None else self.angle.among(present)
        return TypePlaces(self.distance.among(present), angle)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        found = {name: getattr(self.distance, name) for name in _DISTANCE}
        if self.angle is not None:
            found |= {name: getattr(self.angle, name) for name in _ANGLE}
        return {name: value.contiguous() for name, value in found.items()}

    def save(self, folder: Path) -> None:
        """Write ``novelty.safetensors`` into ``folder``."""
        write_tensors(self.tensors(), folder / PLACES)

    @classmethod
    def load(cls, folder: Path, n_scores: int) -> TypePlaces | None:
        """Return what a model folder holds, for ``n_scores`` gene scores a cell; None without the file.

        Raises
        ------
        ModelError
            If the file is damaged or does not fit the model.
        """
        path = folder / PLACES
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
class NetworkPlaces:
    """Where the learned types lie for a network that answers together with sums.

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
        """What it tells of a cell."""
        there = (self.angle is not None, self.manifold is not None)
        return tuple(name for name, has in zip(NETWORK_PARTS, there, strict=True) if has)

    def only(self, parts: Collection[str]) -> NetworkPlaces | None:
        """Return the places that tell these of its parts alone; for nothing there are none."""
        angle, manifold = (name in parts for name in NETWORK_PARTS)
        kept = NetworkPlaces(self.angle if angle else None, self.manifold if manifold else None)
        return kept if kept.parts else None

    def of(self, scores: Tensor, manifold: Tensor) -> list[Tensor]:
        """Return each of its parts of cells, ``(n_cells,)``.

        Parameters
        ----------
        scores, manifold
            Gene scores ``(n_cells, n_genes + 1)`` and manifold ``(n_cells, 128)``, on any device.
        """
        both = (self.angle, scores), (self.manifold, manifold)
        return [place.of(values) for place, values in both if place is not None]

    def among(self, present: np.ndarray) -> NetworkPlaces:
        """Return the places among these positions alone, bool ``(n_genes + 1,)``, at least one.

        The manifold is what the network makes of all positions, and stays.
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
        write_tensors(self.tensors(), folder / NETWORK_PLACES)

    @classmethod
    def load(cls, folder: Path, n_scores: int, n_types: int) -> NetworkPlaces | None:
        """Return what a model folder holds, for ``n_scores`` gene scores a cell; None without the file.

        Raises
        ------
        ModelError
            If the file is damaged or does not fit the model.
        """
        path = folder / NETWORK_PLACES
        if not path.is_file():
            return None
        found = _read(path)
        whole = [names for names in (_GENE_ANGLE, _MANIFOLD) if set(names) <= set(found)]
        some = sum(whole, ())
        n = len(found[some[0]]) if some else 0  # a type without trained cells has no place
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); restore the model") from error


def _shapes(found: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in sorted(found.items())}


def _fits(found: dict[str, Tensor], n_scores: int) -> bool:
    if sorted(found) not in (sorted(_DISTANCE), sorted(_DISTANCE + _ANGLE)):
        return False
    n_types = len(found["centres"])
    shapes = {
        "centres": (n_types, n_scores),
        "whitening": (n_scores, n_scores),
        "profiles": (n_types, n_scores),
        "spread": (n_scores,),
    }
    right = all(value.shape == shapes[name] and _is_number(value) for name, value in found.items())
    return right and n_types > 0 and bool((found.get("spread", torch.ones(1)) > 0).all())


def _is_number(value: Tensor) -> bool:
    return value.dtype == torch.float32 and bool(torch.isfinite(value).all())
