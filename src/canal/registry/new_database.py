"""MLflow's tables made beside their place, which they take when they are whole.

MLflow makes them in place, in some sixty steps that SQLite does not take back: what a kill left of them is no
database, and no MLflow goes on with it ("table ... already exists").
"""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from canal.core.files import first_file
from canal.registry.database import Database

_STILL_S = 20.0
"""Seconds without a change after which nobody is at work any more on a file that is no whole database yet."""

_WAIT_S = 60.0
_FIRST = "experiments"
"""A table that MLflow makes first of all."""

_SEEDED = ("alembic_version", "workspaces")
"""Tables that have rows when nothing was ever registered."""


def ensure_database(path: Path) -> None:
    """Make MLflow's tables in a file that is not there, whole or not at all; what is there stays.

    Only a file that an interrupted making left, of MLflow's tables without a single row, is made anew. The
    caller holds the store's lock; other folders that make the same file at once are in nobody's way.
    """
    path = path.resolve()
    if Database(path).known:
        return
    if path.is_file() and _left_half_made(path):
        # What SQLite needed of a journal it has taken back by now; one that stays would be the next file's.
        _beside(path, "-journal").unlink(missing_ok=True)
        path.unlink()
    if not path.exists():
        with suppress(FileExistsError), first_file(path) as temporary:
            _make_tables(temporary)


def _make_tables(path: Path) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    address = sqlalchemy.URL.create("sqlite", database=str(path))
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()


def _left_half_made(path: Path) -> bool:
    """Whether a file is what a kill left while tables were made; one that still changes is waited for."""
    changed = path.stat().st_mtime
    while _half_made(path):
        if not 0 <= time.time() - changed < _STILL_S:
            return not _beside(path, "-wal").exists() and _nobody_writes(path)
        seen = path.stat().st_mtime  # to look at it may have changed it, too: see below
        time.sleep(0.2)
        changed = path.stat().st_mtime if path.stat().st_mtime != seen else changed
    return False


def _nobody_writes(path: Path) -> bool:
    """Whether no process is amid writing: a journal beside the file may be one that a kill left."""
    with closing(_opened(path, wait_s=0)) as file:
        try:
            file.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        file.execute("ROLLBACK")
    return True


def _opened(path: Path, wait_s: float) -> sqlite3.Connection:
    # Not read-only: what SQLite itself had not finished is taken back by the first who may write.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=wait_s, isolation_level=None)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _half_made(path: Path) -> bool:
    """Whether a file holds tables of MLflow, or none, not in the form that this MLflow gives them, no row."""
    try:
        with closing(_opened(path, _WAIT_S)) as file:
            tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            filled = {
                name
                for name in tables
                if file.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()  # noqa: S608
            }
    except sqlite3.Error:
        return False
    mine = not tables or _FIRST in tables or set(tables) <= {"alembic_version"}
    return mine and filled <= {*_SEEDED} and not Database(path).known
