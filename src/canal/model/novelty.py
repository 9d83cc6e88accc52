"""When a cell is none of the known types: the score, and the threshold above which it is Unassigned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from canal.core.errors import ModelError
from canal.memory.novelty_rule import squeezed
from canal.model.places import PARTS, Apart

_NUMBERS = ("temperature", "energy_low", "energy_high", "threshold")
_BLEND = "blend"
_OLD = 4
"""How many of a blend's numbers it had before there were angles."""


@dataclass(frozen=True)
class Blend:
    """What the parts of a novelty score usually are: over known cells.

    Attributes
    ----------
    score_mean, score_spread : float
        Mean and standard deviation of the published score.
    distance_mean, distance_spread : float
        Likewise of `canal.model.places.TypeDistance`.
    angle_mean, angle_spread : float or None
        Likewise of `canal.model.places.TypeAngle`; None in models from before canal looked at it.
    """

    score_mean: float
    score_spread: float
    distance_mean: float
    distance_spread: float
    angle_mean: float | None = None
    angle_spread: float | None = None

    def __post_init__(self) -> None:
        found = self.to_json()
        spreads = [value for name, value in found.items() if name.endswith("_spread")]
        if len(found) % 2 or not all(is_number(value) for value in found.values()) or min(spreads) <= 0:
            raise ModelError(f"a novelty rule's blend needs finite numbers and spreads > 0, found {found}")

    @property
    def parts(self) -> tuple[str, ...]:
        """What it takes from `canal.model.places.TypePlaces`, which names its parts alike."""
        return PARTS[:1] if self.angle_mean is None else PARTS

    def of(self, score: np.ndarray, distance: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Return all parts, each in standard deviations above its mean and summed, squeezed into 0...1."""
        total = (score - self.score_mean) / self.score_spread
        total = total + (distance - self.distance_mean) / self.distance_spread
        if self.angle_mean is not None and self.angle_spread is not None:
            total = total + (angle - self.angle_mean) / self.angle_spread
        return squeezed(total)

    def to_json(self) -> dict[str, float]:
        """Return the numbers that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class NoveltyRule:
    """Energy and confidence in one score (bbae047), with bounds fixed when the stage was learned.

    Attributes
    ----------
    temperature : float
        T of the energy E(x) = -T log sum_c exp(logit_c / T).
    energy_low, energy_high : float
        Energies that are scaled to 0 and 1. They are stored, so a cell's score does not depend on the cells
        it is asked with.
    threshold : float
        A score above it is novel.
    blend : Blend or None
        How the cell's place among the learned types is added; models from before canal had it do without.
    """

    temperature: float
    energy_low: float
    energy_high: float
    threshold: float
    blend: Blend | None = None

    def __post_init__(self) -> None:
        wrong = [name for name in _NUMBERS if not is_number(getattr(self, name))]
        if wrong or not self.temperature > 0 or not self.energy_high > self.energy_low:
            raise ModelError(
                "a novelty rule needs finite numbers, temperature > 0 and energy_high > energy_low, "
                f"found {asdict(self)}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """What it takes from `canal.model.places.TypePlaces`: nothing without a blend."""
        return () if self.blend is None else self.blend.parts

    def energy(self, logits: np.ndarray) -> np.ndarray:
        """Return the energy of each cell, scaled to 0...1 and clipped, ``(n_cells,)``."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        raw = -self.temperature * np.logaddexp.reduce(scaled, axis=1)
        spread = self.energy_high - self.energy_low
        result: np.ndarray = np.clip((raw - self.energy_low) / spread, 0.0, 1.0)
        return result

    def published_score(self, logits: np.ndarray) -> np.ndarray:
        """Return (E + 1 - p) / 2 in 0...1 for logits ``(n_cells, n_types)``.

        p is the largest probability as the network states it, without the annotator's temperature.
        """
        values = np.asarray(logits, dtype=np.float64)
        highest = values.max(axis=1)
        confidence = np.exp(highest - np.logaddexp.reduce(values, axis=1))
        result: np.ndarray = (self.energy(values) + 1.0 - confidence) / 2.0
        return result

    def score(self, logits: np.ndarray, apart: Apart | None = None) -> np.ndarray:
        """Return the novelty of each cell in 0...1.

        Parameters
        ----------
        logits
            ``(n_cells, n_types)``.
        apart
            From `canal.model.places.TypePlaces`, ``(n_cells,)`` each; a rule without a blend needs none.

        Raises
        ------
        ModelError
            If it is needed and not there.
        """
        published = self.published_score(logits)
        if self.blend is None:
            return published
        if apart is None:
            raise ModelError("this novelty rule needs to know how far cells are from the learned types")
        return self.blend.of(published, *(part.double().numpy() for part in apart))

    def is_novel(self, score: np.ndarray) -> np.ndarray:
        """Return for each score whether it lies above the threshold."""
        result: np.ndarray = np.asarray(score) > self.threshold
        return result

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON document; without a blend, none is named."""
        blend = {} if self.blend is None else {_BLEND: self.blend.to_json()}
        return {name: getattr(self, name) for name in _NUMBERS} | blend

    @classmethod
    def from_json(cls, document: Any) -> NoveltyRule:
        """Return the rule that `to_json` wrote; raises `ModelError` on other keys or values."""
        blend = document.get(_BLEND) if isinstance(document, dict) else None
        wanted = sorted([*_NUMBERS, _BLEND] if blend is not None else _NUMBERS)
        if not isinstance(document, dict) or sorted(document) != wanted:
            raise ModelError(f"a novelty rule has the keys {wanted}, found {document!r:.200}")
        if blend is None:
            return cls(**document)
        names = [field.name for field in fields(Blend)]
        if not isinstance(blend, dict) or sorted(blend) not in (sorted(names), sorted(names[:_OLD])):
            raise ModelError(f"a novelty rule's blend has the keys {names}, found {blend!r:.200}")
        return cls(**(document | {_BLEND: Blend(**blend)}))


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
