"""The MLflow store of a project: its versions as plain data, and their files on this disk.

A lost store is rebuilt by `canal.registry.versions.rebuild`; a tag of the registered model says whether a
rebuild is under way or was interrupted.

Versions of a remote store are downloaded once, into ``.canal/versions``, under the digest of their record,
and checked on arrival. All processes of the project share these copies: a damaged one is replaced, never just
deleted. Readers check each file that they use; a complete check
(`canal.registry.versions.history.verified`) downloads a damaged copy again. Audits download into a folder of
their own, so that they check what the store holds now.
"""

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from canal.core.digests import file_digest
from canal.core.errors import ReadOnlyError, RegistryError, did_you_mean
from canal.core.files import new_folder, read_json, scratch_folder
from canal.core.store_refusals import object_store_refusal
from canal.registry.manifest.version_folder import KEY_FILE, LOADED_FILE, RECORD_FILE, check_files, read_key
from canal.registry.store.connection import Connection
from canal.registry.store.database import LOGGED, Row, Version, inside, local_path, require_files

if TYPE_CHECKING:
    from mlflow import MlflowClient


_PAGE = 1000
TAG = "canal."
FIGURES = ("accuracy", "average_accuracy", "types", "parent_stage", "gate")
"""Tags from which remote versions are listed, without downloading their files."""

REBUILDING = f"{TAG}rebuilding"
"""The tag of the registered model that says how far a rebuild got."""

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
        """Return every version of ``model`` (default: the annotator), oldest first, complete or not."""
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
            If there is none, or its registration is incomplete; names the ready versions.
        """
        versions = self.versions()
        named = [one for one in versions if wanted.removeprefix("v") == str(one.number)]
        # A number names a version, even where an alias has that name.
        for version in named or [one for one in versions if wanted in one.aliases]:
            if version.ready:
                return version
            raise RegistryError(
                f"registration of version {version.number} is incomplete; run `canal registry sync`"
            )
        known = ", ".join(
            f"{one.number} ({', '.join((one.stage, *one.aliases))})" for one in versions if one.ready
        )
        near = did_you_mean(wanted, [alias for one in versions if one.ready for alias in one.aliases])
        raise RegistryError(
            f"no version {wanted!r} of {self.names.model}; there are {known or 'none yet'}{near}"
        )

    def serving(self, wanted: str) -> Version:
        """Return `version`, unless it was retired.

        Raises
        ------
        RegistryError
            If there is none, it is incomplete, erased or retired, or the store is half rebuilt.
        """
        require_rebuilt(self)
        version = self.version(wanted)
        require_files(version)
        if version.retired:
            raise RegistryError(
                f"version {version.number} ({version.stage}) was retired and answers no more; "
                "`canal ledger` says who retired it and why"
            )
        return version

    def point(self, model: str, alias: str, number: int | None) -> None:
        """Let an alias point to a version; None removes it. Only the room `promotion` calls this."""
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
        """Return the folder of a version's artifacts where it is on this disk, else None.

        Artifacts of the project's own store are looked for in the project, whatever path the database holds:
        the project may have been moved or copied.

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
                    "mlartifacts/? Bring that folder along, too (canal's docs/registry.md, Move, copy, "
                    "back up)"
                )
            folder = here
        return folder if folder.is_dir() else None

    def artifacts(self, version: Version) -> Path:
        """Return the folder of a version's artifacts; a copy of them where the store is not on this disk.

        Raises
        ------
        RegistryError
            If they were erased, the download fails, or the files are not the registered ones.
        """
        require_files(version)
        return self.manifests(version)

    def manifests(self, version: Version) -> Path:
        """Return the folder of a version's artifacts, of which an erased version has the two manifests."""
        return self.local_artifacts(version) or downloaded(self, version)


def rebuilding(store: Store) -> str:
    """Return how far a rebuild got; an empty text where the store was never rebuilt."""
    return store.model_tags(store.names.model).get(REBUILDING, "")


def half_rebuilt(store: Store) -> bool:
    """Whether a rebuild was interrupted or is under way, so that versions or aliases are missing."""
    return rebuilding(store) in (MAKING, NUMBERED)


def require_rebuilt(store: Store) -> None:
    """Refuse a half rebuilt store.

    Raises
    ------
    RegistryError
        Saying how to finish the rebuild.
    """
    if half_rebuilt(store):
        raise RegistryError(
            f"{store.shown} is half rebuilt: `canal registry rebuild` was interrupted, or is at work. "
            "`canal registry sync` goes on with it; until then nothing is moved, and no version answers"
        )


def _rows(client: "MlflowClient", model: str) -> Iterator[Row]:
    """Yield the versions of a server, or of a database of another schema, page by page."""
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
        erased=tags.get(f"{TAG}erased") == "true",
        commit=tags.get(f"{TAG}git_commit", ""),
        dirty=tags.get(f"{TAG}dirty", "true") == "true",
        imported=tags.get(f"{TAG}imported_from", ""),
        figures={name: tags[f"{TAG}{name}"] for name in FIGURES if f"{TAG}{name}" in tags},
    )


def _whole(text: str) -> int:
    """Return a whole number; 0 for any other text, which an audit reports."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else 0


def downloaded(store: Store, version: Version) -> Path:
    """Return the folder of a version's artifacts on this disk; only the first call downloads them.

    For a read-only project they are downloaded into a temporary folder of this process.

    Raises
    ------
    RegistryError
        If the download fails, or the files are not the registered ones; nothing is kept then.
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
    """Replace a damaged copy by downloading it again; return whether the version is kept as a copy."""
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
    """Give a function that downloads a version from the store as it is now, whatever copies there are.

    Downloads go to a temporary folder; afterwards those of versions without a copy are kept as copies.
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
    """Download the files of a version into ``target``, unchecked.

    Raises
    ------
    RegistryError
        If the download fails.
    """
    _ = store.client
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        download_artifacts(artifact_uri=version.source, dst_path=str(target), tracking_uri=store.uri)
    except Exception as error:
        told = object_store_refusal(error)
        if told is None and not isinstance(error, MlflowException | OSError):
            raise
        raise RegistryError(
            f"the files of version {version.number} of {version.model} cannot be downloaded from "
            f"{store.shown}: {told or f'{store.error_line(error)}. Can this machine reach {version.source}?'}"
        ) from error
    (target / LOADED_FILE).unlink(missing_ok=True)


def _fetch(store: Store, version: Version, folder: Path) -> None:
    with new_folder(folder) as temporary:
        download(store, version, temporary)
        _require_whole(temporary, version)


def _fetch_for_now(store: Store, version: Version) -> Path:
    """Download a version into a temporary folder that is deleted with the store object or this process."""
    if version.record not in store.temporary_copies:
        stack, owner = ExitStack(), os.getpid()
        folder = stack.enter_context(scratch_folder("versions")) / version.record
        weakref.finalize(store, lambda: stack.close() if os.getpid() == owner else None)
        _fetch(store, version, folder)
        store.temporary_copies[version.record] = folder
    return store.temporary_copies[version.record]


def _keep(store: Store, fetched: dict[str, Path]) -> None:
    """Keep downloads of versions without a copy as copies for all processes."""
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
            "no SHA-256: it was changed; `canal audit` names every such change"
        )
    return store.layout.private / "versions" / version.record


def _is_of(folder: Path, version: Version) -> bool:
    """Whether a folder holds the two manifests of a version."""
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
        text = str(error).replace(f"{folder}/", "").replace(str(folder), "the download")
        raise RegistryError(f"version {version.number} of {version.model}: {text}") from error
