"""A local MLflow database, read by SQL in milliseconds: importing MLflow takes seconds.

Only the one schema that this MLflow writes is read. Any other schema, and a server, is read through MLflow's
own client.

A database holds absolute paths; they are updated where it was moved or copied.
"""

import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.errors import RegistryError

READY = "ready"
LOGGED = "models:/"
"""Prefix of the address of a logged model, which holds a version's artifacts."""

SCHEMA = "dc11669786a5"
"""The alembic revision of MLflow 3.17's tables."""

WAIT_S = 60.0
DELETED = "Deleted_Internal"
"""MLflow's stage of a deleted version; its row stays in the table."""

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
    """A registered version, complete or not.

    ``commit`` and ``dirty`` say which code it was registered with; ``imported`` where it was learned, if not
    in this project; ``figures`` holds the tags that `manifest.pages.Pages.tags` wrote, if any.
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
    erased: bool = False
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
        """Whether its registration is complete; no other version may be used."""
        return self.status == READY


def require_files(version: Version) -> None:
    """Refuse a version whose files were erased.

    Raises
    ------
    RegistryError
        Saying where it stands who erased them.
    """
    if version.erased:
        raise RegistryError(
            f"version {version.number} ({version.stage}) was erased with the cells that it held: of its "
            "files key.json and record.json are left, which name them by digest. It answers no more, and is "
            "neither promoted, restored nor exported; `canal ledger` says who erased it, when and why"
        )


class Database:
    """The tables of ``path``, read by a connection that a thread keeps while the file stays as it is.

    Opening SQLite takes a hundred times as long as most questions. Between questions nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def known(self) -> bool:
        """Whether the file exists and has the one schema that is read here."""
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
        """Return the tags of a registered model; none where it does not exist."""
        query = "SELECT key, value FROM registered_model_tags WHERE workspace = 'default' AND name = ?"
        return {key: value or "" for key, value in self.rows(query, model)}

    def artifact_location(self, model_id: str) -> str | None:
        """Return the address of the artifacts of a logged model, or None without such a model."""
        found = self.rows("SELECT artifact_location FROM logged_models WHERE model_id = ?", model_id)
        return str(found[0][0]) if found else None

    def artifact_locations(self) -> dict[str, str]:
        """Return the address of the artifacts of every logged model, by the model's id."""
        return dict(self.rows("SELECT model_id, artifact_location FROM logged_models"))

    def rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query; raises `RegistryError` where the file cannot be read."""
        try:
            return self._rows(query, *values)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        return _kept.of(self.path).execute(query, values).fetchall()

    def _refusal(self, error: sqlite3.Error) -> RegistryError:
        return RegistryError(
            f"cannot read {self.path}: {error} (waited up to {WAIT_S:.0f} s); end what "
            "holds it, or bring the file back, then try again"
        )


class _Kept(threading.local):
    """The connection of a thread to the file that it asked last."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._connection: sqlite3.Connection | None = None
        self._forked: list[sqlite3.Connection] = []

    def of(self, path: Path) -> sqlite3.Connection:
        """Return a connection that reads a file; a new one where the file is another or was written."""
        of: tuple[Any, ...] = (os.getpid(), path)
        with suppress(OSError):  # where it cannot be looked at, SQLite says why
            seen = path.stat()
            of += (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if self._connection is not None and self._of == of:
            return self._connection
        if self._connection is not None and self._of[0] != of[0]:
            self._forked.append(self._connection)  # it is of the process that forked this one
        self._connection = None  # should the next line fail, nothing is kept that is of another file
        address = f"file:{quote(str(path))}?mode=ro"
        self._connection = sqlite3.connect(address, uri=True, timeout=WAIT_S, check_same_thread=False)
        self._of = of
        return self._connection


_kept = _Kept()


@dataclass(frozen=True)
class Foreign:
    """A path of the database that names another folder.

    Attributes
    ----------
    table : str
        The table that names it.
    path : Path
    here : Path or None
        Its place in this project, which `update_paths` writes; None for a path outside of every project.
    """

    table: str
    path: Path
    here: Path | None


def local_path(location: str) -> Path | None:
    """Return the path in an address of artifacts; None where it is not on a disk."""
    if location.startswith("file:"):
        return Path(unquote(urlparse(location).path))
    return None if _SCHEME.match(location) else Path(location)


def inside(layout: Layout, path: Path) -> Path | None:
    """Return the place in this project of a path in its database; None for another project's path.

    A project writes below one folder, mlartifacts/: the part behind that name stays when a project is moved.
    """
    name = layout.artifacts.name
    if name in path.parts:
        last = len(path.parts) - 1 - path.parts[::-1].index(name)
        return layout.artifacts.joinpath(*path.parts[last + 1 :])
    return path if path.is_relative_to(layout.root) else None


def update_paths(layout: Layout, names: Registry) -> int:
    """Update the paths in the database of a project that was moved or copied; return how many changed.

    The caller holds the store's lock.

    Raises
    ------
    RegistryError
        If the project's experiment keeps its files in a folder outside of the project.
    """
    if not layout.database.is_file():
        return 0
    with closing(sqlite3.connect(layout.database, timeout=WAIT_S)) as database:
        try:
            home = _home(database, names)
            if home is not None and inside(layout, home) is None:
                raise RegistryError(
                    f"the experiment {names.experiment!r} of {layout.database} keeps its files in {home}, "
                    f"which is not in this project ({layout.root}): nothing is written there. Name another "
                    "experiment in params.yaml (registry.experiment), whose files then lie in mlartifacts/; "
                    "a store that several folders share is named by MLFLOW_TRACKING_URI (canal's "
                    "docs/backends.md)"
                )
            before = {one.parent for one in (home,) if one is not None and inside(layout, one) != one}
            with database:
                return sum(_rewrite(database, layout, before, place) for place in _places(names))
        except sqlite3.Error as error:
            raise RegistryError(f"cannot write {layout.database}: {error}; nothing was changed") from error


def foreign(layout: Layout, names: Registry) -> list[Foreign]:
    """Return the paths in the project's own database that name another folder."""
    if not layout.database.is_file():
        return []
    with closing(sqlite3.connect(layout.database, timeout=WAIT_S)) as database:
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
    """Return the folder of the experiment's files; None before there is an experiment."""
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        locations = database.execute(query, (names.experiment,)).fetchall()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            return None  # a table or a column: MLflow makes it, or says what it cannot read
        raise
    return local_path(str(locations[0][0])) if locations else None


def _places(names: Registry) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield tables and columns with paths of artifacts, and the condition for the project's own rows."""
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
    """Rewrite the project's own paths in one column, and paths below the folder that it was moved from."""
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
