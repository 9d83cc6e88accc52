"""Attempts at a stage: the search space of a study, short trainings with its settings, and their score.

Only validation cells of the new stage and probe sets of the earlier ones are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from canal.config.params import Dimension, Strengths, Tuning
from canal.config.sections import PUBLISHED_BANK_SIZE, PUBLISHED_DISTILLATION, Continual
from canal.continual.bank import Bank, cut
from canal.continual.fit import Epoch, Hooks
from canal.continual.stage import Task
from canal.continual.trainer import learn_stage
from canal.core.digests import json_digest

if TYPE_CHECKING:
    from canal.continual.cells import LabelledCells
    from canal.model.annotator import Annotator


Changes = dict[str, float | int]
"""Names of `Continual` with the values of a trial."""

Params = Mapping[str, Any]
"""Optuna's parameters of a trial."""

_ZERO_SHARE = 0.1
_RATE_FACTOR = 4.0
_MOST_SMOOTHING = 0.3


@dataclass(frozen=True, eq=False)
class Attempts:
    """A stage, ready to be learned with many settings; all attempts share cells, their order and caches.

    Attributes
    ----------
    task : Task
        The stage; its replay is replaced. It has no test cells, so no attempt can use one.
    bank : Bank
        The parent's bank, not cut.
    own : Continual
        Settings that an attempt does not change.
    tuning : Tuning
    capacity : int
        Cells that a version stores: the price of L is its share of them.
    hooks : Hooks
        Device and caches; attempts keep no checkpoints, they are short.
    """

    task: Task
    bank: Bank
    own: Continual
    tuning: Tuning
    capacity: int
    hooks: Hooks

    @cached_property
    def teacher(self) -> dict[str, float]:
        """The teacher's accuracy on each earlier stage's probe set."""
        assert self.task.teacher is not None, "a first stage is not tuned"  # noqa: S101
        teacher = self.task.teacher
        return accuracy_by_stage(teacher, self.task.probe.narrowed(len(teacher.genes)))

    def learn(self, changes: Changes, report: Report) -> Attempt:
        """Learn the stage for a few epochs; the score is that of the epoch that a training would keep.

        Raises
        ------
        TrainingError
            If the loss stops being finite.
        """
        price = self.tuning.size_price * changes["bank_size"] / self.capacity

        def on_epoch(epoch: Epoch) -> None:
            present = score(epoch, self.teacher)
            report(epoch["epoch"], present, present.value(price))

        task = self._task(changes)
        hooks = replace(self.hooks, on_epoch=on_epoch, checkpoint_dir=None)
        history = learn_stage(task, self._settings(changes), hooks).history
        best = history["best_epoch"]
        best_score = score(history["epochs"][best - 1], self.teacher)
        return Attempt(best_score, best_score.value(price), best, len(task.replay))

    def identity(self, changes: Changes) -> str:
        """Return a digest of all that distinguishes this attempt: equal digests learn equal weights."""
        settings = self._settings(changes).model_dump(
            mode="json", exclude={"bank_size", "method"}, exclude_none=True
        )
        return json_digest([settings, self._task(changes).replay.cell_ids])

    def _task(self, changes: Changes) -> Task:
        size = int(changes["bank_size"])
        return replace(self.task, replay=cut(self.bank, size, len(self.task.old_labels)).cells)

    def _settings(self, changes: Changes) -> Continual:
        settings = self.own.model_copy(update=dict(changes))
        return settings.model_copy(update={"max_epochs": min(self.tuning.epochs, settings.max_epochs)})


# The search space.


@dataclass(frozen=True)
class Space:
    """The search space of one stage.

    Attributes
    ----------
    strengths : Strengths
        The range of lambda.
    sizes : tuple of int
        Values of L, ascending; the published one, cut to what a version stores, is among them.
    published_size : int
    dimensions : tuple of str
        Further settings that are varied.
    own : Continual
        The stage's settings; the first trial has them all but for lambda and L.
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
        """Return the search space for the section ``tuning`` of params.yaml.

        Parameters
        ----------
        own
            The stage's settings.
        capacity
            Cells that a version stores.
        n_old_cells
            Training cells of all earlier stages, whose shares ``bank_shares`` are.
        n_old_types
            A smaller L, but for 0, would leave no cell for some of them: it is raised to this number.
        """
        published = max(n_old_types, min(PUBLISHED_BANK_SIZE, capacity))
        shares = [min(capacity, round(share * n_old_cells)) for share in tuning.bank_shares]
        sizes = {max(n_old_types, size) if size else 0 for size in (*tuning.bank_sizes, *shares, published)}
        return cls(
            tuning.distillation, tuple(sorted(sizes)), published, tuning.dimensions, own, tuning.epochs
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions that Optuna draws from.

        Exactly 0 is represented by a tenth of lambda's logarithmic range, below ``low``. A switch of its own
        would spend half of the first trials on it, and hide from the sampler that 0 is next to a small
        lambda.
        """
        lowest, high = self.strengths.low, self.strengths.high
        if self.strengths.with_zero:
            lowest *= (lowest / high) ** (_ZERO_SHARE / (1 - _ZERO_SHARE))
        strength = FloatDistribution(lowest, high, log=True)
        both: dict[str, BaseDistribution] = {
            "distillation": strength,
            "bank_size": CategoricalDistribution(self.sizes),
        }
        return both | {name: self.distribution_of(name) for name in self.dimensions}

    def changes(self, params: Params) -> Changes:
        """Return the settings for a trial's parameters; lambda has three digits."""
        strength = float(f"{params['distillation']:.3g}")
        settings: Changes = {
            "distillation": 0.0 if strength < self.strengths.low else strength,
            "bank_size": int(params["bank_size"]),
        }
        return settings | {name: params[name] for name in self.dimensions}

    def published(self) -> dict[str, Any]:
        """Return the parameters of the first trial: the published lambda and L, all else as params.yaml."""
        params: dict[str, Any] = {
            "distillation": PUBLISHED_DISTILLATION,
            "bank_size": self.published_size,
        }
        own = {name: getattr(self.own, name) for name in self.dimensions}
        if "max_epochs" in own:
            own["max_epochs"] = self.epochs
        return params | own

    def distribution_of(self, name: Dimension) -> BaseDistribution:
        """Return the distribution of a further setting, around the stage's own value."""
        if name == "learning_rate":
            rate = self.own.learning_rate
            return FloatDistribution(rate / _RATE_FACTOR, rate * _RATE_FACTOR, log=True)
        if name == "label_smoothing":
            return FloatDistribution(0.0, max(_MOST_SMOOTHING, self.own.label_smoothing))
        return IntDistribution(1, self.epochs)


# The score of an attempt.


@dataclass(frozen=True)
class Score:
    """Two aims of a stage, each in 0...1.

    Attributes
    ----------
    accuracy : float
        Balanced accuracy on the new stage's validation cells: the mean recall of its types.
    retention : float
        Share of the teacher's accuracy on its probe set that an earlier stage keeps, averaged over all
        earlier stages, so that a stage long past counts as much as the last one (Renate#58).
    """

    accuracy: float
    retention: float

    @property
    def harmonic_mean(self) -> float:
        """The harmonic mean of both, which is high only where both are high."""
        total = self.accuracy + self.retention
        return 2 * self.accuracy * self.retention / total if total else 0.0

    def value(self, price: float) -> float:
        """Return the value that is maximised: the harmonic mean less the price of the replayed bank."""
        return self.harmonic_mean - price

    def to_json(self) -> dict[str, float]:
        """Return a JSON document."""
        return asdict(self) | {"harmonic_mean": self.harmonic_mean}


@dataclass(frozen=True)
class Attempt:
    """The result of an attempt.

    Attributes
    ----------
    score : Score
        Of the epoch that a training would keep.
    value : float
        The value that is maximised.
    epoch : int
    n_replay : int
        Bank cells that were replayed.
    """

    score: Score
    value: float
    epoch: int
    n_replay: int


Report = Callable[[int, Score, float], None]
"""Called with an epoch's number, score and value; an exception ends the attempt."""


def score(epoch: Mapping[str, Any], teacher: Mapping[str, float]) -> Score:
    """Return the score of an epoch's record (`canal.continual.trainer`) beside the teacher's accuracies."""
    return Score(epoch["validation_balanced_accuracy"], retention(epoch["probe_accuracy"], teacher))


def retention(student: Mapping[str, float], teacher: Mapping[str, float]) -> float:
    """Return the mean share of the teacher's accuracy that is kept, over its stages; 1 without stages.

    A stage counts 1 at most, so that a gain on one hides no loss on another, and 1 where the teacher's
    accuracy is 0.
    """
    shares = [min(1.0, student[stage] / accuracy) if accuracy else 1.0 for stage, accuracy in teacher.items()]
    return float(np.mean(shares)) if shares else 1.0


def effective_cells(types: Sequence[str]) -> float:
    """Return the number of cells whose accuracy is as uncertain as the balanced accuracy of these cells.

    Where K types with n_k cells have equal recalls p, their mean has the variance p(1 - p) / K² · Σ 1/n_k,
    an accuracy of n cells p(1 - p) / n: n = K² / Σ 1/n_k. A type of two cells weighs as much as one
    of a hundred, so this is far below the number of cells. ``types``: one entry a cell; 0.0 for none.
    """
    counts = Counter(types).values()
    return len(counts) ** 2 / sum(1 / n for n in counts) if counts else 0.0


def accuracy_by_stage(annotator: Annotator, cells: LabelledCells) -> dict[str, float]:
    """Return the annotator's accuracy on each stage's cells."""
    accuracies = {}
    for stage in cells.stage_names:
        part = cells.of_stage(stage)
        right = np.array(annotator.predict(part.expression).labels) == np.array(part.cell_types)
        accuracies[stage] = float(right.mean())
    return accuracies
