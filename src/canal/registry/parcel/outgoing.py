"""`canal export`: a version, all its artifacts and the proof of its ancestry in one file.

The parcel is written with members sorted, stored as they are, without times: equal content, equal bytes.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import AuditError, RegistryError
from canal.core.files import new_file
from canal.registry.checks.family import Family
from canal.registry.checks.finding import Found
from canal.registry.checks.member import ANCESTORS, CARRIED, CARRIED_LATELY, Member
from canal.registry.checks.register import Snapshot, take_snapshot
from canal.registry.checks.shown_versions import check_shown, what_was_told
from canal.registry.checks.version_files import MANIFESTS, check_files
from canal.registry.downloads import Bring, fresh_copies
from canal.registry.moves import ledger_of
from canal.registry.parcel.manifest import LEDGER, MANIFEST, VERSION, Content, Manifest, check_names
from canal.registry.parcel.proof import prove
from canal.registry.parcel.unpacking import unpacked
from canal.registry.shown import read_shown
from canal.registry.store import Store, Version

_BLOCK = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16
_UNIX = 3


@dataclass(frozen=True)
class Exported:
    """A parcel that was written."""

    path: Path
    files: int
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {"path": str(self.path), "files": self.files, "size": self.size, "sha256": self.sha256}


def export_parcel(store: Store, wanted: str, path: Path, overwrite: bool = False) -> Exported:
    """Write a version, all its artifacts and the proof of its ancestry into one ZIP file.

    Raises
    ------
    RegistryError
        If there is no such version, or the file is there already.
    AuditError
        If anything about the version does not hold; names it.
    """
    if path.exists() and not overwrite:
        raise RegistryError(f"{path} is there already; --overwrite replaces it")
    version = store.version(wanted)
    with fresh_copies(store) as bring:
        files = _files(store, version, bring)
        about = About(version.model, version.number, version.key, version.record)
        try:
            write_parcel(path, about, files)
            with unpacked(path) as (folder, manifest):
                prove(folder, manifest)
        except OSError as error:
            raise RegistryError(f"{path} could not be written: {error.strerror or error}") from error
    return Exported(path, len(files) + 1, path.stat().st_size, file_digest(path))


def _files(store: Store, version: Version, bring: Bring) -> dict[str, Path | bytes]:
    """Return what goes into the parcel of a version, by name, after all of it is checked."""
    found, snapshot = Found(), take_snapshot(store, ledger_of(store))
    family = Family(store, snapshot.ready, snapshot.records, found, bring)
    member = family.member(version)
    record = None if member is None else family.record(member)
    if member is not None and record is not None:
        check_shown(read_shown(store), member, record, what_was_told(member, record), found)
    chain = [] if member is None else family.chain(member)
    for one in chain:
        check_files(one, found)
    if found.findings or member is None or record is None:
        raise AuditError(
            f"version {version.number} was not exported, it does not hold:\n  "
            + "\n  ".join(str(one) for one in found.findings)
        )
    files: dict[str, Path | bytes] = {
        f"{VERSION}/{name}": member.folder / name for name in (*member.files, *record["files"], *MANIFESTS)
    }
    for one in chain[:-1]:
        if one.folder.parent != member.folder / ANCESTORS:
            files |= {f"{ANCESTORS}/{one.digest}/{name}": one.folder / name for name in _carried(one)}
    files[LEDGER] = _entries_about(snapshot, chain)
    return files


def _carried(member: Member) -> list[str]:
    """Return the files of an ancestor that travel: its manifests, and what the chain is checked with."""
    return [name for name in (*MANIFESTS, *CARRIED, *CARRIED_LATELY) if (member.folder / name).is_file()]


def _entries_about(snapshot: Snapshot, chain: Sequence[Member]) -> bytes:
    """Return the ledger's entries about a chain's newest version, and the registrations of the others."""
    keys = {member.digest for member in chain}
    newest = chain[-1].version
    lines = [
        entry.line
        for entry in snapshot.entries
        if (newest is not None and (entry.model, entry.version) == (newest.model, newest.number))
        or (entry.kind in ("register", "rebuild") and entry.document["key"] in keys)
    ]
    return "".join(lines).encode()


@dataclass(frozen=True)
class About:
    """Which version a parcel holds; see `Manifest`."""

    model: str
    version: int
    key: str
    record: str


def write_parcel(path: Path, about: About, files: Mapping[str, Path | bytes]) -> None:
    """Write ``files`` (member name -> file, or content) to ``path``, whole or not at all.

    Raises
    ------
    AuditError
        If a name cannot stand in a parcel, or a file changes while it is read.
    """
    check_names([MANIFEST, *files])
    contents = {name: _content(source) for name, source in files.items()}
    manifest = Manifest(about.model, about.version, about.key, about.record, contents)
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, MANIFEST, manifest.text().encode(), None)
        for name in sorted(files):
            _add(archive, name, files[name], contents[name])


def _content(source: Path | bytes) -> Content:
    if isinstance(source, bytes):
        return Content(len(source), hashlib.sha256(source).hexdigest())
    return Content(source.stat().st_size, file_digest(source))


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes, content: Content | None) -> None:
    member = zipfile.ZipInfo(name, _FIRST_DAY)
    member.create_system, member.external_attr = _UNIX, _PLAIN_FILE
    if isinstance(source, bytes):
        archive.writestr(member, source)
        return
    member.file_size = source.stat().st_size
    digest = hashlib.sha256()
    with source.open("rb") as stream, archive.open(member, "w") as target:
        while block := stream.read(_BLOCK):
            digest.update(block)
            target.write(block)
    if content is not None and digest.hexdigest() != content.sha256:
        raise AuditError(f"{source} changed while it was written into the parcel; try again")
