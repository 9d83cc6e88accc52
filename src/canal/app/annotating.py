"""Labelling a file for the record: which version answers, what is noted, and where the note goes."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from canal.annotation.unchanged import Fingerprint
from canal.app.project import Project
from canal.core.digests import file_digest, json_digest, tree_digests
from canal.core.errors import DataError, RegistryError
from canal.core.files import append_line

if TYPE_CHECKING:
    from canal.registry.store.database import Version

Notice = Callable[[str], None]


def provenance(version: "Version") -> dict[str, Any]:
    """Return what a record says of the version that answers."""
    return {
        "model": version.model,
        "version": version.number,
        "key": version.key,
        "record": version.record,
        "stage": version.stage,
    }


def now() -> str:
    """Return the time as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Origin(Mapping[str, Any]):
    """What a record says of the input: its name, size and digest, and when it was labelled.

    The digest of a folder is that of the JSON document of its files' digests by name. A thread computes it
    while the cells are read; who asks for ``input`` waits for it. Use it in a ``with`` block, which ends the
    thread.

    Raises
    ------
    DataError
        If the input is not there or cannot be read; when ``input`` is asked for, if it changed meanwhile.
    """

    def __init__(self, source: Path) -> None:
        self._source, self._seen, self._time = source, Fingerprint.of(source), now()
        self._given_up = Event()
        try:
            if not source.is_dir():
                source.open("rb").close()
        except OSError as error:
            raise DataError(f"{source}: {_cause(error)}") from error
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="canal-digest")
        self._digest = self._pool.submit(digest_of, source, self._given_up.is_set)

    def __enter__(self) -> "Origin":
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
            raise DataError(f"{self._source}: {_cause(error)}") from error
        self._seen.check()
        size = sum(size for _, _, size, _ in self._seen.files)
        return {"name": readable(self._source.name), "bytes": size, "sha256": digest}


def origin(source: Path) -> dict[str, Any]:
    """Return what `Origin` says, once all of it is known."""
    with Origin(source) as found:
        return dict(found)


def digest_of(source: Path, given_up: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a file; of a folder that of the JSON document of its files' digests by name."""
    if source.is_dir():
        return json_digest(tree_digests(source, given_up))
    return file_digest(source, given_up)


def readable(name: str) -> str:
    """Return a file's name as text: bytes of it that are none become question marks."""
    return name.encode("utf-8", "replace").decode()


def logger(project: Project, notice: Notice) -> Callable[[str], None]:
    """Return what adds a record to the project's log of annotations.

    Where the log cannot be written, as in a folder that is only lent for reading, a notice says so: the
    record stands in the labelled file itself, too.
    """
    path = project.layout.annotations

    def log(record: str) -> None:
        try:
            with project.store.lock("annotations"):
                append_line(path, record)
        except (OSError, RegistryError) as error:
            notice(
                f"{path} cannot be written ({_cause(error)}): the labelled file says which version made it, "
                "but `canal impact` will not know of the file"
            )

    return log


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
