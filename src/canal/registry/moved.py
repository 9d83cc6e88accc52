"""A project that was moved or copied: its database holds absolute paths, its files lie where it lies."""

import re
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.core.errors import RegistryError

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_WAIT_S = 60.0


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
    with closing(_open(layout)) as database:
        try:
            home = _home(database, names)
            if home is not None and inside(layout, home) is None:
                raise RegistryError(_elsewhere(layout, names, home))
            before = {one.parent for one in (home,) if one is not None and inside(layout, one) != one}
            with database:
                return sum(_rewrite(database, layout, before, *place) for place in _places(names))
        except sqlite3.Error as error:
            raise RegistryError(f"cannot write {layout.database}: {error}; nothing was changed") from error


def foreign(layout: Layout, names: Registry) -> list[Foreign]:
    """Return where the project's own database says that its runs and versions lie in another folder."""
    if not layout.database.is_file():
        return []
    with closing(_open(layout)) as database:
        try:
            return [
                Foreign(table, path, here)
                for table, column, mine, values in _places(names)
                for (text,) in database.execute(f"SELECT {column} FROM {table} WHERE {mine}", values)  # noqa: S608
                if text and (path := local_path(text)) is not None and (here := inside(layout, path)) != path
            ]
        except sqlite3.Error:
            return []  # tables of another MLflow: nothing is known of them here


def _open(layout: Layout) -> sqlite3.Connection:
    return sqlite3.connect(layout.database, timeout=_WAIT_S)


def _home(database: sqlite3.Connection, names: Registry) -> Path | None:
    """Return the folder that the project's experiment keeps its files in; None where there is none yet."""
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        found = database.execute(query, (names.experiment,)).fetchall()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            return None  # a table or a column: MLflow makes it, or says what it cannot read
        raise
    return local_path(str(found[0][0])) if found else None


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
    table: str,
    column: str,
    mine: str,
    values: tuple[str, ...],
) -> int:
    """Let the project's own paths name the project, and all that began with the folder it lay in."""
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


def _elsewhere(layout: Layout, names: Registry, home: Path) -> str:
    return (
        f"the experiment {names.experiment!r} of {layout.database} keeps its files in {home}, which is not "
        f"in this project ({layout.root}): nothing is written there. Name another experiment in params.yaml "
        "(registry.experiment), whose files then lie in mlartifacts/; a store that several folders share is "
        "named by MLFLOW_TRACKING_URI (docs/backends.md)"
    )
