"""Who works on a study: a process is at work as long as it holds its lock, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """Give this process a name that `is_alive` knows until the block ends or the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid4().hex
    try:
        with FileLock(_path(folder, name)):
            yield name
    finally:
        _path(folder, name).unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process of this name is still at work; the lock of one that was killed is removed."""
    path = _path(folder, name)
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    return False


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.worker"
