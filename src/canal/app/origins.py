"""The input of an annotation record: name, size and digest of what was labelled, and when that was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from canal.core.digests import file_digest, json_digest, tree_digests
from canal.core.errors import DataError
from canal.core.files import regular_file
from canal.io.addresses import Address
from canal.io.formats import Fingerprint
from canal.io.locations import Location


def now() -> str:
    """Return the current time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Origin(Mapping[str, Any]):
    """The input of a record (name, size and digest) and the time, as a mapping.

    The digest of a folder is that of the JSON document of its files' digests by name. A thread computes it
    while the cells are read; reading the item ``input`` waits for it. Use an `Origin` in a ``with`` block,
    which ends the thread.

    Raises
    ------
    DataError
        If the input cannot be read; on reading the item ``input``, if the file has changed meanwhile.
    """

    def __init__(self, source: Location) -> None:
        self._source, self._seen, self._time = source, Fingerprint.of(source), now()
        self._given_up = Event()
        try:
            if isinstance(source, Path) and not source.is_dir():
                regular_file(source).open("rb").close()  # a named pipe may never end
        except OSError as error:
            raise DataError(f"{source}: {cause_of(error)}") from error
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="canal-digest")
        self._digest = self._pool.submit(digest_of, source, self._given_up.is_set)

    def __enter__(self) -> Origin:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._pool.shutdown()

    def __getitem__(self, key: str) -> Any:
        if key == "input":
            return self._input()
        return {"time": self._time}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("time", "input"))

    def __len__(self) -> int:
        return 2

    def _input(self) -> dict[str, Any]:
        try:
            digest = self._digest.result()
        except OSError as error:
            raise DataError(f"{self._source}: {cause_of(error)}") from error
        self._seen.check()
        size = sum(size for _, _, size, _ in self._seen.files)
        return {"name": readable(self._source.name), "bytes": size, "sha256": digest}


def origin(source: Location) -> dict[str, Any]:
    """Return the items of an `Origin`, after its digest is computed."""
    with Origin(source) as items:
        return dict(items)


def digest_of(source: Location, given_up: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a file; of a folder that of the JSON document of its files' digests by name."""
    if isinstance(source, Address):
        digests = source.digests(given_up)
        return digests[""] if "" in digests else json_digest(digests)
    if source.is_dir():
        return json_digest(tree_digests(source, given_up))
    return file_digest(source, given_up)


def readable(name: str) -> str:
    """Return a file's name as text, with question marks for bytes that cannot be decoded."""
    return name.encode("utf-8", "replace").decode()


def cause_of(error: Exception) -> str:
    """Return why a file could not be read or written, without its name."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
