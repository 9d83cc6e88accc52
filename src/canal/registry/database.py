"""A local MLflow database read without MLflow, whose import costs seconds, a look-up milliseconds.

Only reading, and only of the one schema that this MLflow writes. Of any other schema, and of a server,
nothing is known here, and MLflow's own client answers.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from canal.core.errors import RegistryError

SCHEMA = "dc11669786a5"
"""The alembic revision of MLflow 3.17's tables."""

_WAIT_S = 60.0
DELETED = "Deleted_Internal"
"""What MLflow calls the stage of a version that was deleted; its row stays."""


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
