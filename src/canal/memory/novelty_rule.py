"""When a cell is none of the known types: parts of novelty summed, and a threshold kept on known cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from canal.core.errors import CanalError, SumsError

PARTS = ("relative", "angle")
"""What the novelty of sums may be made of: how much worse the nearest type explains a cell than all cells do,
and how unlike the pattern of every type the cell is."""


@dataclass(frozen=True)
class PartsRule:
    """Parts of a novelty score, each in standard deviations above what known cells have, and a threshold.

    Attributes
    ----------
    parts : dict
        Of each part that counts, its mean and standard deviation over known cells.
    threshold : float
        A score above it is novel.
    """

    parts: Mapping[str, tuple[float, float]]
    threshold: float

    allowed: ClassVar[tuple[str, ...]] = PARTS
    error: ClassVar[type[CanalError]] = SumsError
    what: ClassVar[str] = "a novelty rule of sums"

    def __post_init__(self) -> None:
        numbers = [value for pair in self.parts.values() for value in pair]
        known = self.parts and set(self.parts) <= set(self.allowed)
        if not known or not np.isfinite([*numbers, self.threshold]).all() or min(numbers[1::2]) <= 0:
            raise self.error(
                f"{self.what} needs parts of {self.allowed} with spreads > 0, found {self}: restore the model"
            )

    @classmethod
    def fitted(cls, found: Mapping[str, np.ndarray], parts: Sequence[str], share: float) -> Self | None:
        """Return the rule of these parts that calls at most a ``share`` of known cells novel, or None.

        Parameters
        ----------
        found
            Each part of the known cells, ``(n_cells,)``; without any there is no rule. What never varies has
            a spread of 1.
        """
        if not len(found[parts[0]]):
            return None
        usual = {name: (float(found[name].mean()), float(found[name].std()) or 1.0) for name in parts}
        return cls(usual, quantile_threshold(cls(usual, 0.0).score(found), share))

    def score(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the parts, each in standard deviations above its mean and summed, squeezed into 0...1."""
        parts = sorted(self.parts.items())  # as JSON has them: the sum's last bits are those of a stored rule
        total = sum((found[name] - mean) / spread for name, (mean, spread) in parts)
        return squeezed(np.asarray(total, dtype=np.float64))

    def is_novel(self, score: np.ndarray) -> np.ndarray:
        """Return for each score whether it lies above the threshold."""
        result: np.ndarray = np.asarray(score) > self.threshold
        return result

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        parts = {name: list(pair) for name, pair in self.parts.items()}
        return {"parts": parts, "threshold": self.threshold}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Return the rule that `to_json` wrote; raises the class's error on anything else."""
        try:
            parts = {str(name): (float(a), float(b)) for name, (a, b) in document["parts"].items()}
            return cls(parts, float(document["threshold"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise cls.error(f"{cls.what} is damaged ({error}): {document!r:.200}") from error


class SumsRule(PartsRule):
    """A rule of the sums' own parts."""


def quantile_threshold(scores: np.ndarray, false_unassigned: float) -> float:
    """Return the lowest known score that at most a share ``false_unassigned`` of known scores exceeds."""
    return float(np.quantile(scores, 1.0 - false_unassigned, method="higher"))


def squeezed(total: np.ndarray) -> np.ndarray:
    """Return standard deviations as a score in 0...1; 0.5 is what known cells have on average."""
    result: np.ndarray = 0.5 + 0.5 * np.tanh(total / 4.0)
    return result


def unsqueezed(score: np.ndarray) -> np.ndarray:
    """Return a score of 0...1 as it was before `squeezed`."""
    inside = np.clip(np.asarray(score, dtype=np.float64), 1e-12, 1 - 1e-12)
    result: np.ndarray = 4.0 * np.arctanh(2.0 * inside - 1.0)
    return result
