"""A local MLflow database read without MLflow, whose import costs seconds, a look-up milliseconds.

Only reading, and only of the one schema that this MLflow writes. Of any other schema, and of a server,
nothing is known here, and MLflow's own client answers.

A new one is made by MLflow beside its place, which it takes when it is whole. MLflow makes tables in place,
in some sixty steps that SQLite does not take back: what a kill left of them is no database, and no MLflow
goes on with it ("table ... already exists").
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from canal.core.errors import RegistryError
from canal.core.files import first_file

SCHEMA = "dc11669786a5"
"""The alembic revision of MLflow 3.17's tables."""

_WAIT_S = 60.0
DELETED = "Deleted_Internal"
"""What MLflow calls the stage of a version that was deleted; its row stays."""

_STILL_S = 20.0
"""Seconds without a change after which nobody is at work any more on a file that is no whole database yet."""

_FIRST = "experiments"
"""A table that MLflow makes first of all."""

_SEEDED = ("alembic_version", "workspaces")
"""Tables that have rows when nothing was ever registered."""


@dataclass(frozen=True)
class Row:
    """One model version as MLflow's tables have it."""

    model: str
    number: int
    source: str
    run_id: str
    created: int
    tags: dict[str, str] = field(default_factory=dict)


class Database:
    """The tables of ``path``, opened anew for each question."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def known(self) -> bool:
        """Whether the file is there and has the one schema that is read here."""
        try:
            return self._rows("SELECT version_num FROM alembic_version") == [(SCHEMA,)]
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise self._refusal(error) from error
            return False

    def versions(self, model: str) -> list[Row]:
        """Return every version of a registered model that was not deleted, in the order of their numbers."""
        found = self._all(
            "SELECT version, source, run_id, creation_time FROM model_versions "
            "WHERE workspace = 'default' AND name = ? AND current_stage IS NOT ? ORDER BY version",
            model,
            DELETED,
        )
        rows = {
            number: Row(model, number, source or "", run_id or "", int(created))
            for number, source, run_id, created in found
        }
        tags = "SELECT version, key, value FROM model_version_tags WHERE workspace = 'default' AND name = ?"
        for number, key, value in self._all(tags, model):
            if number in rows:
                rows[number].tags[key] = value
        return list(rows.values())

    def aliases(self, model: str) -> Iterator[tuple[str, int]]:
        """Yield the aliases of a registered model with the numbers they point to."""
        query = "SELECT alias, version FROM registered_model_aliases WHERE workspace = 'default' AND name = ?"
        yield from self._all(query, model)

    def model_tags(self, model: str) -> dict[str, str]:
        """Return the tags of a registered model; none where it was never made."""
        query = "SELECT key, value FROM registered_model_tags WHERE workspace = 'default' AND name = ?"
        return {key: value or "" for key, value in self._all(query, model)}

    def artifact_location(self, model_id: str) -> str | None:
        """Return where the artifacts of a logged model lie, or None if there is no such model."""
        query = "SELECT artifact_location FROM logged_models WHERE model_id = ?"
        found = self._all(query, model_id)
        return str(found[0][0]) if found else None

    def rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Return what a query finds; raises `RegistryError` where the file cannot be read."""
        return self._all(query, *values)

    def _all(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._rows(query, *values)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        address = f"file:{quote(str(self.path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S)) as connection:
            return connection.execute(query, values).fetchall()

    def _refusal(self, error: sqlite3.Error) -> RegistryError:
        return RegistryError(
            f"cannot read {self.path}: {error} (waited up to {_WAIT_S:.0f} s); end what "
            "holds it, or bring the file back, then try again"
        )


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
