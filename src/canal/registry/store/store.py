"""The MLflow store of a project: its versions as plain data, and their files on this disk.

A store that was lost is made again (`canal.registry.versions.rebuild`); whether that is at work at this
moment, or was left half done, its own tag says.

Versions of a store that is not on this disk are downloaded once, under the digest of their record. What lies
in ``.canal/versions`` was whole when it came, is shared by all processes of the project, and is never taken
away from them: a copy that was damaged is exchanged for a whole one. Whoever reads a file of it checks that
file, as ever; a whole check (`canal.registry.versions.history.verified`) has a damaged copy brought again. An
audit judges what the store hands out now, in a folder of its own.
"""

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.digests import file_digest
from canal.core.errors import ReadOnlyError, RegistryError
from canal.core.files import new_folder, read_json, scratch_folder
from canal.registry.manifest.version_folder import KEY_FILE, LOADED_FILE, RECORD_FILE, check_files, read_key
from canal.registry.store.connection import Connection
from canal.registry.store.database import LOGGED, Row, Version, inside, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient


_PAGE = 1000
TAG = "canal."
FIGURES = ("accuracy", "average_accuracy", "types", "parent_stage", "gate")
"""Tags by which versions are listed where their files would have to be fetched."""

REBUILDING = f"{TAG}rebuilding"
"""The tag of the registered model that says how far the rebuilding got."""

MAKING, NUMBERED, DONE = "making", "numbered", "done"

_DIGITS = 10

Fetch = Callable[[Version], Path]
"""Returns the folder of a version's artifacts on this disk."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        with self.translated_errors():
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
        known = ", ".join(
            f"{one.number} ({', '.join((one.stage, *one.aliases))})" for one in versions if one.ready
        )
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
        """Let an alias point to a version; None removes it. Only `promotion.moves` calls this."""
        client = self.client
        with self.translated_errors():
            if number is None:
                client.delete_registered_model_alias(model, alias)
            else:
                client.set_registered_model_alias(model, alias, str(number))

    def tag(self, model: str, number: int, name: str, value: str) -> None:
        """Set a tag of a version."""
        client = self.client
        with self.translated_errors():
            client.set_model_version_tag(model, str(number), name, value)

    def local_artifacts(self, version: Version) -> Path | None:
        """Return the folder of a version's artifacts where it lies on this disk, else None.

        Those of the project's own store lie in the project, whatever the database says: it may have been
        moved or copied here.

        Raises
        ------
        RegistryError
            If the database names another folder, and this project has no such files.
        """
        database, model_id = self.database, version.source.removeprefix(LOGGED)
        location = database.artifact_location(model_id) if database else None
        folder = None if location is None else local_path(location)
        if folder is None:
            return None
        if not self.remote:
            here = inside(self.layout, folder)
            if here is None or not (here.is_dir() or folder.is_relative_to(self.layout.root)):
                raise RegistryError(
                    f"version {version.number} ({version.stage}): {self.layout.database.name} says that its "
                    f"files lie in {folder}, which is not in this project, and "
                    f"{here or self.layout.artifacts} is not there. Was the project copied without its "
                    "mlartifacts/? Bring that folder along, too (docs/registry.md, Move, copy, back up)"
                )
            folder = here
        return folder if folder.is_dir() else None

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
    versions = (_version(row, tuple(sorted(names.get(row.number, [])))) for row in rows)
    return sorted(versions, key=lambda version: version.number)


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


def downloaded(store: Store, version: Version) -> Path:
    """Return the folder of a version's artifacts on this disk; only the first call downloads them.

    Where nothing may be written into the project, they come into a folder that is gone with this process.

    Raises
    ------
    RegistryError
        If the store does not hand them out, or they are not what was registered; nothing is kept then.
    """
    folder = _place(store, version)
    if temporary_copies := store.temporary_copies.get(version.record):
        return temporary_copies
    if _is_of(folder, version):
        return folder
    try:
        with store.lock("versions"):
            if not _is_of(folder, version):
                _fetch(store, version, folder)
    except ReadOnlyError:
        return _fetch_for_now(store, version)
    return folder


def fetch_again(store: Store, version: Version) -> bool:
    """Exchange a copy that does not hold for a whole one; return whether copies of the version are kept."""
    if not _SHA256.fullmatch(version.record) or not _place(store, version).is_dir():
        return False
    try:
        with store.lock("versions"):
            try:
                _require_whole(_place(store, version), version)
            except (RegistryError, OSError, ValueError, KeyError):
                _fetch(store, version, _place(store, version))
    except ReadOnlyError:
        _fetch_for_now(store, version)
    return True


@contextmanager
def fresh_copies(store: Store) -> Iterator[Fetch]:
    """Give a function that returns what the store hands out of a version now, not a copy of before.

    What is downloaded lies in a folder of this process that is gone afterwards, except that what nobody has
    a copy of yet stays.
    """
    fetched: dict[str, Path] = {}
    with ExitStack() as stack:

        def fetch(version: Version) -> Path:
            if local := store.local_artifacts(version):
                return local
            place = _place(store, version)
            if not fetched:
                with suppress(OSError):
                    place.parent.mkdir(parents=True, exist_ok=True)
                beside = place.parent if os.access(place.parent, os.W_OK) else None
                fetched[""] = stack.enter_context(scratch_folder("versions", beside))
            if version.record not in fetched:
                folder = fetched[""] / version.record
                _fetch(store, version, folder)
                fetched[version.record] = folder
            return fetched[version.record]

        try:
            yield fetch
        finally:
            _keep(store, fetched)


def download(store: Store, version: Version, target: Path) -> None:
    """Put what the store holds of a version into ``target``: nothing is checked, nothing remembered.

    Raises
    ------
    RegistryError
        If the store does not hand it out.
    """
    _ = store.client
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        download_artifacts(artifact_uri=version.source, dst_path=str(target), tracking_uri=store.uri)
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the files of version {version.number} of {version.model} cannot be brought from {store.shown}: "
            f"{store.error_line(error)}. Can this machine reach the place where they lie ({version.source})?"
        ) from error
    (target / LOADED_FILE).unlink(missing_ok=True)


def _fetch(store: Store, version: Version, folder: Path) -> None:
    with new_folder(folder) as temporary:
        download(store, version, temporary)
        _require_whole(temporary, version)


def _fetch_for_now(store: Store, version: Version) -> Path:
    """Bring a version into a folder that is gone with the store, or at the latest with this process."""
    if version.record not in store.temporary_copies:
        stack, owner = ExitStack(), os.getpid()
        folder = stack.enter_context(scratch_folder("versions")) / version.record
        weakref.finalize(store, lambda: stack.close() if os.getpid() == owner else None)
        _fetch(store, version, folder)
        store.temporary_copies[version.record] = folder
    return store.temporary_copies[version.record]


def _keep(store: Store, fetched: dict[str, Path]) -> None:
    """Leave to all processes what was brought of versions that none has a copy of."""
    if not fetched or fetched[""].parent != store.layout.private / "versions":
        return
    with suppress(RegistryError), store.lock("versions"):
        for record, folder in fetched.items():
            shared = fetched[""].parent / record
            if record and not shared.exists():
                folder.rename(shared)


def _place(store: Store, version: Version) -> Path:
    if not _SHA256.fullmatch(version.record):
        raise RegistryError(
            f"version {version.number} of {version.model}: its tag canal.record is {version.record[:80]!r}, "
            "no SHA-256; `canal audit` says what else was changed"
        )
    return store.layout.private / "versions" / version.record


def _is_of(folder: Path, version: Version) -> bool:
    """Whether a folder holds the manifests of a version: it came whole, but may have been cleared since."""
    manifests = {RECORD_FILE: version.record, KEY_FILE: version.key}
    return all(
        (folder / name).is_file() and file_digest(folder / name) == digest
        for name, digest in manifests.items()
    )


def _require_whole(folder: Path, version: Version) -> None:
    if not _is_of(folder, version):
        raise RegistryError(
            f"version {version.number} of {version.model}: key.json or record.json is not the one that was "
            "registered; `canal audit` names what was changed"
        )
    try:
        check_files(folder, {**read_json(folder / RECORD_FILE)["files"], **read_key(folder)["files"]})
    except RegistryError as error:
        text = str(error).replace(f"{folder}/", "").replace(str(folder), "what was brought")
        raise RegistryError(f"version {version.number} of {version.model}: {text}") from error
