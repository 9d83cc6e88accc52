"""A parcel read as if an enemy had made it: members are bounded, named and proven before they are believed.

Members are stored, never compressed, so a small file cannot grow: it unpacks to what it weighs.
"""

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from canal.core.errors import AuditError
from canal.core.files import scratch_folder
from canal.registry.parcel.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    MOST_BYTES,
    MOST_FILES,
    Content,
    Manifest,
    check_names,
    parse_manifest,
)

_BLOCK = 1 << 20
_ENCRYPTED = 0x1


def unpack_parcel(path: Path, into: Path) -> Manifest:
    """Check all of a parcel, write its files below ``into`` (an empty folder), and return its manifest.

    Raises
    ------
    AuditError
        If the file is no whole ZIP file, or holds anything that its manifest does not name: a name that leads
        elsewhere, a link, a member twice, an unknown or missing file, another size or digest, too much.
    """
    with _opened(path) as archive:
        members = _checked_members(archive, path)
        manifest = parse_manifest(_read(archive, members[MANIFEST], LARGEST_MANIFEST))
        _check_listing(members, manifest)
        _check_space(manifest, into)
        for name, content in sorted(manifest.files.items()):
            _write(archive, members[name], content, into / name)
    return manifest


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, Manifest]]:
    """Give a scratch folder with the files of a parcel, and its manifest; see `unpack_parcel`."""
    with scratch_folder("parcel") as scratch:
        folder = scratch / "parcel"
        folder.mkdir()
        yield folder, unpack_parcel(path, folder)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise AuditError(f"{path} not found; name a file that `canal export` wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise AuditError(
            f"{path} is no whole ZIP file ({error}): it was cut short or changed; ask for it again"
        ) from error
    except OSError as error:
        raise AuditError(
            f"{path} cannot be unpacked: {error.strerror or error}; nothing was registered"
        ) from error


def _checked_members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name after checking all that can be checked without reading them."""
    members = archive.infolist()
    if len(members) > MOST_FILES:
        raise AuditError(f"{path} holds {len(members):,} members; a version has at most {MOST_FILES:,}")
    check_names([member.orig_filename for member in members])
    for member in members:
        if what := _bad_member(member):
            raise AuditError(f"{path}: the member {ascii(member.filename[:120])} {what}: nothing was written")
    total, weight = sum(member.file_size for member in members), path.stat().st_size
    if total > min(weight, MOST_BYTES):
        raise AuditError(
            f"{path} claims to unpack to {total:,} bytes: it weighs {weight:,}, and at most {MOST_BYTES:,} "
            "are taken; nothing was written"
        )
    found = {member.filename: member for member in members}
    if MANIFEST not in found:
        raise AuditError(f"{path} holds no {MANIFEST}: it is no parcel of `canal export`")
    return found


def _bad_member(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or another kind of file" if kind != stat.S_IFDIR else "is a folder"
    if member.filename != member.orig_filename:
        return "has two names"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return "is compressed, which a parcel's members are not"
    return None


def _check_listing(members: dict[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    """Check that the manifest names every member, and every member's size."""
    names = members.keys() - {MANIFEST}
    unknown, missing = sorted(names - manifest.files.keys()), sorted(manifest.files.keys() - names)
    if unknown or missing:
        what = f"{len(unknown)} files that {MANIFEST} does not name" if unknown else "not all of its files"
        raise AuditError(
            f"the parcel holds {what}, such as {ascii((unknown or missing)[0])}: nothing was written"
        )
    for name, content in manifest.files.items():
        if members[name].file_size != content.size:
            found = members[name].file_size
            raise AuditError(
                f"{name} has {found:,} bytes, {MANIFEST} says {content.size:,}: nothing was written"
            )


def _check_space(manifest: Manifest, into: Path) -> None:
    total, free = sum(one.size for one in manifest.files.values()), shutil.disk_usage(into).free
    if total > free:
        raise AuditError(f"the parcel needs {total:,} bytes, {into} has {free:,}: make room, then try again")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    if member.file_size > most:
        raise AuditError(f"{member.filename} has {member.file_size:,} bytes; at most {most:,} are read")
    with archive.open(member) as stream:
        return stream.read(most + 1)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: Content, target: Path) -> None:
    """Write one member, never more of it than its size, and compare its digest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), content.size
    with archive.open(member) as stream, target.open("xb") as file:
        while block := stream.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                raise AuditError(f"{member.filename} goes on behind its {content.size:,} bytes")
            digest.update(block)
            file.write(block)
    if left or digest.hexdigest() != content.sha256:
        raise AuditError(
            f"{member.filename} is not what {MANIFEST} says (sha256 {digest.hexdigest()[:12]}... instead of "
            f"{content.sha256[:12]}...): the file was changed or damaged; ask for it again"
        )
