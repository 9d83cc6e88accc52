"""The study of a stage over lambda and L, with Optuna: run by one process or several, and resumable.

A study that was killed and resumed gives the same result as one that was not: the sampler is seeded anew
before each trial from the study's digest and the number of trials so far (its state is in no storage), and a
trial whose process ended is failed and its parameters are queued again. A process counts as running as long
as it holds its lock. A study is stored in a journal below ``.canal/``, or at a URL that Optuna can open.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from canal.config.params import Tuning
from canal.core.errors import ConfigError, TrainingError, without_secrets
from canal.tuning.attempts import Attempt, Changes, Report, Score, Space

PUBLISHED, QUEUED = "published", "queued"
"""Marks of a trial: that it is the published point, and the parameters that it was queued with."""

_DRAWS = 10
_SQLITE = "sqlite:///"


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

    @classmethod
    def open(cls, plan: Plan) -> Study:
        """Open the study, and create it if it does not exist."""
        storage = open_storage(plan.tuning.storage, plan.journal, plan.root)
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=plan.tuning.startup_trials, n_warmup_steps=plan.tuning.warmup_epochs + 1
        )
        study = optuna.create_study(
            study_name=plan.name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )
        return cls(plan, study)

    def work(
        self, learner: Learner, watch: Watch, deadline: float | None = None, shared: bool = False
    ) -> None:
        """Run trials until ``tuning.n_trials`` are done, or the deadline has passed.

        A trial whose training fails is recorded as failed, with the reason, and the next one begins.

        Parameters
        ----------
        deadline
            Time of the monotonic clock after which no trial begins, unless none has been completed yet.
        shared
            Whether other processes work on the study, too.
        """
        with at_work(self._claims) as worker:
            while deadline is None or time.monotonic() < deadline or not self._complete:
                drawn = self._next_trial(learner, worker, shared)
                if drawn is None:
                    return
                self._run(*drawn, learner, watch)
                watch.on_trial()

    def kept(self) -> list[FrozenTrial]:
        """Return the trials that count, the published one first: done, and not given up."""
        trials = [one for one in self.optuna.get_trials(deepcopy=False) if _counts(one)]
        return sorted(trials, key=lambda one: (not one.user_attrs.get(PUBLISHED, False), one.number))

    @property
    def _complete(self) -> bool:
        return any(one.state is TrialState.COMPLETE for one in self.kept())

    @property
    def _claims(self) -> Path:
        return self.plan.folder / f"{self.plan.name}.workers"

    def _next_trial(self, learner: Learner, worker: str, shared: bool) -> tuple[Trial, Changes] | None:
        """Return the next trial, or None if there are enough; one process at a time."""
        with FileLock(self._claims / "ask.lock"):
            self._give_up_lost()
            trials = self.optuna.get_trials(deepcopy=False)
            if not any(one.user_attrs.get(PUBLISHED) for one in trials):
                self._queue(self.plan.space.published(), {PUBLISHED: True})
            begun = len(self.kept()) + len(self._running())
            if begun >= self.plan.tuning.n_trials:
                return None
            trial, changes, identity = self._draw(learner, begun)
            for name, value in {**changes, "training": identity, "shared": shared, "worker": worker}.items():
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
            attempt = learner.learn(changes, report)
        except optuna.TrialPruned:
            _record(trial, last[0])
            self.optuna.tell(trial, state=TrialState.PRUNED)
        except TrainingError as error:
            trial.set_user_attr("reason", str(error))
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            _record(trial, attempt.score, epoch=attempt.epoch, n_replay=attempt.n_replay)
            self.optuna.tell(trial, attempt.value)

    def _running(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _waiting(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _queue(self, params: dict[str, Any], marks: dict[str, Any]) -> None:
        self.optuna.enqueue_trial(params, user_attrs={QUEUED: params} | marks)

    def _give_up_lost(self) -> None:
        """Fail the trials whose process has ended, and queue their parameters again.

        They are queued first, so that a kill in between does not lose the parameters. A trial that no process
        had taken yet is drawn again instead.
        """
        for trial in self._running():
            worker = trial.user_attrs.get("worker")
            if worker is not None and is_alive(self._claims, worker):
                continue
            params = trial.user_attrs.get(QUEUED, {}) | trial.params
            queued = [one.user_attrs.get(QUEUED) for one in self._waiting()]
            taken = worker is not None or QUEUED in trial.user_attrs
            if taken and params not in queued and "reason" not in trial.user_attrs:
                marks = {key: True for key in (PUBLISHED,) if trial.user_attrs.get(key)}
                self._queue(params, marks)
            self.optuna.tell(trial.number, state=TrialState.FAIL)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is done and was not given up; a failure that counts has a reason."""
    if trial.state is TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _record(trial: Trial, score: Score, **others: Any) -> None:
    for name, value in (score.to_json() | others).items():
        trial.set_user_attr(name, value)


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """Yield a name for this process that `is_alive` finds until the block or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid4().hex
    try:
        with FileLock(_lock_of(folder, name)):
            yield name
    finally:
        _lock_of(folder, name).unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process of this name is still running; the lock of a killed process is removed."""
    path = _lock_of(folder, name)
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    return False


def _lock_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.worker"


def open_storage(url: str | None, journal: Path, root: Path) -> BaseStorage:
    """Return Optuna's storage at ``url``, or in the file ``journal``.

    A relative path in an sqlite URL is one in the project folder ``root``.

    Raises
    ------
    ConfigError
        If Optuna cannot open the URL.
    TrainingError
        If the journal is damaged.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    if url is None:
        return _journal(journal)
    if url.startswith(_SQLITE):
        path = root / url.removeprefix(_SQLITE)
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"{_SQLITE}{path}"
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # whatever a database's driver raises
        reason = str(error).splitlines()[0] if str(error) else ""
        shown = without_secrets(f"{type(error).__name__}: {reason}", url)
        raise ConfigError(
            f"tuning.storage: Optuna cannot open it ({shown[:200]}); "
            "leave it out for a journal below .canal/tuning, or give a URL such as sqlite:///tuning.db"
        ) from error


def _journal(path: Path) -> JournalStorage:
    """Return a journal storage; a last line that a crash of the machine cut off is removed first.

    The lock is released with its process: Optuna's own lock would last half a minute after a kill.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("rb+") as stream:
                stream.truncate(whole)
    try:
        # FileLock is not of Optuna's class of locks, but is acquired and released as they are.
        lock: Any = FileLock(path.with_suffix(".lock"))
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        raise TrainingError(
            f"{path} is damaged, or no journal of Optuna's ({error}): delete it, and the study starts over"
        ) from error
