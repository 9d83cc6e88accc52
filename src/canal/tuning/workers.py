"""Where a study's trials are stored, and how the processes that share it know of each other.

On one machine (a journal below ``.canal/``, or SQLite) a process counts as running as long as it holds the
lock of a file. In PostgreSQL, which processes of many machines share, it counts as running as long as its
trial has a fresh heartbeat; Optuna fails a trial whose heartbeat stopped, and queues it again. In both, one
process at a time draws a trial, so that there are never more than asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from canal.config.params import Tuning
from canal.core.errors import ConfigError, TrainingError, has_password, shown_address, without_secrets

PUBLISHED, QUEUED = "published", "queued"
"""Marks of a trial: that it is the published point, and the parameters that it was queued with."""

STORAGE = "CANAL_TUNING_STORAGE"
"""The environment variable that names a storage instead of ``tuning.storage``: it may hold a password."""

MOST_RETRIES = 3
"""After so many retries on many machines a trial counts as failed: it may be what ends its processes."""

_SQLITE, _POSTGRESQL = "sqlite:///", "postgresql"
_BEATS = 3
"""Heartbeats that a trial may miss before it counts as lost."""


class Workers(Protocol):
    """How the processes of a study know of each other."""

    @property
    def storage(self) -> BaseStorage:
        """Optuna's storage."""
        ...

    @property
    def waits(self) -> bool:
        """Whether a process without a trial to begin waits for those of others, to take over lost ones."""
        ...

    def at_work(self) -> Any:
        """Return a context manager that gives this process a name as long as it works."""
        ...

    def drawing(self) -> Any:
        """Return a context manager that one process at a time is in."""
        ...

    def training(self, study: optuna.Study, trial: Trial) -> Any:
        """Return a context manager in which a trial of this process counts as running."""
        ...

    def give_up_lost(self, study: optuna.Study) -> None:
        """Fail the trials whose process has ended, and queue them again; the caller is drawing."""
        ...

    def rest(self) -> None:
        """Wait before looking at the trials of other processes again."""
        ...


def open_workers(tuning: Tuning, name: str, folder: Path, root: Path) -> Workers:
    """Open the storage of the study ``name`` and return what its processes know each other by.

    Parameters
    ----------
    tuning
        Its ``storage`` is a URL; the environment variable `STORAGE` comes first. None: a journal.
    name
    folder
        For the journal and for locks.
    root
        The project folder, in which a relative path of an SQLite URL lies.

    Raises
    ------
    ConfigError
        If Optuna cannot open the storage, or params.yaml holds a password.
    TrainingError
        If the journal is damaged.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    told, url = STORAGE, os.environ.get(STORAGE)
    if not url:
        told, url = "tuning.storage", tuning.storage
        if url is not None and has_password(url):
            raise ConfigError(
                f"tuning.storage holds a password ({shown_address(url)}), and params.yaml is kept in git: "
                f"leave the password out and let libpq find it (PGPASSWORD, ~/.pgpass), or export {STORAGE}"
            )
    if url is None:
        return LocalWorkers(_journal(folder / f"{name}.log"), folder / f"{name}.workers")
    if url.startswith(_SQLITE):
        path = root / url.removeprefix(_SQLITE)
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"{_SQLITE}{path}"
    try:
        if url.startswith(_POSTGRESQL):
            return RemoteWorkers.open(url, name, tuning.heartbeat_seconds)
        return LocalWorkers(optuna.storages.get_storage(url), folder / f"{name}.workers")
    except Exception as error:  # whatever a database's driver raises
        raise ConfigError(
            f"{told}: Optuna cannot open it ({_shown(error, url)}); "
            "leave it out for a journal below .canal/tuning, or give a URL such as sqlite:///tuning.db"
        ) from error


# On one machine.


@dataclass(frozen=True)
class LocalWorkers:
    """Processes of one machine: each holds the lock of a file in ``claims`` as long as it lives."""

    storage: BaseStorage
    claims: Path
    waits: bool = False

    def at_work(self) -> Any:
        """Return a context manager that gives this process a name as long as it works."""
        return at_work(self.claims)

    def drawing(self) -> Any:
        """Return a context manager that one process at a time is in."""
        self.claims.mkdir(parents=True, exist_ok=True)
        return FileLock(self.claims / "ask.lock")

    @contextmanager
    def training(self, study: optuna.Study, trial: Trial) -> Iterator[None]:
        """Train; the lock of this process says that the trial is running."""
        yield

    def give_up_lost(self, study: optuna.Study) -> None:
        """Fail the trials whose process has ended, and queue their parameters again."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker is None or not is_alive(self.claims, worker):
                give_up(study, trial)

    def rest(self) -> None:
        """Wait not at all: the process that started the others looks after them."""


def give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fail a trial whose process has ended, and queue its parameters again.

    They are queued first, so that a kill in between does not lose the parameters. A trial that no process had
    taken yet is drawn again instead.
    """
    attrs = trial.user_attrs
    params = attrs.get(QUEUED, {}) | trial.params
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    taken = attrs.get("worker") is not None or QUEUED in attrs
    if taken and "reason" not in attrs and params not in [one.user_attrs.get(QUEUED) for one in waiting]:
        queue(study, params, {key: True for key in (PUBLISHED,) if attrs.get(key)})
    study.tell(trial.number, state=TrialState.FAIL)


def queue(study: optuna.Study, params: dict[str, Any], marks: dict[str, Any]) -> None:
    """Queue parameters, which the next trial will have."""
    study.enqueue_trial(params, user_attrs={QUEUED: params} | marks)


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


# On many machines.


@dataclass(frozen=True)
class RemoteWorkers:
    """Processes of many machines that share a study in PostgreSQL.

    Attributes
    ----------
    storage : RDBStorage
    url : str
    name : str
        The study's.
    every : int
        Seconds between two heartbeats of a trial.
    """

    storage: RDBStorage
    url: str
    name: str
    every: int
    waits: bool = True

    @classmethod
    def open(cls, url: str, name: str, every: int) -> RemoteWorkers:
        """Open the database, and create Optuna's tables if they do not exist: one process at a time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retry = RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES)
            with _alone(url, "canal: Optuna's tables"):
                storage = RDBStorage(
                    url,
                    engine_kwargs={"pool_pre_ping": True, "pool_size": 2},
                    heartbeat_interval=every,
                    grace_period=_BEATS * every,
                    heartbeat_stale_trial_callback=lambda study, trial: retry(study, _anew(trial)),
                )
        return cls(storage, url, name, every)

    @contextmanager
    def at_work(self) -> Iterator[str]:
        """Give this process a name; a database that stops answering is an error in one line."""
        try:
            yield uuid4().hex
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise TrainingError(
                f"the database of the study {self.name} ({shown_address(self.url)}) no longer answers: "
                f"{_shown(error, self.url)}; finished trials are kept: once it answers, run the same again"
            ) from error

    def drawing(self) -> Any:
        """Return a context manager that one process at a time is in: a lock of the database."""
        return _alone(self.url, self.name)

    @contextmanager
    def training(self, study: optuna.Study, trial: Trial) -> Iterator[None]:
        """Record a heartbeat now and then, so that the trial counts as running."""
        study_id = self.storage.get_study_id_from_name(study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.every):
                with suppress(
                    Exception
                ):  # a database that is gone for long ends the trial at its next report
                    self.storage.record_heartbeat(trial_id)

        self.storage.record_heartbeat(trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def give_up_lost(self, study: optuna.Study) -> None:
        """Fail trials without a fresh heartbeat, which Optuna queues again, and those that never had one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") is None:  # its process was killed while it drew
                give_up(study, trial)

    def rest(self) -> None:
        """Wait before looking at the trials of other processes again."""
        time.sleep(min(self.every, 5))


def _anew(trial: FrozenTrial) -> FrozenTrial:
    """Return a lost trial as it is queued: of what its process noted, the marks alone."""
    again = copy(trial)
    marks = {key: True for key in (PUBLISHED,) if trial.user_attrs.get(key)}
    again.user_attrs = {QUEUED: trial.user_attrs.get(QUEUED, {}) | trial.params} | marks
    return again


def lost_too_often(trial: FrozenTrial) -> bool:
    """Whether a failed trial was the last try of parameters whose processes all ended."""
    return len(trial.system_attrs.get("retry_history", [])) >= MOST_RETRIES


@contextmanager
def _alone(url: str, name: str) -> Iterator[None]:
    """Hold an advisory lock of PostgreSQL, which is released with its process or its machine."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
    engine = sqlalchemy.create_engine(
        url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 10}
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield


def _shown(error: Exception, url: str) -> str:
    """Return the innermost cause in one line, without secrets."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [""]
    return without_secrets(f"{type(error).__name__}: {lines[0]}", url)[:200]
