"""A local MLflow database without MLflow, whose import costs seconds, a look-up milliseconds.

Read only in the one schema that this MLflow writes. Of any other schema, and of a server, nothing is known
here, and MLflow's own client answers.

A new one is made by MLflow beside its place, which it takes when it is whole. MLflow makes tables in place,
in some sixty steps that SQLite does not take back: what a kill left of them is no database, and no MLflow
goes on with it ("table ... already exists").

One that was moved or copied is told where its files lie now: it holds absolute paths.
"""

import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlparse

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.errors import RegistryError
from canal.core.files import first_file

if TYPE_CHECKING:
    pass


READY = "ready"
LOGGED = "models:/"
"""How the address of a logged model begins, which is where a version's artifacts are."""

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

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


@dataclass(frozen=True)
class Row:
    """One model version as MLflow's tables have it."""

    model: str
    number: int
    source: str
    run_id: str
    created: int
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """One registered version, whole or not.

    ``commit`` and ``dirty`` say which code it was registered with; ``imported`` where it was learned, if not
    in this project; ``figures`` is what `manifest.pages.Pages.tags` told MLflow of it, if anything.
    """

    model: str
    number: int
    stage: str
    branch: int
    key: str
    request: str
    record: str
    parent: str
    status: str
    aliases: tuple[str, ...]
    run_id: str
    source: str
    created: int
    retired: bool = False
    commit: str = ""
    dirty: bool = True
    imported: str = ""
    figures: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def unregistered(cls, model: str, number: int, key: str, record: str) -> "Version":
        """Return what is known of a version that is not registered here; the rest is empty."""
        return cls(
            model=model, number=number, stage="", branch=0, key=key, request="", record=record, parent="",
            status=READY, aliases=(), run_id="", source="", created=0,
        )  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether all its parts were registered; nothing else may be used."""
        return self.status == READY


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
        records = self.rows(
            "SELECT version, source, run_id, creation_time FROM model_versions "
            "WHERE workspace = 'default' AND name = ? AND current_stage IS NOT ? ORDER BY version",
            model,
            DELETED,
        )
        rows = {
            number: Row(model, number, source or "", run_id or "", int(created))
            for number, source, run_id, created in records
        }
        tags = "SELECT version, key, value FROM model_version_tags WHERE workspace = 'default' AND name = ?"
        for number, key, value in self.rows(tags, model):
            if number in rows:
                rows[number].tags[key] = value
        return list(rows.values())

    def aliases(self, model: str) -> Iterator[tuple[str, int]]:
        """Yield the aliases of a registered model with the numbers they point to."""
        query = "SELECT alias, version FROM registered_model_aliases WHERE workspace = 'default' AND name = ?"
        yield from self.rows(query, model)

    def model_tags(self, model: str) -> dict[str, str]:
        """Return the tags of a registered model; none where it was never made."""
        query = "SELECT key, value FROM registered_model_tags WHERE workspace = 'default' AND name = ?"
        return {key: value or "" for key, value in self.rows(query, model)}

    def artifact_location(self, model_id: str) -> str | None:
        """Return where the artifacts of a logged model lie, or None if there is no such model."""
        query = "SELECT artifact_location FROM logged_models WHERE model_id = ?"
        locations = self.rows(query, model_id)
        return str(locations[0][0]) if locations else None

    def rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Return what a query finds; raises `RegistryError` where the file cannot be read."""
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


@dataclass(frozen=True)
class Foreign:
    """A path of the database that names another folder.

    Attributes
    ----------
    table : str
        Where it stands.
    path : Path
    here : Path or None
        Where it lies in the project, which `settle` notes; None for one that never was the project's own.
    """

    table: str
    path: Path
    here: Path | None


def local_path(location: str) -> Path | None:
    """Return the path that an address of artifacts names; None where it is not on a disk."""
    if location.startswith("file:"):
        return Path(unquote(urlparse(location).path))
    return None if _SCHEME.match(location) else Path(location)


def inside(layout: Layout, path: Path) -> Path | None:
    """Return where in the project a path of its own database lies; None for one that never was its own.

    What a project writes lies in a folder of one name, so what stands behind that name is what stays.
    """
    name = layout.artifacts.name
    if name in path.parts:
        last = len(path.parts) - 1 - path.parts[::-1].index(name)
        return layout.artifacts.joinpath(*path.parts[last + 1 :])
    return path if path.is_relative_to(layout.root) else None


def settle(layout: Layout, names: Registry) -> int:
    """Tell a database that came from another folder where its files lie now; return how many paths changed.

    Nothing is changed in a project that lies where it lay. The caller holds the store's lock.

    Raises
    ------
    RegistryError
        If the project's experiment keeps its files in a folder that is not in the project: nothing of this
        project may be written there.
    """
    if not layout.database.is_file():
        return 0
    with closing(sqlite3.connect(layout.database, timeout=_WAIT_S)) as database:
        try:
            home = _home(database, names)
            if home is not None and inside(layout, home) is None:
                raise RegistryError(
                    f"the experiment {names.experiment!r} of {layout.database} keeps its files in {home}, "
                    f"which is not in this project ({layout.root}): nothing is written there. Name another "
                    "experiment in params.yaml (registry.experiment), whose files then lie in mlartifacts/; "
                    "a store that several folders share is named by MLFLOW_TRACKING_URI (docs/backends.md)"
                )
            before = {one.parent for one in (home,) if one is not None and inside(layout, one) != one}
            with database:
                return sum(_rewrite(database, layout, before, place) for place in _places(names))
        except sqlite3.Error as error:
            raise RegistryError(f"cannot write {layout.database}: {error}; nothing was changed") from error


def foreign(layout: Layout, names: Registry) -> list[Foreign]:
    """Return where the project's own database says that its runs and versions lie in another folder."""
    if not layout.database.is_file():
        return []
    with closing(sqlite3.connect(layout.database, timeout=_WAIT_S)) as database:
        try:
            return [
                Foreign(table, path, here)
                for table, column, mine, values in _places(names)
                for (text,) in database.execute(f"SELECT {column} FROM {table} WHERE {mine}", values)  # noqa: S608
                if text and (path := local_path(text)) is not None and (here := inside(layout, path)) != path
            ]
        except sqlite3.Error:
            return []  # tables of another MLflow: nothing is known of them here


def _home(database: sqlite3.Connection, names: Registry) -> Path | None:
    """Return the folder that the project's experiment keeps its files in; None where there is none yet."""
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        locations = database.execute(query, (names.experiment,)).fetchall()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            return None  # a table or a column: MLflow makes it, or says what it cannot read
        raise
    return local_path(str(locations[0][0])) if locations else None


def _places(names: Registry) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield tables and columns with paths of artifacts, and which of their rows are the project's own."""
    mine = "experiment_id IN (SELECT experiment_id FROM experiments WHERE name = ?)"
    yield "experiments", "artifact_location", mine, (names.experiment,)
    yield "runs", "artifact_uri", mine, (names.experiment,)
    yield "logged_models", "artifact_location", mine, (names.experiment,)
    yield "model_versions", "storage_location", "name IN (?, ?)", (names.backbone, names.model)


def _rewrite(
    database: sqlite3.Connection,
    layout: Layout,
    before: Collection[Path],
    place: tuple[str, str, str, tuple[str, ...]],
) -> int:
    """Let the project's own paths name the project, and all that began with the folder it lay in."""
    table, column, mine, values = place
    query = f"SELECT DISTINCT {column}, {mine} FROM {table}"  # noqa: S608
    moved = [
        (new, old)
        for old, own in database.execute(query, values).fetchall()
        if old and (new := _moved(old, layout, before, own=bool(own))) != old
    ]
    done = database.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", moved)  # noqa: S608
    return max(0, done.rowcount)


def _moved(location: str, layout: Layout, before: Collection[Path], own: bool) -> str:
    path = local_path(location)
    if path is None:
        return location
    new = inside(layout, path) if own else None
    new = new or next(
        (layout.root / path.relative_to(one) for one in before if path.is_relative_to(one)), path
    )
    if new == path:
        return location
    return new.as_uri() if location.startswith("file:") else str(new)
