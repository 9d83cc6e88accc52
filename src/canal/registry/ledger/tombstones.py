"""What `canal erase` removed: digests of files and versions in ``erased/``, each document named by an entry.

A document is written before anything is removed, under a name that says so (``TOKEN.open.json``), and renamed
when all is done. It names files, never cells. The ledger's entry holds its digest, so it cannot be changed
unnoticed; who erased, when and why stands in that entry.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest, json_digest
from canal.core.errors import LedgerError
from canal.core.files import read_json, write_json
from canal.registry.ledger.ledger import Entry

FORMAT = 1
_OPEN, _DONE = ".open.json", ".json"
_NAME = re.compile(r"([0-9a-f]{64})(\.open)?\.json")


@dataclass(frozen=True)
class Doomed:
    """A file to be removed, or to be replaced by one without the cells (``rewritten``).

    Attributes
    ----------
    path : str
        Below the project, or absolute where a cache lies elsewhere.
    sha256 : str
        Of the bytes with the cells: a path that holds other bytes by then is left alone.
    bytes : int
    why : str
    rewritten : bool
    """

    path: str
    sha256: str
    bytes: int
    why: str
    rewritten: bool = False


@dataclass(frozen=True)
class Tombstones:
    """One erasing: the plan that was confirmed, and the digests of the files that replace others.

    Attributes
    ----------
    cells : str
        SHA-256 of the sorted digests of the cells' contents, as key.json names cells that left.
    n_cells : int
    versions : sequence of dict
        Model, number, key and record of each version whose files go.
    files : sequence of Doomed
    objects : sequence of str
        MD5 of the objects that go from DVC's remote; none where that was not asked for.
    rests : dict
        Path of a rewritten file -> SHA-256 of what is left; not part of the plan.
    """

    cells: str
    n_cells: int
    versions: Sequence[Mapping[str, Any]]
    files: Sequence[Doomed]
    objects: Sequence[str] = ()
    rests: Mapping[str, str] = field(default_factory=dict)

    @property
    def token(self) -> str:
        """The digest of the plan: the same files, versions and cells, or it is another."""
        return json_digest({name: value for name, value in self.to_json().items() if name != "rests"})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "format": FORMAT,
            "cells": self.cells,
            "n_cells": self.n_cells,
            "versions": [dict(one) for one in self.versions],
            "files": [asdict(one) for one in self.files],
            "objects": list(self.objects),
            "rests": dict(self.rests),
        }

    def left(self, root: Path) -> list[Doomed]:
        """Return the files that still hold what was to go."""
        return [one for one in self.files if holds_still(root, one)]


def holds_still(root: Path, one: Doomed) -> bool:
    """Whether a path still has the bytes that are to go."""
    path = root / one.path
    return path.is_file() and path.stat().st_size == one.bytes and file_digest(path) == one.sha256


def begin(folder: Path, what: Tombstones) -> Path:
    """Write the document of an erasing that begins, and return its path."""
    path = folder / f"{what.token}{_OPEN}"
    write_json(path, what.to_json())
    return path


def finish(path: Path) -> Path:
    """Rename the document of an erasing that is done."""
    return path.replace(path.with_name(path.name.replace(_OPEN, _DONE)))


def unfinished(folder: Path) -> list[Path]:
    """Return the documents of erasings that were begun and not finished."""
    return sorted(path for path in folder.glob(f"*{_OPEN}") if _NAME.fullmatch(path.name))


def finished(folder: Path) -> list[Path]:
    """Return the documents of erasings that are done."""
    return sorted(
        path for path in folder.glob(f"*{_DONE}") if (match := _NAME.fullmatch(path.name)) and not match[2]
    )


def read(path: Path) -> Tombstones:
    """Return a document.

    Raises
    ------
    LedgerError
        If it is no such document, or not the one that its name says.
    """
    try:
        document = read_json(path)
        if document["format"] != FORMAT:
            raise LedgerError(f"{path}: this canal reads format {FORMAT}, found {document['format']!r}")
        made = Tombstones(
            cells=str(document["cells"]),
            n_cells=int(document["n_cells"]),
            versions=list(document["versions"]),
            files=[Doomed(**one) for one in document["files"]],
            objects=list(document["objects"]),
            rests=dict(document["rests"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is no list of what was erased: git checkout -- {path}") from error
    if _NAME.fullmatch(path.name) is None or not path.name.startswith(made.token):
        raise LedgerError(f"{path} was changed after it was written: git checkout -- {path}")
    return made


def entry_of(path: Path, entries: Sequence[Entry]) -> Entry | None:
    """Return the entry that names a document with the bytes that it has; None without one."""
    digest = file_digest(path)
    named = (one for one in entries if one.kind == "erase")
    return next((one for one in named if one.document["details"].get("tombstones") == digest), None)
