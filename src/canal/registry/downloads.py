"""Versions of a store that is not on this disk: downloaded once, under the digest of their record.

What lies in ``.canal/versions`` was whole when it came. Whoever reads a file of it checks that file, as ever;
a whole check (`canal.registry.history.verified`) has a damaged copy brought again.
"""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from canal.digests import file_digest
from canal.errors import RegistryError
from canal.files import new_folder, read_json
from canal.registry.bundle import LOADED_FILE, RECORD_FILE
from canal.registry.key import KEY_FILE, check_files, read_key

if TYPE_CHECKING:
    from canal.registry.store import Store, Version

_SHA256 = re.compile(r"[0-9a-f]{64}")


def downloaded(store: "Store", version: "Version") -> Path:
    """Return the folder of a version's artifacts on this disk; only the first call downloads them.

    Raises
    ------
    RegistryError
        If the store does not hand them out, or they are not what was registered; nothing is kept then.
    """
    folder = _place(store, version)
    if _is_of(folder, version):
        return folder
    with store.lock("versions"):
        if not _is_of(folder, version):
            with new_folder(folder) as temporary:
                download(store, version, temporary)
                _require_whole(temporary, version)
    return folder


def forget(store: "Store", version: "Version") -> bool:
    """Remove the copy of a version, so that it is brought again; return whether there was one."""
    if not _SHA256.fullmatch(version.record) or not _place(store, version).is_dir():
        return False
    with store.lock("versions"):
        shutil.rmtree(_place(store, version), ignore_errors=True)
    return True


def download(store: "Store", version: "Version", target: Path) -> None:
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


def _place(store: "Store", version: "Version") -> Path:
    if not _SHA256.fullmatch(version.record):
        raise RegistryError(
            f"version {version.number} of {version.model}: its tag canal.record is {version.record[:80]!r}, "
            "no SHA-256; `canal audit` says what else was changed"
        )
    return store.layout.private / "versions" / version.record


def _is_of(folder: Path, version: "Version") -> bool:
    """Whether a folder holds the manifests of a version: it came whole, but may have been cleared since."""
    manifests = {RECORD_FILE: version.record, KEY_FILE: version.key}
    return all(
        (folder / name).is_file() and file_digest(folder / name) == digest
        for name, digest in manifests.items()
    )


def _require_whole(folder: Path, version: "Version") -> None:
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
