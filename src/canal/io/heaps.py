"""Heaps of texts in HDF5 files: a damaged one, at which HDF5 would never end, is refused before."""

from __future__ import annotations

import gc
import mmap
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import BinaryIO
from weakref import WeakValueDictionary

import h5py

from canal.core.errors import DataError

_HEAD = re.compile(rb"GCOL\x01\x00\x00\x00")
_OBJECT = 16
"""Bytes before an object of a heap: its number, how many point at it, its size."""
_OBJECT_HEAD = Struct("<HxxxxxxQ")
_LARGEST_HEAP = 1 << 26
"""Bytes of a heap of texts; HDF5 makes them of some thousand."""
_SEARCHED = 1 << 28
"""Larger files are not searched, which would take too long."""
_SECONDS = 120
_CPU_SECONDS = 3
"""A file that is searched is read in less, or never."""
_READ_ALL = """
import resource, sys, h5py
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
def read(name, node):
    for key in node.attrs:
        node.attrs[key]
    if isinstance(node, h5py.Dataset) and node.dtype.kind == "O" and not node.is_virtual:
        for start in range(0, len(node) if node.ndim else 0, 1024):
            node[start:start + 1024]
with h5py.File(sys.argv[1]) as file:
    read("/", file)
    file.visititems(read)
"""


def check_heaps(path: Path) -> None:
    """Raise `DataError` where a heap of a file is damaged; files of more than 256 MiB are not searched."""
    state, real = path.stat(), path.resolve()
    small = state.st_size <= _SEARCHED
    if small and not _sound(real, state.st_ino, state.st_size, state.st_mtime_ns):
        raise _damaged(path)


def _damaged(path: Path) -> DataError:
    return DataError(
        f"{path}: its texts cannot be read (a heap of the HDF5 file has objects of size 0): the file is "
        "damaged or was cut short, so fetch it again"
    )


class WatchedBytes:
    """Bytes that h5py reads: a heap that would never end is refused, and the first error is kept.

    Python's search for cycles waits meanwhile. It might begin in the thread that fetches, find an object of
    h5py there, and wait for h5py's lock, which is held until that thread has fetched.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path, self._heaps = stream, path, set[int]()
        self._size = stream.seek(0, os.SEEK_END)
        self.error: Exception | None = None
        _OPEN[str(path)] = self

    def __repr__(self) -> str:
        return str(self._path)  # h5py calls the file so

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return self._stream.read(size)

    def readinto(self, block: memoryview) -> int:
        """Fill a block with the next bytes, heaps among them looked at; return how many there are."""
        collects = gc.isenabled()
        gc.disable()
        try:
            at = self._stream.tell()
            data = self._stream.read(len(block))
            block[: len(data)] = data
            for found in _HEAD.finditer(data):
                self._check_heap(at + found.start())
            return len(data)
        except Exception as error:
            self.error = self.error or error
            raise
        finally:
            if collects:
                gc.enable()

    def _check_heap(self, at: int) -> None:
        if at in self._heaps:
            return
        self._heaps.add(at)
        self._stream.seek(at + 8)
        size = min(int.from_bytes(self._stream.read(8), "little"), self._size - at)
        self._stream.seek(at)
        if size > _LARGEST_HEAP or not _walks(self._stream.read(size), _OBJECT, size):
            raise DataError(
                f"{self._path}: a heap of its texts seems to be damaged: copy the file to a disk and give "
                "the copy's path, of which all is checked; or write the file again"
            )


FILE_OBJECT = "fileobj"
"""How h5py calls the driver of what is read through `WatchedBytes`."""
_OPEN: WeakValueDictionary[str, WatchedBytes] = WeakValueDictionary()


def stored_at(file: h5py.File, offset: int, size: int) -> bytes | None:
    """Return bytes of a file that is read through `WatchedBytes`; None once these are no longer open."""
    watched = _OPEN.get(file.filename)
    if watched is None:
        return None
    watched.seek(offset)
    return watched.read(size)


@lru_cache(maxsize=64)
def _sound(path: Path, *_state: int) -> bool:
    """Return whether the file has no damaged heap that sends HDF5 into an endless loop."""
    if not _doubtful(path):
        return True
    command = [sys.executable, "-c", _READ_ALL, str(path), str(_CPU_SECONDS)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _doubtful(path: Path) -> bool:
    """Return whether a walk through a heap of the file would never end."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in _HEAD.finditer(data):  # three times as fast as the map's own find
            at = found.start()
            end = at + int.from_bytes(data[at + 8 : at + 16], "little")
            if not _walks(data, at + _OBJECT, min(end, len(data))):
                return True
    return False


def _walks(data: mmap.mmap | bytes, at: int, end: int) -> bool:
    last, read = end - _OBJECT, _OBJECT_HEAD.unpack_from
    while at <= last:
        number, size = read(data, at)
        at += _OBJECT + ((size + 7) & ~7) if number else size
        if not (number or size) or at > end:
            return False
    return True
