"""`canal models`: the shelf, a folder of the user's own with proven bundles, which label cells by a name.

What is on the shelf needs no project around it. Nothing here touches the network unless the user names an
address, and then the file's digest has to be named, too.
"""

import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_data_path

from canal.core.digests import file_digest
from canal.core.errors import CanalError, DataError, RegistryError, no_such_file, there_are
from canal.core.files import new_folder, read_json, scratch_folder, write_json
from canal.core.progress import doing
from canal.data.split import SUMMED
from canal.model.load import network_installed as network_installed
from canal.model.load import runs_network
from canal.registry.audit.version_files import examples as examples
from canal.registry.audit.version_files import unlisted as unlisted
from canal.registry.manifest.version_folder import KEY_FILE, method_view, read_key, read_record
from canal.registry.provenance.registered import ANCESTORS
from canal.registry.transfer.bundle import MANIFEST, SOURCES, VERSION, Manifest
from canal.registry.transfer.proof import bundle_digest as bundle_digest
from canal.registry.transfer.proof import checked_folder, held_cells, read_manifest
from canal.registry.transfer.proof import proven_bundle as proven_bundle

Document = dict[str, Any]
Notice = Callable[[str], None]

_ADDRESSES = ("http://", "https://", "s3://")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_ABOUT, _BUNDLE, _FORMAT = "shelf.json", "bundle", 1
_FIELDS = ("added", "source", "sha256", "manifest")
_DIGEST = re.compile(r"[0-9a-f]{64}")
OTHER_MODELS = "`canal export` writes one, `canal models list` names others"
"""What is said where a model's file is not there."""

ALIASES = {"champion", "candidate", "previous", "latest"}
"""Names that `--model` takes for versions of a project."""


def is_path(wanted: str) -> bool:
    """Whether this names a file or folder rather than a version or a model on the shelf."""
    if os.sep in wanted or wanted.endswith(".zip"):
        return True
    path = Path(wanted)
    return path.is_file() or any((path / name).is_file() for name in (MANIFEST, KEY_FILE))


def shelf_folder() -> Path:
    """Return the folder of the shelf: CANAL_MODELS, else canal/models in the user's folder for data."""
    own = os.environ.get("CANAL_MODELS")
    return Path(own).expanduser() if own else user_data_path("canal") / "models"


@dataclass(frozen=True)
class Shelved:
    """A model on the shelf.

    Attributes
    ----------
    name : str
    folder : Path
        The bundle's files.
    added : str
        When it was proven and put there.
    source : str
        The path or address it came from.
    sha256 : str
        Of the file it came in.
    manifest : str
        SHA-256 of the bundle's manifest, which names every other file with its digest.
    holds : dict
        How many cells it holds; see `canal.registry.transfer.proof.held_cells`.
    """

    name: str
    folder: Path
    added: str
    source: str
    sha256: str
    manifest: str
    holds: dict[str, int]


def shelf_names() -> list[str]:
    """Return the names of the models on the shelf, sorted."""
    place = shelf_folder()
    return sorted(one.name for one in place.iterdir() if on_shelf(one.name)) if place.is_dir() else []


def shelf_name_of(key: str) -> str | None:
    """Return the name of the model on the shelf that has this key, the first by name; None without one."""
    for name in shelf_names():
        with suppress(CanalError):  # another model that is damaged hides none
            if read_manifest(shelved(name).folder).key == key:
                return name
    return None


def on_shelf(name: str) -> bool:
    """Whether a model of this name is on the shelf."""
    return bool(_NAME.fullmatch(name)) and (shelf_folder() / name / _ABOUT).is_file()


def shelved(name: str) -> Shelved:
    """Return the model of this name on the shelf.

    Raises
    ------
    RegistryError
        If there is none, or what the shelf says of it is damaged.
    """
    if not on_shelf(name):
        if not (names := shelf_names()):
            raise RegistryError(
                f"no model {name[:80]!r} on the shelf, which holds none yet: `canal models add FILE.zip` "
                "puts a file of `canal export` there; --model FILE.zip takes one where it lies"
            )
        raise RegistryError(f"no model {name[:80]!r} on the shelf{there_are(name, names)}")
    path = shelf_folder() / name / _ABOUT
    try:
        about = read_json(path)
        added, source, sha256, manifest = (str(about[one]) for one in _FIELDS)
        datetime.fromisoformat(added)
        holds = {str(kind): int(n) for kind, n in about["holds"].items()}
        return Shelved(name, path.parent / _BUNDLE, added, source, sha256, manifest, holds)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RegistryError(
            f"{path} is damaged ({error}): `canal models remove {name}`, then add it"
        ) from error


def unchanged(one: Shelved) -> Manifest:
    """Return the manifest of a model on the shelf, every file of which is the one that was proven."""
    manifest = checked_folder(one.folder)
    if file_digest(one.folder / MANIFEST) != one.manifest:
        raise RegistryError(
            f"{one.folder / MANIFEST} was changed since {one.name} was proven: `canal models remove "
            f"{one.name}`, then add it again"
        )
    return manifest


def add_model(
    source: str, name: str | None = None, sha256: str | None = None, notice: Notice = lambda message: None
) -> Document:
    """Prove a bundle and put it on the shelf; return what `describe` does.

    Parameters
    ----------
    source
        A file of `canal export`, or its http(s) or s3 address, for which ``sha256`` is needed.
    name
        By default the file's name, less its suffix.

    Raises
    ------
    CanalError
        If the file has another digest, proves not what it claims, or the name is taken.
    """
    if sha256 is not None and not _DIGEST.fullmatch(sha256):
        raise DataError(f"--sha256: expected 64 hexadecimal digits, found {sha256[:80]!r}")
    stem = Path(source.partition("?")[0]).name.removesuffix(".zip")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem) if name is None else name
    if name in ALIASES:
        raise DataError(f"{name!r} is an alias of a project's versions: --name gives the model another name")
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name[:80]!r} is no name for a model: expected a letter, then letters, digits, dots, dashes or "
            "underscores, at most 64; --name gives one"
        )
    place = shelf_folder() / name
    _require_free(place)
    with scratch_folder("download") as scratch:
        path = Path(source).expanduser()
        if source.startswith(_ADDRESSES):
            path = _fetched(source, sha256, scratch, notice)
        digest = file_digest(path) if path.is_file() else ""
        if sha256 is not None and digest != sha256:
            raise DataError(f"{source}: expected sha256 {sha256}, found {digest or 'no file'}")
        with proven_bundle(path) as (folder, manifest, chain):
            about = {
                "format": _FORMAT,
                "added": datetime.now(UTC).isoformat(timespec="seconds"),
                "source": source if source.startswith(_ADDRESSES) else str(path.resolve()),
                "sha256": digest,
                "manifest": hashlib.sha256(manifest.text().encode()).hexdigest(),
                "holds": held_cells(chain),
            }
            _keep(place, folder, manifest, about)
    return describe(shelved(name))


def _require_free(place: Path) -> None:
    if place.exists():
        raise RegistryError(
            f"{place.name!r} is on the shelf: `canal models remove {place.name}` first, or --name"
        )


@doing("putting the model on the shelf")
def _keep(place: Path, folder: Path, manifest: Manifest, about: Document) -> None:
    """Copy a proven bundle to the shelf, whole or not at all; of two at once the second is refused."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / ".lock"):
            _require_free(place)
            with new_folder(place) as temporary:
                shutil.copytree(folder, temporary / _BUNDLE)
                (temporary / _BUNDLE / MANIFEST).write_text(manifest.text(), encoding="utf-8")
                write_json(temporary / _ABOUT, about)
    except OSError as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise RegistryError(f"{place} cannot be written: {reason}") from error


def _fetched(address: str, sha256: str | None, scratch: Path, notice: Notice) -> Path:
    """Return the file at an address, which must have this digest."""
    if sha256 is None:
        raise DataError(
            f"{address}: whoever sends a file can send another: --sha256 is needed, by another way than the "
            "file (`canal export` prints it)"
        )
    path = scratch / "download.zip"
    if address.startswith("s3://"):
        bucket, _, key = address.removeprefix("s3://").partition("/")
        boto3, failures = import_module("boto3"), import_module("botocore.exceptions")
        try:
            boto3.client("s3").download_file(bucket, key, str(path))
        except (failures.BotoCoreError, failures.ClientError) as error:
            raise DataError(f"{address}: {error}") from error
        return path
    import_module("canal.data.sources").download(address, sha256, path, notice, keeps=False)
    return path


def remove_model(name: str) -> None:
    """Take a model from the shelf.

    Raises
    ------
    RegistryError
        If there is none of that name.
    """
    place = shelf_folder() / name
    empty = bool(_NAME.fullmatch(name)) and place.is_dir() and not any(place.iterdir())
    if not on_shelf(name) and not empty:
        shelved(name)  # raises, with the names there are
    with scratch_folder("removed", shelf_folder()) as scratch:
        place.rename(scratch / name)  # at once; a kill leaves no half model under its name


def list_models() -> list[Document]:
    """Return what `describe` does of every model on the shelf, by name; without looking at every file.

    Of a model that cannot be read, ``damaged`` says why, beside its name.
    """
    return [_described(name) for name in shelf_names()]


def _described(name: str) -> Document:
    try:
        return describe(shelved(name))
    except CanalError as error:
        return {"name": name, "damaged": str(error)}


def show_model(wanted: str) -> Document:
    """Describe a model on the shelf, every file of which is compared, or a bundle's file, which is proven."""
    if not is_path(wanted):
        one = shelved(wanted)
        unchanged(one)
        return describe(one)
    path = Path(wanted).expanduser()
    if not path.exists():
        raise DataError(no_such_file(path, OTHER_MODELS))
    with proven_bundle(path) as (folder, manifest, chain):
        named = {"name": None, "source": str(path), "sha256": bundle_digest(path)}
        return {**named, **_content(folder, manifest), "holds": held_cells(chain)}


@doing("reading the model")
def describe(one: Shelved) -> Document:
    """Return what is known of a model on the shelf, as a JSON document.

    Types with the number of their training cells and the share of their test cells that were recognised,
    genes, method, stages, sources with licence and citation, how it was made, and which cells it holds.

    Raises
    ------
    RegistryError
        If its files cannot be read.
    """
    named = {"name": one.name, "added": one.added, "source": one.source, "sha256": one.sha256}
    try:
        return {**named, **_content(one.folder, read_manifest(one.folder)), "holds": one.holds}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"{one.folder} is damaged ({error}): `canal models remove {one.name}`, then add it again"
        ) from error


def _content(folder: Path, manifest: Manifest) -> Document:
    """Return what the documents of an unpacked bundle say of its version."""
    version = folder / VERSION
    key, record = read_key(version), read_record(version)
    evaluation = _document(version / "metrics" / "evaluation.json")
    method, labels = method_view(version, key), read_json(version / "model" / "labels.json")
    return {
        "model": manifest.model,
        "version": manifest.version,
        "key": manifest.key,
        "stage": key["stage"],
        "stages": list(evaluation.get("stages", [key["stage"]])),
        "types": _types(folder, labels, evaluation, method["name"] != "published"),
        "average_accuracy": evaluation.get("average_accuracy"),
        "genes": len(read_json(version / "model" / "genes.json")),
        "method": method["name"],
        "network_weight": method.get("network_weight"),
        "needs_torch": runs_network(version / "model"),
        "fast_without_torch": method["name"] == "combined" and not method["lacking"],
        "sources": _document(folder / SOURCES),
        "made": {name: record.get(name) for name in ("time", "user", "git_commit", "dirty")},
        "bytes": sum(one.size for one in manifest.files.values()),
        "without_cells": bool(manifest.withheld),
    }


def _document(path: Path) -> Document:
    document: Document = read_json(path) if path.is_file() else {}
    return document


def _types(folder: Path, labels: list[str], evaluation: Document, by_sums: bool) -> list[Document]:
    """Return each type with its training cells in all stages, and its recall over all test cells.

    Sums learn from the cells in reserve, too, of which a network sees none.
    """
    cells: dict[str, int] = defaultdict(int)
    ancestors = [*folder.glob(f"{ANCESTORS}/*"), *folder.glob(f"{VERSION}/{ANCESTORS}/*")]
    for place in (folder / VERSION, *{one.name: one for one in ancestors}.values()):
        for name, counts in _document(place / "split" / "cells.json").get("counts", {}).items():
            cells[name] += sum(counts.get(one, 0) for one in (SUMMED if by_sums else SUMMED[:1]))
    right: dict[str, float] = defaultdict(float)
    tested: dict[str, int] = defaultdict(int)
    for measured in evaluation.get("per_stage", {}).values():
        for name, one in measured["recall"].items():
            right[name] += one["recall"] * one["n"]
            tested[name] += one["n"]
    return [
        {
            "type": name,
            "cells": cells[name],
            "tested": tested[name],
            "recall": right[name] / tested[name] if tested[name] else None,
        }
        for name in labels
    ]
