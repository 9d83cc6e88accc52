"""A parcel written: members sorted, stored as they are, without times: equal content, equal bytes."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.errors import AuditError
from canal.core.files import new_file
from canal.registry.parcel.manifest import MANIFEST, Content, Manifest, check_names

_BLOCK = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16
_UNIX = 3


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
