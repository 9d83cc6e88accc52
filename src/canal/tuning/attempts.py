"""One attempt: the stage learned for a few epochs with a trial's settings. Knows nothing of Optuna."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from canal.config.params import Tuning
from canal.config.sections import Continual
from canal.continual.bank import Bank, cut
from canal.continual.fit import Epoch, Hooks
from canal.continual.task import Lesson
from canal.continual.trainer import learn_stage
from canal.core.digests import json_digest
from canal.tuning.objective import Attempt, Report, accuracy_by_stage, score
from canal.tuning.space import Changes


@dataclass(frozen=True, eq=False)
class Attempts:
    """A stage, ready to be learned with many settings; all attempts share cells, their order and caches.

    Attributes
    ----------
    lesson : Lesson
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

    lesson: Lesson
    bank: Bank
    own: Continual
    tuning: Tuning
    capacity: int
    hooks: Hooks

    @cached_property
    def teacher(self) -> dict[str, float]:
        """The teacher's accuracy on each earlier stage's probe set."""
        assert self.lesson.teacher is not None, "a first stage is not tuned"  # noqa: S101
        teacher = self.lesson.teacher
        return accuracy_by_stage(teacher, self.lesson.probe.narrowed(len(teacher.genes)))

    def learn(self, changes: Changes, report: Report) -> Attempt:
        """Learn the stage for a few epochs; the score is that of the epoch which a training would keep.

        Raises
        ------
        TrainingError
            If the loss stops being finite.
        """
        price = self._price(changes)

        def tell(epoch: Epoch) -> None:
            found = score(epoch, self.teacher)
            report(epoch["epoch"], found, found.value(price))

        lesson = self._lesson(changes)
        hooks = replace(self.hooks, on_epoch=tell, checkpoint_dir=None)
        history = learn_stage(lesson, self._settings(changes), hooks).history
        best = history["best_epoch"]
        found = score(history["epochs"][best - 1], self.teacher)
        return Attempt(found, found.value(price), best, len(lesson.replay))

    def identity(self, changes: Changes) -> str:
        """Return a digest of all that tells this attempt from others: two with the same learn the same."""
        settings = self._settings(changes).model_dump(
            mode="json", exclude={"bank_size", "method"}, exclude_none=True
        )
        return json_digest([settings, self._lesson(changes).replay.cell_ids])

    def _lesson(self, changes: Changes) -> Lesson:
        size = int(changes["bank_size"])
        return replace(self.lesson, replay=cut(self.bank, size, len(self.lesson.old_labels)).cells)

    def _settings(self, changes: Changes) -> Continual:
        settings = self.own.model_copy(update=dict(changes))
        return settings.model_copy(update={"max_epochs": min(self.tuning.epochs, settings.max_epochs)})

    def _price(self, changes: Changes) -> float:
        return self.tuning.size_price * changes["bank_size"] / self.capacity
