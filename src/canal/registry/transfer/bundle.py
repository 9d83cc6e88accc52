"""The bundle: a version in one ZIP file, with a manifest; how it is written, and how it is read safely.

Members are sorted, uncompressed and without times, so that equal content gives equal bytes. A bundle is read
as hostile input: number, names, sizes and digests of members are checked before they are used. Since no
member is compressed, a small file cannot unpack to a large one.
"""

import hashlib
import json
import re
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import AuditError, no_such_file
from canal.core.files import new_file, scratch_folder
from canal.core.progress import doing

_BLOCK = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16
_UNIX = 3

FORMAT = 1
KIND, SHARED = "canal version", "canal sums"
"""What a file holds: a version with its ancestry (`canal export`), or sums alone (`canal share`)."""

_COMMANDS = {KIND: ("canal export", "canal import"), SHARED: ("canal share", "canal merge")}
"""The command that writes a kind, and the one that reads it."""

MANIFEST = "manifest.json"
VERSION, ANCESTORS, LEDGER = "version", "ancestors", "ledger.jsonl"
SOURCES = "sources.json"
"""By source: licence and citation of the cells that were learned from, as params.yaml had them on export."""

MOST_FILES = 20_000
MOST_BYTES = 8 << 30
LARGEST_MANIFEST = 16 << 20
_LONGEST_NAME = 500
_FIELDS = {"format", "kind", "model", "version", "key", "record", "files"}
_WITHHELD = "withheld"
_WITH_CELLS = {"bank/bank.h5ad", "probe/probe.h5ad", "split/cells.csv", "metrics/predictions.csv"}
_WITH_CELLS.add("validation/labels.json")  # lists cells whose label the parent contradicts
_OF_BATCHES = "batches/"
"""Sums of single batches, such as donors, from which few cells can be told apart (docs/privacy.md)."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Content:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, source: Path | bytes) -> "Content":
        """Return size and digest of a file, or of bytes."""
        if isinstance(source, bytes):
            return cls(len(source), hashlib.sha256(source).hexdigest())
        return cls(source.stat().st_size, file_digest(source))


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    Attributes
    ----------
    model, version : str, int
        The registered model, and the version's number in the registry that exported it.
    kind : str
        `KIND` or `SHARED`.
    key, record : str
        Digests of its key.json and record.json.
    files : Mapping
        Every file of the bundle but this manifest.
    withheld : tuple of str
        Files with cells, or their names, that key.json and record.json list and that were left out of the
        bundle: nothing can be learned on it.
    """

    model: str
    version: int
    key: str
    record: str
    files: Mapping[str, Content]
    kind: str = KIND
    withheld: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the manifest as JSON; equal content gives equal bytes."""
        files = {name: {"size": one.size, "sha256": one.sha256} for name, one in self.files.items()}
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "model": self.model,
            "version": self.version,
            "key": self.key,
            "record": self.record,
            "files": files,
            **({"withheld": sorted(self.withheld)} if self.withheld else {}),
        }
        return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def parse_manifest(content: bytes, kind: str = KIND) -> Manifest:
    """Return the manifest in ``content``, which has to be that of a file of this kind.

    Raises
    ------
    AuditError
        If it is no manifest of the format that this canal reads.
    """
    try:
        document = json.loads(content)
        found = document.get("kind") if isinstance(document, dict) else None
        if found != kind and found in _COMMANDS:
            writes, reads = _COMMANDS[found]
            raise AuditError(f"the file is one that `{writes}` wrote: `{reads}` reads it")
        if found != kind:
            raise AuditError(f"{MANIFEST} is not that of a canal bundle: `{_COMMANDS[kind][0]}` writes them")
        if document["format"] != FORMAT:
            raise AuditError(f"{MANIFEST}: this canal reads format {FORMAT}, found {document['format']!r}")
        fields = set(document) - {_WITHHELD}
        _require(fields == _FIELDS, f"it has the fields {', '.join(sorted(map(str, document)))[:200]}")
        files = {
            str(name): Content(_size(one["size"]), _digest(one["sha256"]))
            for name, one in document["files"].items()
        }
        _require(bool(_NAME.fullmatch(document["model"])), "its model has no name of a registered model")
        return Manifest(
            model=document["model"],
            version=_size(document["version"]),
            key=_digest(document["key"]),
            record=_digest(document["record"]),
            files=files,
            kind=kind,
            withheld=_left_out(document.get(_WITHHELD, ()), files),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditError(f"{MANIFEST} is damaged ({type(error).__name__}): ask for the file again") from error


def holds_cells(name: str) -> bool:
    """Whether a member of a bundle holds cells or their names: a bundle can be made without it."""
    inside = name.removeprefix(f"{VERSION}/")
    while inside.startswith(f"{ANCESTORS}/"):
        inside = inside.removeprefix(f"{ANCESTORS}/").partition("/")[2]
    return inside in _WITH_CELLS or inside.startswith(_OF_BATCHES)


def _left_out(names: Any, files: Mapping[str, Content]) -> tuple[str, ...]:
    """Return the names of withheld members; each has to be one with cells that is not there."""
    left = [name for name in files if names and holds_cells(name)]
    _require(isinstance(names, (list, tuple)) and not left, f"it withholds no list, or not {left[:3]}")
    for name in names:
        _require(name not in files and holds_cells(name), f"it withholds {ascii(name[:120])}")
    return tuple(names)


def check_names(names: Iterable[str]) -> None:
    """Refuse names that lead out of a folder, are invisible, or collide on some file systems.

    Raises
    ------
    AuditError
        Naming the first such name.
    """
    seen: dict[str, str] = {}
    for name in names:
        if what := _bad_name(name):
            raise AuditError(f"the file holds a member {ascii(name[:120])} that {what}: nothing was written")
        same = unicodedata.normalize("NFC", name).casefold()
        if same in seen:
            raise AuditError(
                f"the file holds {ascii(name[:120])} twice, or a name that is the same on some systems: "
                "nothing was written"
            )
        seen[same] = name
    folders = {parent.as_posix() for name in seen for parent in PurePosixPath(name).parents}
    if both := sorted(folders & seen.keys()):
        raise AuditError(
            f"the file holds {ascii(both[0][:120])} as a file and as a folder: nothing was written"
        )


def _bad_name(name: str) -> str | None:
    if not name or len(name) > _LONGEST_NAME:
        return f"has {len(name)} characters"
    if any(unicodedata.category(one) in _HIDDEN for one in name):
        return "has characters that cannot be seen"
    if "\\" in name or ":" in name or name.startswith("/"):
        return "is no relative path"
    if name.endswith("/"):
        return "is a folder, not a file"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leads out of its folder"
    return None


def _digest(value: Any) -> str:
    _require(isinstance(value, str) and bool(_DIGEST.fullmatch(value)), f"{str(value)[:80]!r} is no SHA-256")
    return str(value)


def _size(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, f"{value!r} is no number")
    return int(value)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AuditError(f"{MANIFEST} is not as this canal writes it: {what}")


@dataclass(frozen=True)
class About:
    """Which version a bundle holds; see `Manifest`."""

    model: str
    version: int
    key: str
    record: str


@doing("writing the bundle")
def write_bundle(
    path: Path,
    about: About,
    files: Mapping[str, Path | bytes],
    kind: str = KIND,
    withheld: Iterable[str] = (),
) -> None:
    """Write ``files`` (member name -> file, or content) to ``path``, atomically.

    ``withheld`` names members that were left out; see `Manifest`.

    Raises
    ------
    AuditError
        If a name is not allowed in a bundle, or a file changes while it is read.
    """
    check_names([MANIFEST, *files])
    contents = {name: Content.of(source) for name, source in files.items()}
    named = about.model, about.version, about.key, about.record
    manifest = Manifest(*named, contents, kind, tuple(sorted(withheld)))
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, MANIFEST, manifest.text().encode(), None)
        for name in sorted(files):
            _add(archive, name, files[name], contents[name])


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
        raise AuditError(f"{source} changed while it was written into the bundle; try again")


@doing("unpacking the bundle")
def unpack_bundle(path: Path, into: Path, kind: str = KIND) -> Manifest:
    """Check all of a bundle, write its files below ``into`` (an empty folder), and return its manifest.

    Raises
    ------
    AuditError
        If the file is no complete ZIP file, is too large, or differs from its manifest: a path that leads out
        of the folder, a link, a member twice, an unknown or missing file, another size or digest.
    """
    with _opened(path, kind) as archive:
        members = _checked_members(archive, path)
        manifest = parse_manifest(_read(archive, members[MANIFEST], LARGEST_MANIFEST), kind)
        names = members.keys() - {MANIFEST}
        unknown, missing = sorted(names - manifest.files.keys()), sorted(manifest.files.keys() - names)
        if unknown or missing:
            what = (
                f"{len(unknown)} files that {MANIFEST} does not name" if unknown else "not all of its files"
            )
            raise AuditError(
                f"the bundle holds {what}, such as {ascii((unknown or missing)[0])}: nothing was written"
            )
        for name, content in manifest.files.items():
            if (size := members[name].file_size) != content.size:
                raise AuditError(
                    f"{name} has {size:,} bytes, {MANIFEST} says {content.size:,}: nothing was written"
                )
        total, free = sum(one.size for one in manifest.files.values()), shutil.disk_usage(into).free
        if total > free:
            raise AuditError(
                f"the bundle needs {total:,} bytes, {into} has {free:,}: make room, then try again"
            )
        for name, content in sorted(manifest.files.items()):
            _write(archive, members[name], content, into / name)
    return manifest


@contextmanager
def unpacked(path: Path, kind: str = KIND) -> Iterator[tuple[Path, Manifest]]:
    """Give a scratch folder with the files of a bundle, and its manifest; see `unpack_bundle`."""
    with scratch_folder("bundle") as scratch:
        folder = scratch / "bundle"
        folder.mkdir()
        yield folder, unpack_bundle(path, folder, kind)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise AuditError(no_such_file(path, f"name a file that `{_COMMANDS[kind][0]}` wrote"))
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
    """Return the members by name, after the checks that need no reading of their content."""
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
    by_name = {member.filename: member for member in members}
    if MANIFEST not in by_name:
        raise AuditError(f"{path} holds no {MANIFEST}: it is no bundle of `canal export`")
    return by_name


def _bad_member(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or another kind of file" if kind != stat.S_IFDIR else "is a folder"
    if member.filename != member.orig_filename:
        return "has two names"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return "is compressed, which a bundle's members are not"
    return None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    if member.file_size > most:
        raise AuditError(f"{member.filename} has {member.file_size:,} bytes; at most {most:,} are read")
    with archive.open(member) as stream:
        return stream.read(most + 1)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, content: Content, target: Path) -> None:
    """Write one member, at most its stated size, and compare its digest."""
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
