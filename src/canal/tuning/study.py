"""A study over lambda and L: trials asked for, run and told, by one process or many, killed or not.

Two things make a study that was killed end as if it had not been: the sampler is seeded anew before each ask
from the study's digest and the number of trials by then (its state is in no storage), and a trial that lost
its process is given up and its parameters are tried again. A process is at work as long as it holds its lock,
however it ends. A study is kept in a journal below ``.canal/``, or any place that Optuna knows by a URL.
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
    """What runs a trial; see `canal.tuning.attempts`."""

    def learn(self, changes: Changes, report: Report) -> Attempt:
        """Learn a stage with these settings, telling each epoch."""
        ...

    def identity(self, changes: Changes) -> str:
        """Return what is the same for two attempts that learn the same."""
        ...


@dataclass(frozen=True)
class Watch:
    """Who is told what happens: each epoch of this process' trials, and each time a trial of its ends."""

    on_epoch: Callable[[Changes, int], None]
    on_trial: Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """A study that is to be.

    Attributes
    ----------
    stage : str
    digest : str
        Of all that decides what comes out; the study's name holds it, so that no other one is taken for it.
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
        """The file that holds the study where no storage is named."""
        return self.folder / f"{self.name}.log"


@dataclass(frozen=True, eq=False)
class Study:
    """An open study."""

    plan: Plan
    optuna: optuna.Study

    @classmethod
    def open(cls, plan: Plan) -> Study:
        """Open the study, a new one or what there is of it."""
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
        """Run trials until there are as many as asked for, or the time is over.

        A trial whose training fails is told as failed, with the reason, and the next one is begun.

        Parameters
        ----------
        deadline
            The monotonic clock's time from which on no trial is begun, unless none has run to its end yet.
        shared
            Whether other processes work on the study, too.
        """
        with at_work(self._claims) as me:
            while deadline is None or time.monotonic() < deadline or not self._complete:
                asked = self._ask(learner, me, shared)
                if asked is None:
                    return
                self._run(*asked, learner, watch)
                watch.on_trial()

    def kept(self) -> list[FrozenTrial]:
        """Return the trials that count, the published one first: finished, and not given up."""
        trials = [one for one in self.optuna.get_trials(deepcopy=False) if _counts(one)]
        return sorted(trials, key=lambda one: (not one.user_attrs.get(PUBLISHED, False), one.number))

    @property
    def _complete(self) -> bool:
        return any(one.state is TrialState.COMPLETE for one in self.kept())

    @property
    def _claims(self) -> Path:
        return self.plan.folder / f"{self.plan.name}.workers"

    def _ask(self, learner: Learner, me: str, shared: bool) -> tuple[Trial, Changes] | None:
        """Return the next trial, or None if there are enough; one process asks at a time."""
        with FileLock(self._claims / "ask.lock"):
            self._give_up_lost()
            trials = self.optuna.get_trials(deepcopy=False)
            if not any(one.user_attrs.get(PUBLISHED) for one in trials):
                self._queue(self.plan.space.published(), {PUBLISHED: True})
            begun = len(self.kept()) + len(self._running())
            if begun >= self.plan.tuning.n_trials:
                return None
            trial, changes, identity = self._draw(learner, begun)
            for name, value in {**changes, "training": identity, "shared": shared, "worker": me}.items():
                trial.set_user_attr(name, value)
        return trial, changes

    def _draw(self, learner: Learner, begun: int) -> tuple[Trial, Changes, str]:
        """Draw a trial that learns what no other one does: to learn the same twice tells nothing.

        ``begun`` trials count by now; for one process alone that is those that are finished.
        """
        space, tuning = self.plan.space, self.plan.tuning
        known = {one.user_attrs.get("training") for one in (*self.kept(), *self._running())}
        for draw in range(_DRAWS):
            # A sampler that sees one good point may draw nothing else: it is sent anywhere then.
            startup = tuning.startup_trials if draw < _DRAWS // 2 else tuning.n_trials + 1
            seed = _seed(self.plan.digest, begun, draw)
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
            last_one = epoch >= self.plan.tuning.epochs  # to end it then would save nothing
            if not last_one and not trial.user_attrs.get(PUBLISHED) and trial.should_prune():
                raise optuna.TrialPruned

        try:
            found = learner.learn(changes, report)
        except optuna.TrialPruned:
            _note(trial, last[0])
            self.optuna.tell(trial, state=TrialState.PRUNED)
        except TrainingError as error:
            trial.set_user_attr("reason", str(error))
            self.optuna.tell(trial, state=TrialState.FAIL)
        else:
            _note(trial, found.score, epoch=found.epoch, n_replay=found.n_replay)
            self.optuna.tell(trial, found.value)

    def _running(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _waiting(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _queue(self, params: dict[str, Any], marks: dict[str, Any]) -> None:
        self.optuna.enqueue_trial(params, user_attrs={QUEUED: params} | marks)

    def _give_up_lost(self) -> None:
        """Fail the trials whose process is gone, and queue their parameters again.

        They are queued first: a kill in between leaves a trial that is found lost again, but not its
        parameters lost. A trial that no process had taken when it was killed is drawn again instead.
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
    """Whether a trial is finished and was not given up; a failure that counts has a reason."""
    if trial.state is TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _note(trial: Trial, score: Score, **others: Any) -> None:
    for name, value in (score.to_json() | others).items():
        trial.set_user_attr(name, value)


def _seed(digest: str, begun: int, draw: int) -> int:
    """Return the sampler's seed: nothing but the study and what is known by now decides what comes next."""
    text = f"{digest}:{begun}:{draw}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """Give this process a name that `is_alive` knows until the block ends or the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid4().hex
    try:
        with FileLock(_lock_of(folder, name)):
            yield name
    finally:
        _lock_of(folder, name).unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process of this name is still at work; the lock of one that was killed is removed."""
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
        If there is nothing at the URL that Optuna can open.
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
        said = str(error).splitlines()[0] if str(error) else ""
        shown = without_secrets(f"{type(error).__name__}: {said}", url)
        raise ConfigError(
            f"tuning.storage: Optuna cannot open it ({shown[:200]}); "
            "leave it out for a journal below .canal/tuning, or give a URL such as sqlite:///tuning.db"
        ) from error


def _journal(path: Path) -> JournalStorage:
    """Return a journal storage; a last line that a crash of the machine cut off is removed first.

    Its lock ends with its process: Optuna's own outlives a kill by half a minute.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        _mend(path)
    try:
        # FileLock is not of Optuna's class of locks, but is acquired and released as they are.
        lock: Any = FileLock(path.with_suffix(".lock"))
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        raise TrainingError(
            f"{path} is damaged, or no journal of Optuna's ({error}): delete it, and the study starts over"
        ) from error


def _mend(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as stream:
            stream.truncate(whole)
