"""What a study varies, between Optuna's parameters and a stage's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from canal.config.params import Dimension, Strengths, Tuning
from canal.config.sections import PUBLISHED_BANK_SIZE, PUBLISHED_DISTILLATION, Continual

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Changes = dict[str, float | int]
"""Names of `Continual` with the values of a trial."""

Params = Mapping[str, Any]
"""Optuna's parameters of a trial."""

_ZERO_SHARE = 0.1
_RATE_FACTOR = 4.0
_MOST_SMOOTHING = 0.3


@dataclass(frozen=True)
class Space:
    """What is varied for one stage.

    Attributes
    ----------
    strengths : Strengths
        The range of lambda.
    sizes : tuple of int
        Values of L, ascending; the published one, cut to what a version stores, is among them.
    published_size : int
    dimensions : tuple of str
        What else is varied.
    own : Continual
        The stage's settings, of which the first trial has all but lambda and L.
    epochs : int
        The most a trial runs.
    """

    strengths: Strengths
    sizes: tuple[int, ...]
    published_size: int
    dimensions: tuple[Dimension, ...]
    own: Continual
    epochs: int

    @classmethod
    def of(cls, tuning: Tuning, own: Continual, capacity: int, n_old_cells: int, n_old_types: int) -> Space:
        """Return what ``tuning`` asks for.

        Parameters
        ----------
        own
            The stage's settings.
        capacity
            Cells that a version stores.
        n_old_cells
            Training cells of all earlier stages, whose shares ``bank_shares`` are.
        n_old_types
            A smaller L but 0 would leave no cell for each of them: it is raised to this number.
        """
        published = max(n_old_types, min(PUBLISHED_BANK_SIZE, capacity))
        shares = [min(capacity, round(share * n_old_cells)) for share in tuning.bank_shares]
        sizes = {max(n_old_types, size) if size else 0 for size in (*tuning.bank_sizes, *shares, published)}
        return cls(
            tuning.distillation, tuple(sorted(sizes)), published, tuning.dimensions, own, tuning.epochs
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return what Optuna draws from.

        Exactly 0 is a tenth of lambda's logarithmic range, below ``low``: a value from there means 0. A
        switch of its own would spend half of the first trials on it, and hide from the sampler that 0 is
        the neighbour of a small lambda.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        lowest, high = self.strengths.low, self.strengths.high
        if self.strengths.with_zero:
            lowest *= (lowest / high) ** (_ZERO_SHARE / (1 - _ZERO_SHARE))
        strength = FloatDistribution(lowest, high, log=True)
        found: dict[str, BaseDistribution] = {
            "distillation": strength,
            "bank_size": CategoricalDistribution(self.sizes),
        }
        return found | {name: self._extra(name) for name in self.dimensions}

    def changes(self, params: Params) -> Changes:
        """Return the settings that a trial's parameters stand for; lambda has three digits."""
        strength = float(f"{params['distillation']:.3g}")
        found: Changes = {
            "distillation": 0.0 if strength < self.strengths.low else strength,
            "bank_size": int(params["bank_size"]),
        }
        return found | {name: params[name] for name in self.dimensions}

    def published(self) -> dict[str, Any]:
        """Return the parameters of the first trial: the published lambda and L, all else as params.yaml."""
        found: dict[str, Any] = {
            "distillation": PUBLISHED_DISTILLATION,
            "bank_size": self.published_size,
        }
        own = {name: getattr(self.own, name) for name in self.dimensions}
        if "max_epochs" in own:
            own["max_epochs"] = self.epochs
        return found | own

    def _extra(self, name: Dimension) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if name == "learning_rate":
            rate = self.own.learning_rate
            return FloatDistribution(rate / _RATE_FACTOR, rate * _RATE_FACTOR, log=True)
        if name == "label_smoothing":
            return FloatDistribution(0.0, max(_MOST_SMOOTHING, self.own.label_smoothing))
        return IntDistribution(1, self.epochs)
