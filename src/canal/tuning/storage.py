"""Where a study is kept: a journal below ``.canal/``, or any place that Optuna knows by a URL."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from canal.core.errors import ConfigError, TrainingError
from canal.core.messages import without_secrets

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, JournalStorage

_SQLITE = "sqlite:///"


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
    import optuna

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
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

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
