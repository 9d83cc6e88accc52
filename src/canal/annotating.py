"""Labelling a file for the record: which version answers, what is noted, and where the note goes."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.digests import file_digest, json_digest, tree_digests
from canal.errors import DataError, RegistryError
from canal.files import append_line
from canal.project import Project

if TYPE_CHECKING:
    from canal.registry.store import Version

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


def origin(source: Path) -> dict[str, Any]:
    """Return what a record says of the input: its name, size and digest, and when it was labelled.

    The digest of a folder is that of the JSON document of its files' digests by name.

    Raises
    ------
    DataError
        If it is not there, or cannot be read.
    """
    try:
        files = [one for one in source.rglob("*") if one.is_file()] if source.is_dir() else [source]
        size = sum(one.stat().st_size for one in files)
        about = {"name": readable(source.name), "bytes": size, "sha256": digest_of(source)}
    except OSError as error:
        raise DataError(f"{source}: {_cause(error)}") from error
    return {"time": now(), "input": about}


def digest_of(source: Path) -> str:
    """Return the SHA-256 of a file; of a folder that of the JSON document of its files' digests by name."""
    return json_digest(tree_digests(source)) if source.is_dir() else file_digest(source)


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
