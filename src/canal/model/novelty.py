"""When a cell is none of the known types: the score, and the threshold above which it is Unassigned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from canal.errors import ModelError


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
    """

    temperature: float
    energy_low: float
    energy_high: float
    threshold: float

    def __post_init__(self) -> None:
        wrong = [field.name for field in fields(self) if not is_number(getattr(self, field.name))]
        if wrong or not self.temperature > 0 or not self.energy_high > self.energy_low:
            raise ModelError(
                "a novelty rule needs finite numbers, temperature > 0 and energy_high > energy_low, "
                f"found {asdict(self)}"
            )

    def energy(self, logits: np.ndarray) -> np.ndarray:
        """Return the energy of each cell, scaled to 0...1 and clipped, ``(n_cells,)``."""
        scaled = np.asarray(logits, dtype=np.float64) / self.temperature
        raw = -self.temperature * np.logaddexp.reduce(scaled, axis=1)
        spread = self.energy_high - self.energy_low
        result: np.ndarray = np.clip((raw - self.energy_low) / spread, 0.0, 1.0)
        return result

    def score(self, logits: np.ndarray) -> np.ndarray:
        """Return (E + 1 - p) / 2 in 0...1 for logits ``(n_cells, n_types)``; p is the largest probability."""
        values = np.asarray(logits, dtype=np.float64)
        highest = values.max(axis=1)
        confidence = np.exp(highest - np.logaddexp.reduce(values, axis=1))
        result: np.ndarray = (self.energy(values) + 1.0 - confidence) / 2.0
        return result

    def is_novel(self, score: np.ndarray) -> np.ndarray:
        """Return for each score whether it lies above the threshold."""
        result: np.ndarray = np.asarray(score) > self.threshold
        return result

    def to_json(self) -> dict[str, float]:
        """Return the fields as a JSON document."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> NoveltyRule:
        """Return the rule that `to_json` wrote; raises `ModelError` on other keys or values."""
        wanted = sorted(field.name for field in fields(cls))
        if not isinstance(document, dict) or sorted(document) != wanted:
            raise ModelError(f"a novelty rule has the keys {wanted}, found {document!r:.200}")
        return cls(**document)


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
