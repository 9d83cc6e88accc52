"""The MLflow store of a project: opened in one place, and its versions as plain data.

A store that was lost is made again (`canal.registry.rebuild`); whether that is at work at this moment, or was
left half done, its own tag says.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.errors import RegistryError
from canal.registry.connection import KIND, LOGGED, READY, Connection, Version, local_uri
from canal.registry.database import Row
from canal.registry.downloads import downloaded

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["KIND", "LOGGED", "READY", "Store", "Version", "local_uri"]

_PAGE = 1000
TAG = "canal."
FIGURES = ("accuracy", "average_accuracy", "types", "parent_stage", "gate")
"""Tags by which versions are listed where their files would have to be fetched."""

REBUILDING = f"{TAG}rebuilding"
"""The tag of the registered model that says how far the rebuilding got."""

MAKING, NUMBERED, DONE = "making", "numbered", "done"

_DIGITS = 10


class Store(Connection):
    """A project's MLflow tracking store and registry.

    ``MLFLOW_TRACKING_URI`` decides where it is; without it, it is ``mlflow.db`` and ``mlartifacts/``.
    """

    def versions(self, model: str | None = None) -> list[Version]:
        """Return every version of ``model`` (default: the annotator), oldest first; whole ones and others."""
        if not self.exists:
            return []
        name = model or self.names.model
        if database := self.database:
            return _versions(database.versions(name), database.aliases(name))
        client = self.client
        with self.speaking():
            rows = list(_rows(client, name))
            aliases = client.get_registered_model(name).aliases if rows else {}
        return _versions(rows, ((alias, int(number)) for alias, number in aliases.items()))

    def version(self, wanted: str) -> Version:
        """Return the ready version that a number or an alias names.

        Raises
        ------
        RegistryError
            If there is none, or it is not whole; names the ones there are.
        """
        versions = self.versions()
        named = [one for one in versions if wanted.removeprefix("v") == str(one.number)]
        # A number means that version, even where somebody called an alias so.
        for version in named or [one for one in versions if wanted in one.aliases]:
            if version.ready:
                return version
            raise RegistryError(
                f"version {version.number} was never registered whole; run `canal registry sync`"
            )
        known = ", ".join(_name(version) for version in versions if version.ready)
        raise RegistryError(f"no version {wanted!r} of {self.names.model}; there are {known or 'none yet'}")

    def serving(self, wanted: str) -> Version:
        """Return `version`, unless it was retired: such a version answers no more.

        Raises
        ------
        RegistryError
            If there is none, it is not whole, or it was retired; or if the store is half rebuilt.
        """
        require_rebuilt(self)
        version = self.version(wanted)
        if version.retired:
            raise RegistryError(
                f"version {version.number} ({version.stage}) was retired and answers no more; "
                "`canal ledger` says who retired it and why"
            )
        return version

    def point(self, model: str, alias: str, number: int | None) -> None:
        """Let an alias point to a version; None removes it. Only `canal.registry.moves` calls this."""
        client = self.client
        with self.speaking():
            if number is None:
                client.delete_registered_model_alias(model, alias)
            else:
                client.set_registered_model_alias(model, alias, str(number))

    def tag(self, model: str, number: int, name: str, value: str) -> None:
        """Set a tag of a version."""
        client = self.client
        with self.speaking():
            client.set_model_version_tag(model, str(number), name, value)

    def artifacts(self, version: Version) -> Path:
        """Return the folder of a version's artifacts; a copy of them where the store is not on this disk.

        Raises
        ------
        RegistryError
            If the store does not hand them out, or they are not what was registered.
        """
        return self.local_artifacts(version) or downloaded(self, version)


def rebuilding(store: Store) -> str:
    """Return how far the rebuilding got; nothing where the store was never made again."""
    return store.model_tags(store.names.model).get(REBUILDING, "")


def half_rebuilt(store: Store) -> bool:
    """Whether versions and aliases are not all there yet: a rebuilding was interrupted, or is at work."""
    return rebuilding(store) in (MAKING, NUMBERED)


def require_rebuilt(store: Store) -> None:
    """Refuse a store that holds only a part of its versions.

    Raises
    ------
    RegistryError
        Saying how the rest comes.
    """
    if half_rebuilt(store):
        raise RegistryError(
            f"{store.shown} is half rebuilt: `canal registry rebuild` was interrupted, or is at work. "
            "`canal registry sync` goes on with it; until then nothing is moved, and no version answers"
        )


def _rows(client: "MlflowClient", model: str) -> Iterator[Row]:
    """Yield the versions that a server or a database of another schema has; it hands them out by pages."""
    token = None
    while True:
        page = client.search_model_versions(f"name='{model}'", max_results=_PAGE, page_token=token)
        for one in page:
            created = int(one.creation_timestamp)
            yield Row(one.name, int(one.version), one.source or "", one.run_id or "", created, one.tags)
        token = page.token
        if not token:
            return


def _versions(rows: Iterable[Row], aliases: Iterable[tuple[str, int]]) -> list[Version]:
    names: dict[int, list[str]] = {}
    for alias, number in aliases:
        names.setdefault(number, []).append(alias)
    found = (_version(row, tuple(sorted(names.get(row.number, [])))) for row in rows)
    return sorted(found, key=lambda version: version.number)


def _version(row: Row, aliases: tuple[str, ...]) -> Version:
    tags = row.tags
    return Version(
        model=row.model,
        number=row.number,
        stage=tags.get(f"{TAG}stage", ""),
        branch=_whole(tags.get(f"{TAG}branch", "")),
        key=tags.get(f"{TAG}key", ""),
        request=tags.get(f"{TAG}request", ""),
        record=tags.get(f"{TAG}record", ""),
        parent=tags.get(f"{TAG}parent", ""),
        status=tags.get("status", ""),
        aliases=aliases,
        run_id=row.run_id,
        source=row.source,
        created=row.created,
        retired=tags.get(f"{TAG}retired") == "true",
        commit=tags.get(f"{TAG}git_commit", ""),
        dirty=tags.get(f"{TAG}dirty", "true") == "true",
        imported=tags.get(f"{TAG}imported_from", ""),
        figures={name: tags[f"{TAG}{name}"] for name in FIGURES if f"{TAG}{name}" in tags},
    )


def _whole(text: str) -> int:
    """Return a whole number; 0 for what is none, which an audit names."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else 0


def _name(version: Version) -> str:
    return f"{version.number} ({', '.join((version.stage, *version.aliases))})"
