"""Attempts at a stage: what a study varies, learning with it for a few epochs, and how good that is.

Only validation cells of the new stage and probe sets of the earlier ones are looked at.
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
from canal.continual.task import Task
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
        The stage; its replay is replaced. It has no test cells, so no attempt can see one.
    bank : Bank
        The parent's bank, not cut.
    own : Continual
        Settings that an attempt does not change.
    tuning : Tuning
    capacity : int
        Cells that a version stores: L is priced as a share of it.
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
        """Learn the stage for a few epochs; the score is that of the epoch which a training would keep.

        Raises
        ------
        TrainingError
            If the loss stops being finite.
        """
        price = self.tuning.size_price * changes["bank_size"] / self.capacity

        def tell(epoch: Epoch) -> None:
            found = score(epoch, self.teacher)
            report(epoch["epoch"], found, found.value(price))

        task = self._task(changes)
        hooks = replace(self.hooks, on_epoch=tell, checkpoint_dir=None)
        history = learn_stage(task, self._settings(changes), hooks).history
        best = history["best_epoch"]
        found = score(history["epochs"][best - 1], self.teacher)
        return Attempt(found, found.value(price), best, len(task.replay))

    def identity(self, changes: Changes) -> str:
        """Return a digest of all that tells this attempt from others: two with the same learn the same."""
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


# What is varied.


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
        if name == "learning_rate":
            rate = self.own.learning_rate
            return FloatDistribution(rate / _RATE_FACTOR, rate * _RATE_FACTOR, log=True)
        if name == "label_smoothing":
            return FloatDistribution(0.0, max(_MOST_SMOOTHING, self.own.label_smoothing))
        return IntDistribution(1, self.epochs)


# How good an attempt is.


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
        """High only where both are: neither can be bought with the other."""
        total = self.accuracy + self.retention
        return 2 * self.accuracy * self.retention / total if total else 0.0

    def value(self, price: float) -> float:
        """Return the one number that is maximised: the harmonic mean less the price of the replayed bank."""
        return self.harmonic_mean - price

    def to_json(self) -> dict[str, float]:
        """Return a JSON document."""
        return asdict(self) | {"harmonic_mean": self.harmonic_mean}


@dataclass(frozen=True)
class Attempt:
    """What came of an attempt.

    Attributes
    ----------
    score : Score
        Of the epoch that a training would keep.
    value : float
        The one number of it that is maximised.
    epoch : int
    n_replay : int
        Bank cells that were replayed.
    """

    score: Score
    value: float
    epoch: int
    n_replay: int


Report = Callable[[int, Score, float], None]
"""Told an epoch's number, score and value; may raise to end the attempt."""


def score(epoch: Mapping[str, Any], teacher: Mapping[str, float]) -> Score:
    """Return the score of an epoch's record (`canal.continual.trainer`) beside the teacher's accuracies."""
    return Score(epoch["validation_balanced_accuracy"], retention(epoch["probe_accuracy"], teacher))


def retention(student: Mapping[str, float], teacher: Mapping[str, float]) -> float:
    """Return the mean share of the teacher's accuracy that is kept, over its stages; 1 where there is none.

    A stage counts 1 at most, so that what is gained on one hides no loss on another, and 1 where the teacher
    knew nothing.
    """
    shares = [min(1.0, student[stage] / accuracy) if accuracy else 1.0 for stage, accuracy in teacher.items()]
    return float(np.mean(shares)) if shares else 1.0


def effective_cells(types: Sequence[str]) -> float:
    """Return the number of cells of which an accuracy is as uncertain as the balanced one of these.

    Where K types with n_k cells have equal recalls p, their mean has the variance p(1 - p) / K² · Σ 1/n_k,
    an accuracy of n cells p(1 - p) / n: n = K² / Σ 1/n_k. A type of two cells is as heavy as one of a
    hundred, so this is far below the number of cells. ``types``: one entry a cell; 0.0 for none.
    """
    counts = Counter(types).values()
    return len(counts) ** 2 / sum(1 / n for n in counts) if counts else 0.0


def accuracy_by_stage(annotator: Annotator, cells: LabelledCells) -> dict[str, float]:
    """Return the share of each stage's cells that an annotator names right."""
    found = {}
    for stage in cells.stage_names:
        part = cells.of_stage(stage)
        right = np.array(annotator.predict(part.expression).labels) == np.array(part.cell_types)
        found[stage] = float(right.mean())
    return found
