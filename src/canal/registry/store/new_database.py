"""A new local MLflow database, whole or not there.

MLflow creates it in a temporary file, which is renamed into place: it creates tables in some sixty steps that
SQLite does not roll back, and a file that a kill left half-made is refused by every MLflow ("table ...
already exists").
"""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from canal.core.files import first_file
from canal.registry.store.database import WAIT_S, Database

_STILL_S = 20.0
"""Seconds without a change after which a half-made database counts as abandoned."""

_FIRST = "experiments"
"""The table that MLflow creates first."""

_SEEDED = ("alembic_version", "workspaces")
"""Tables with rows in an empty registry."""


def ensure_database(path: Path) -> None:
    """Create a database with MLflow's tables, atomically; an existing database stays as it is.

    Only a half-made file without a single row, left by a kill, is created anew. The caller holds the store's
    lock; of several folders that create the same file at once, the first wins.
    """
    path = path.resolve()
    if Database(path).known:
        return
    if path.is_file() and _left_half_made(path):
        # SQLite has rolled back the journal by now; a journal that stays would be taken for the new file's.
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
    """Whether a kill left a file half-made; waits while the file still changes."""
    changed = path.stat().st_mtime
    while _half_made(path):
        if not 0 <= time.time() - changed < _STILL_S:
            return not _beside(path, "-wal").exists() and _nobody_writes(path)
        seen = path.stat().st_mtime  # to look at it may have changed it, too: see below
        time.sleep(0.2)
        changed = path.stat().st_mtime if path.stat().st_mtime != seen else changed
    return False


def _nobody_writes(path: Path) -> bool:
    """Whether no process is writing: a journal beside the file may have been left by a kill."""
    with closing(_opened(path, wait_s=0)) as file:
        try:
            file.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        file.execute("ROLLBACK")
    return True


def _opened(path: Path, wait_s: float) -> sqlite3.Connection:
    # Not read-only: an unfinished transaction is rolled back by the first process that may write.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=wait_s, isolation_level=None)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _half_made(path: Path) -> bool:
    """Whether a file holds none or some of MLflow's tables, without any row and not of the known schema."""
    try:
        with closing(_opened(path, WAIT_S)) as file:
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
