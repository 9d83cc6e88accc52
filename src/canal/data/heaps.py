"""Heaps of texts in HDF5 files: damaged ones make the HDF5 library turn in a circle, which nothing ends."""

from __future__ import annotations

import mmap
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from struct import Struct

from canal.errors import DataError

_HEAD = b"GCOL\x01\x00\x00\x00"
_OBJECT = 16
"""Bytes before an object of a heap: its number, how many point at it, its size."""
_OBJECT_HEAD = Struct("<HxxxxxxQ")
_SEARCHED = 1 << 28
"""Larger files are not searched: it would take longer than what is asked of them."""
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
    """Raise where a heap of an HDF5 file has an object of no size, and reading the file's texts never ends.

    Raises
    ------
    DataError
        If another process could not read all texts and attributes of the file.
    """
    state = path.stat()
    if state.st_size > _SEARCHED or _sound(path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns):
        return
    raise DataError(
        f"{path}: its texts cannot be read (a heap of the HDF5 file has objects of no size); it is damaged "
        "or was cut short: fetch it again"
    )


@lru_cache(maxsize=64)
def _sound(path: Path, *_state: int) -> bool:
    if not _doubtful(path):
        return True
    command = [sys.executable, "-c", _READ_ALL, str(path), str(_CPU_SECONDS)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _doubtful(path: Path) -> bool:
    """Return whether walking through a heap of the file would not arrive at its end."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_HEAD)
        while at >= 0:
            end = at + int.from_bytes(data[at + 8 : at + 16], "little")
            if not _walks(data, at + _OBJECT, min(end, len(data))):
                return True
            at = data.find(_HEAD, at + _OBJECT)
    return False


def _walks(data: mmap.mmap, at: int, end: int) -> bool:
    last, read = end - _OBJECT, _OBJECT_HEAD.unpack_from
    while at <= last:
        number, size = read(data, at)
        at += _OBJECT + ((size + 7) & ~7) if number else size
        if not (number or size) or at > end:
            return False
    return True
