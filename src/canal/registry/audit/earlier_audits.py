"""Which versions an earlier audit read whole and found nothing in: `canal audit --resume` passes over those.

Noted of each are path, size, inode and time of change of all its files; that time is the system's own, set by
whatever changes a file, and no program can set it back. The notes lie in ``.canal/`` and prove nothing to
others: who can write there can write them. `canal audit` without ``--resume`` reads everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.core import __version__
from canal.core.digests import file_digest, json_digest
from canal.core.errors import RegistryError
from canal.core.files import read_json, write_json
from canal.core.progress import ranges
from canal.registry.audit.version_files import AuditLog, version_name
from canal.registry.store.database import Version
from canal.registry.store.store import Store

_FORMAT = 1


@dataclass(frozen=True)
class Read:
    """A version that an audit read whole, and found nothing in.

    Attributes
    ----------
    files : str
        Digest of path, size, inode and time of change of its files.
    time : str
        When that audit began.
    """

    files: str
    time: str


class EarlierAudits:
    """What earlier audits of a project found nothing in, and what its versions' files look like now."""

    def __init__(self, store: Store, layout: Layout, versions: Sequence[Version]) -> None:
        self._path = layout.private / "audited.json"
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._store = store
        self._now = {_key(one): _looks(store, one) for one in versions if not one.erased}
        # What is excluded, and where versions come from; a project that is only looked at may have none.
        self._params = file_digest(layout.params) if layout.params.is_file() else ""
        self._read = _noted(self._path, self._params)

    def unchanged(self, versions: Sequence[Version]) -> list[Version]:
        """Return the versions whose files are as they were when an audit found nothing in them."""
        return [one for one in versions if self._earlier(one) is not None]

    def tell(self, passed_over: Sequence[Version], log: AuditLog) -> None:
        """Note which versions are not read again, and which audits read them."""
        times = sorted({noted.time for one in passed_over if (noted := self._earlier(one)) is not None})
        if not times:
            return
        since = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
        model = self._store.names.model
        numbers = [one.number for one in passed_over if one.model == model]
        others = [f"{one.model} {one.number}" for one in passed_over if one.model != model]
        own = [f"version{'s' * (len(numbers) > 1)} {ranges(numbers)}"] if numbers else []
        names = " and ".join([*own, *others])
        what = (
            f"{names} {'was' if len(passed_over) == 1 else 'were'} not read again: the files have the size "
            f"and time of change that they had when an audit found nothing in them ({since}); nor was "
            "compared what MLflow shows of them. `canal audit` reads everything"
        )
        log.note("audit", "resume", what)

    def keep(self, audited: Sequence[Version], log: AuditLog) -> None:
        """Write down the versions that this audit found nothing in; what is noted of others stays."""
        faulty = {one.subject.partition(",")[0] for one in log.findings}  # also "version 3, ancestor ..."
        read = dict(self._read)
        for one in audited:
            read.pop(_key(one), None)
            looks = self._now.get(_key(one))
            if looks is not None and version_name(self._store, one.model, one.number) not in faulty:
                read[_key(one)] = Read(looks, self._began)
        document = {name: {"files": one.files, "time": one.time} for name, one in read.items()}
        about = {"format": _FORMAT, "canal": __version__, "params": self._params}
        with suppress(OSError):  # a project that this user may only read
            write_json(self._path, {**about, "versions": document})

    def _earlier(self, version: Version) -> Read | None:
        noted, looks = self._read.get(_key(version)), self._now.get(_key(version))
        return noted if noted is not None and noted.files == looks else None


def _key(version: Version) -> str:
    return f"{version.model} {version.number} {version.record}"


def _looks(store: Store, version: Version) -> str | None:
    """Return what a version's files look like; None where they are not on this disk, or cannot be seen."""
    try:
        folder = store.local_artifacts(version)
        return None if folder is None else json_digest(sorted(_files(folder, folder)))
    except (OSError, RegistryError):
        return None


def _files(folder: Path, base: Path) -> Iterator[list[Any]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), base)
                continue
            seen = entry.stat()
            place = Path(entry.path).relative_to(base).as_posix()
            yield [place, seen.st_size, seen.st_ino, seen.st_ctime_ns]


def _noted(path: Path, params: str) -> Mapping[str, Read]:
    """Return what earlier audits noted, with this canal and these parameters; nothing if it is unreadable."""
    try:
        document = read_json(path)
        if (document["format"], document["canal"], document["params"]) != (_FORMAT, __version__, params):
            return {}
        return {name: Read(str(one["files"]), str(one["time"])) for name, one in document["versions"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
