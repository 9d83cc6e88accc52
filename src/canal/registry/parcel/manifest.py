"""manifest.json of a parcel: which version it holds, and every other file in it by size and digest."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from canal.core.errors import AuditError

FORMAT = 1
KIND = "canal version"
MANIFEST = "manifest.json"
VERSION, ANCESTORS, LEDGER = "version", "ancestors", "ledger.jsonl"

MOST_FILES = 20_000
MOST_BYTES = 8 << 30
LARGEST_MANIFEST = 16 << 20
_LONGEST_NAME = 500
_FIELDS = {"format", "kind", "model", "version", "key", "record", "files"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@dataclass(frozen=True)
class Content:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a parcel says of itself.

    Attributes
    ----------
    model, version : str, int
        The registered model and the number that the version has where it was learned.
    key, record : str
        Digests of its key.json and record.json.
    files : Mapping
        Every file of the parcel but this manifest.
    """

    model: str
    version: int
    key: str
    record: str
    files: Mapping[str, Content]

    def text(self) -> str:
        """Return the manifest as it stands in the parcel: equal content, equal bytes."""
        files = {name: {"size": one.size, "sha256": one.sha256} for name, one in self.files.items()}
        document = {
            "format": FORMAT,
            "kind": KIND,
            "model": self.model,
            "version": self.version,
            "key": self.key,
            "record": self.record,
            "files": files,
        }
        return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in ``content``.

    Raises
    ------
    AuditError
        If it is no manifest of the format that this canal knows.
    """
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise AuditError(f"{MANIFEST} is not that of a canal parcel: `canal export` writes them")
        if document["format"] != FORMAT:
            raise AuditError(f"{MANIFEST}: this canal reads format {FORMAT}, found {document['format']!r}")
        _require(set(document) == _FIELDS, f"it has the fields {', '.join(sorted(map(str, document)))[:200]}")
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
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditError(f"{MANIFEST} is damaged ({type(error).__name__}): ask for the file again") from error


def check_names(names: Iterable[str]) -> None:
    """Refuse names that could lie outside a folder, hide, or stand for the same file on some system.

    Raises
    ------
    AuditError
        Naming the first.
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
