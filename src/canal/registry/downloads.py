"""Versions of a store that is not on this disk: downloaded once, under the digest of their record.

What lies in ``.canal/versions`` was whole when it came, is shared by all processes of the project, and is
never taken away from them: a copy that was damaged is exchanged for a whole one. Whoever reads a file of it
checks that file, as ever; a whole check (`canal.registry.history.verified`) has a damaged copy brought again.
An audit judges what the store hands out now, in a folder of its own.
"""

import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.errors import ReadOnlyError, RegistryError
from canal.core.files import new_folder, read_json, scratch_folder
from canal.registry.bundle import LOADED_FILE, RECORD_FILE
from canal.registry.connection import Connection, Version
from canal.registry.key import KEY_FILE, check_files, read_key

Bring = Callable[[Version], Path]
"""Returns the folder of a version's artifacts on this disk."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def downloaded(store: Connection, version: Version) -> Path:
    """Return the folder of a version's artifacts on this disk; only the first call downloads them.

    Where nothing may be written into the project, they come into a folder that is gone with this process.

    Raises
    ------
    RegistryError
        If the store does not hand them out, or they are not what was registered; nothing is kept then.
    """
    folder = _place(store, version)
    if lent := store.lent.get(version.record):
        return lent
    if _is_of(folder, version):
        return folder
    try:
        with store.lock("versions"):
            if not _is_of(folder, version):
                _bring(store, version, folder)
    except ReadOnlyError:
        return _lend(store, version)
    return folder


def bring_again(store: Connection, version: Version) -> bool:
    """Exchange a copy that does not hold for a whole one; return whether copies of the version are kept."""
    if not _SHA256.fullmatch(version.record) or not _place(store, version).is_dir():
        return False
    try:
        with store.lock("versions"):
            if not _is_whole(_place(store, version), version):
                _bring(store, version, _place(store, version))
    except ReadOnlyError:
        _lend(store, version)
    return True


@contextmanager
def fresh_copies(store: Connection) -> Iterator[Bring]:
    """Give a function that returns what the store hands out of a version now, not a copy of before.

    What is downloaded lies in a folder of this process that is gone afterwards, except that what nobody has
    a copy of yet stays.
    """
    brought: dict[str, Path] = {}
    with ExitStack() as stack:

        def bring(version: Version) -> Path:
            if local := store.local_artifacts(version):
                return local
            place = _place(store, version)
            if not brought:
                brought[""] = stack.enter_context(scratch_folder("versions", _writable(place.parent)))
            if version.record not in brought:
                folder = brought[""] / version.record
                _bring(store, version, folder)
                brought[version.record] = folder
            return brought[version.record]

        try:
            yield bring
        finally:
            _keep(store, brought)


def download(store: Connection, version: Version, target: Path) -> None:
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
            f"{store.said(error)}. Can this machine reach the place where they lie ({version.source})?"
        ) from error
    (target / LOADED_FILE).unlink(missing_ok=True)


def _bring(store: Connection, version: Version, folder: Path) -> None:
    with new_folder(folder) as temporary:
        download(store, version, temporary)
        _require_whole(temporary, version)


def _lend(store: Connection, version: Version) -> Path:
    """Bring a version into a folder that is gone with the store, or at the latest with this process."""
    if version.record not in store.lent:
        stack, owner = ExitStack(), os.getpid()
        folder = stack.enter_context(scratch_folder("versions")) / version.record
        weakref.finalize(store, lambda: stack.close() if os.getpid() == owner else None)
        _bring(store, version, folder)
        store.lent[version.record] = folder
    return store.lent[version.record]


def _writable(folder: Path) -> Path | None:
    """Return a folder, made where it is not there; None where nothing may be written into it."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else None


def _keep(store: Connection, brought: dict[str, Path]) -> None:
    """Leave to all processes what was brought of versions that none has a copy of."""
    if not brought or brought[""].parent != store.layout.private / "versions":
        return
    with suppress(RegistryError), store.lock("versions"):
        for record, folder in brought.items():
            shared = brought[""].parent / record
            if record and not shared.exists():
                folder.rename(shared)


def _place(store: Connection, version: Version) -> Path:
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


def _is_whole(folder: Path, version: Version) -> bool:
    try:
        _require_whole(folder, version)
    except (RegistryError, OSError, ValueError, KeyError):
        return False
    return True


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
