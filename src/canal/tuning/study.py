"""The study of a stage over lambda and L, with Optuna: run by one process or several, and resumable.

A study that was killed and resumed gives the same result as one that was not: the sampler is seeded anew
before each trial from the study's digest and the number of trials so far (its state is in no storage), and a
trial whose process ended is failed and its parameters are queued again (`canal.tuning.workers`). A study is
stored in a journal below ``.canal/``, or at a URL that Optuna can open.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from canal.config.params import Tuning
from canal.core.errors import TrainingError, tell
from canal.tuning.attempts import Attempt, Changes, Report, Score, Space
from canal.tuning.workers import PUBLISHED, QUEUED, Workers, lost_too_often, open_workers, queue

_DRAWS = 10


class Learner(Protocol):
    """Runs a trial; see `canal.tuning.attempts`."""

    def learn(self, changes: Changes, report: Report) -> Attempt:
        """Learn a stage with these settings, and report each epoch."""
        ...

    def identity(self, changes: Changes) -> str:
        """Return a digest that is equal for attempts that learn equal weights."""
        ...


@dataclass(frozen=True)
class Watch:
    """Callbacks of this process: after each epoch of its trials, and after each of its trials."""

    on_epoch: Callable[[Changes, int], None]
    on_trial: Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """The settings of a study.

    Attributes
    ----------
    stage : str
    digest : str
        Of all that decides the result; it is part of the study's name, so that studies are not confused.
    space : Space
    tuning : Tuning
    folder : Path
        For the journal and for locks.
    root : Path
        The project folder.
    """

    stage: str
    digest: str
    space: Space
    tuning: Tuning
    folder: Path
    root: Path

    @property
    def name(self) -> str:
        """The study's name, and that of its journal."""
        return f"{self.stage}-{self.digest[:16]}"

    @property
    def journal(self) -> Path:
        """The file that stores the study where no storage is configured."""
        return self.folder / f"{self.name}.log"


@dataclass(frozen=True, eq=False)
class Study:
    """An open study."""

    plan: Plan
    optuna: optuna.Study
    workers: Workers

    @classmethod
    def open(cls, plan: Plan) -> Study:
        """Open the study, and create it if it does not exist."""
        workers = open_workers(plan.tuning, plan.name, plan.folder, plan.root)
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=plan.tuning.startup_trials, n_warmup_steps=plan.tuning.warmup_epochs + 1
        )
        study = optuna.create_study(
            study_name=plan.name,
            storage=workers.storage,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        return cls(plan, study, workers)

    def work(
        self, learner: Learner, watch: Watch, deadline: float | None = None, shared: bool = False
    ) -> None:
        """Run trials until ``tuning.n_trials`` are done, or the deadline has passed.

        A trial whose training fails is recorded as failed, with the reason, and the next one begins. On many
        machines a process waits for the trials of the others, so that all of them end with the same study.

        Parameters
        ----------
        deadline
            Time of the monotonic clock after which no trial begins, unless none has been completed yet.
        shared
            Whether other processes work on the study, too.
        """
        with self.workers.at_work() as worker:
            while deadline is None or time.monotonic() < deadline or not self._complete:
                drawn = self._next_trial(learner, worker, shared)
                if drawn is not None:
                    self._run(*drawn, learner, watch)
                    watch.on_trial()
                elif self.workers.waits and self._running():
                    self.workers.rest()
                else:
                    return

    def kept(self) -> list[FrozenTrial]:
        """Return the trials that count, the published one first: done, and not given up."""
        trials = [one for one in self.optuna.get_trials(deepcopy=False) if _counts(one)]
        return sorted(trials, key=lambda one: (not one.user_attrs.get(PUBLISHED, False), one.number))

    @property
    def _complete(self) -> bool:
        return any(one.state is TrialState.COMPLETE for one in self.kept())

    def _next_trial(self, learner: Learner, worker: str, shared: bool) -> tuple[Trial, Changes] | None:
        """Return the next trial, or None if there are enough; one process at a time."""
        with self.workers.drawing():
            self.workers.give_up_lost(self.optuna)
            trials = self.optuna.get_trials(deepcopy=False)
            if not any(one.user_attrs.get(PUBLISHED) and (_counts(one) or _ahead(one)) for one in trials):
                queue(self.optuna, self.plan.space.published(), {PUBLISHED: True})
            running = self._running()
            begun = len(self.kept()) + len(running)
            if begun >= self.plan.tuning.n_trials:
                return None
            trial, changes, identity = self._draw(learner, begun)
            marks = {"training": identity, "shared": shared or bool(running), "worker": worker}
            for name, value in (changes | marks).items():
                trial.set_user_attr(name, value)
        return trial, changes

    def _draw(self, learner: Learner, begun: int) -> tuple[Trial, Changes, str]:
        """Draw a trial that learns other weights than all trials before.

        ``begun`` trials count by now; for one process alone that is those that are finished.
        """
        space, tuning = self.plan.space, self.plan.tuning
        known = {one.user_attrs.get("training") for one in (*self.kept(), *self._running())}
        for draw in range(_DRAWS):
            # A sampler with one good point may draw only that: after some draws it draws at random.
            startup = tuning.startup_trials if draw < _DRAWS // 2 else tuning.n_trials + 1
            # The study and the number of trials alone decide what is drawn next.
            text = f"{self.plan.digest}:{begun}:{draw}"
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
            self.optuna.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
            with warnings.catch_warnings():  # the heartbeat is recorded by `Workers.training`
                warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
                trial = self.optuna.ask(space.distributions())
            changes = space.changes(trial.params)
            identity = learner.identity(changes)
            if QUEUED in trial.user_attrs or identity not in known or draw == _DRAWS - 1:
                break
            self.optuna.tell(trial, state=TrialState.FAIL)
        return trial, changes, identity

    def _run(self, trial: Trial, changes: Changes, learner: Learner, watch: Watch) -> None:
        last: list[Score] = []

        def report(epoch: int, score: Score, value: float) -> None:
            last[:] = [score]
            trial.report(value, epoch)
            watch.on_epoch(changes, epoch)
            is_last = epoch >= self.plan.tuning.epochs  # to prune it then would save nothing
            if not is_last and not trial.user_attrs.get(PUBLISHED) and trial.should_prune():
                raise optuna.TrialPruned

        try:
            with self.workers.training(self.optuna, trial):
                self._train(trial, changes, learner, report, last)
        except UpdateFinishedTrialError:  # this process had stopped for so long that another took it over
            tell(
                f"{self.plan.stage}: trial {trial.number} was given up, since its process had stopped; go on"
            )

    def _train(
        self, trial: Trial, changes: Changes, learner: Learner, report: Report, last: list[Score]
    ) -> None:
        """Train a trial, and record how it ended."""
        try:
            attempt = learner.learn(changes, report)
        except optuna.TrialPruned:
            _record(trial, last[0])
            self.optuna.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        except TrainingError as error:
            trial.set_user_attr("reason", str(error))
            self.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        else:
            _record(trial, attempt.score, epoch=attempt.epoch, n_replay=attempt.n_replay)
            self.optuna.tell(trial, attempt.value, skip_if_finished=True)

    def _running(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is done and was not given up; a failure that counts has a reason, or no retry."""
    if trial.state is TrialState.FAIL:
        return "reason" in trial.user_attrs or lost_too_often(trial)
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _ahead(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.WAITING, TrialState.RUNNING)


def _record(trial: Trial, score: Score, **others: Any) -> None:
    for name, value in (score.to_json() | others).items():
        trial.set_user_attr(name, value)
