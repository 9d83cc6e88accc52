"""Writing that is whole or not there: temporary neighbours, then one rename."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canal.errors import DataError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def checked_path(path: Path) -> Path:
    """Return a path that the system can be asked about, whether or not anything is there.

    Raises
    ------
    DataError
        If the system knows no such names, as one of 5,000 characters.
    """
    try:
        path.exists()
    except OSError as error:
        raise DataError(f"{str(path)[:80]}...: {error.strerror}") from error
    return path


def kind_of(mode: int) -> str | None:
    """Return what a file that is no regular one is, by its mode; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for test, kind in _KINDS if test(mode)), "no regular file")


def regular_file(path: Path) -> Path:
    """Return ``path`` if it is, links of the file system followed, a regular file.

    Raises
    ------
    DataError
        If nothing is there, or a folder, named pipe, socket or device: opening one of those may never end.
    """
    try:
        kind = kind_of(checked_path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be looked at ({error})") from error
    if kind:
        raise DataError(f"{path} is {kind}: expected a file")
    return path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The neighbour lies in the same folder, so the rename is atomic; it is flushed to disk first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Add a line at the end of a file, whole and on disk, or not at all; callers take turns by a lock.

    Where a kill left half a line, the new one begins behind it.

    Raises
    ------
    OSError
        If it cannot be written; the file is as it was.
    """
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(handle).st_size
        torn = before > 0 and os.pread(handle, 1, before - 1) != b"\n"
        try:
            left = memoryview((("\n" if torn else "") + line + "\n").encode())
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)
    if new:
        _sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as readable JSON with sorted keys, atomically; NaN is an error."""
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    with new_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the JSON document in ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
