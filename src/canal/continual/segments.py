"""The cache folder of computed rows: its files, its size limit, and which files are removed when it is full.

A segment is two files, ``<name>.npy`` with the rows and ``<name>.json``, its index, which is written last:
without a complete index the rows are ignored. The name is a digest of the cells, so equal cells have equal
names. Each row is found by its cell, and its checksum is verified before it is used.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock, Timeout

from canal.core.digests import json_digest
from canal.core.errors import TrainingError
from canal.core.files import new_file, read_json, write_json

FORMAT = 1
_INDEX = ".json"
_BYTES_PER_INDEX_ROW = 56
_BYTES_PER_SEGMENT = 384
RowDtype = Literal["float32", "bfloat16"]
GIGABYTE = 10**9

RESERVE = 256 << 20
"""Bytes of free disk left alone, for checkpoints and the model itself."""

_LOCK = "lock"


@dataclass(frozen=True)
class RowKind:
    """The format of rows: float32 values of ``shape``, stored as float32 or rounded to bfloat16."""

    shape: tuple[int, ...]
    dtype: RowDtype = "float32"

    @property
    def stored(self) -> np.dtype:
        """The numpy type in files; numpy knows no bfloat16, so uint16 holds its bits."""
        return np.dtype("<f4" if self.dtype == "float32" else "<u2")

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.stored.itemsize * int(np.prod(self.shape))

    def segment_bytes(self, n_rows: int) -> int:
        """Return the bytes that a segment of ``n_rows`` takes at most, index included."""
        return n_rows * (self.row_bytes + _BYTES_PER_INDEX_ROW) + _BYTES_PER_SEGMENT

    def rows_within(self, n_bytes: int) -> int:
        """Return how many rows a segment of at most ``n_bytes`` holds, index included."""
        return max(0, (n_bytes - _BYTES_PER_SEGMENT) // (self.row_bytes + _BYTES_PER_INDEX_ROW))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return float32 ``values`` as they are stored; bfloat16 rounds to the nearest, ties to even."""
        if self.dtype == "float32":
            return values
        rounded = torch.from_numpy(values).bfloat16().view(torch.int16)
        result: np.ndarray = rounded.numpy().view(np.uint16)
        return result

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return stored values as float32; exact."""
        if self.dtype == "float32":
            return stored
        # By numpy, not torch: a thread that prefetches must not start torch's pool of threads.
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)


class DamagedError(Exception):
    """A segment does not hold what its index says; the caller removes the segment."""


class Segment:
    """Rows of some cells, by their index.

    Attributes
    ----------
    index : Path
    cells : tuple of str
        The digest of each row's cell.
    checksums : tuple of int

    Raises
    ------
    DamagedError
        If the index is torn, of another format, or not about rows of ``kind``.
    FileNotFoundError
        If it is gone.
    """

    def __init__(self, index: Path, kind: RowKind) -> None:
        self.index = index
        try:
            document = read_json(index)
            self.cells, self.checksums = tuple(document["cells"]), tuple(document["checksums"])
            found = {name: document[name] for name in ("format", "dtype", "shape")}
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{index} is no index") from error
        expected = {"format": FORMAT, "dtype": kind.dtype, "shape": [len(self.cells), *kind.shape]}
        if found != expected or len(self.checksums) != len(self.cells) or index.stem != _name(self.cells):
            raise DamagedError(f"{index} is the index of something else")

    @property
    def size(self) -> int:
        """Bytes on disk; 0 if another process removed it."""
        return segment_size(self.index)


class SegmentRows:
    """The rows of a segment, mapped into memory; they stay good when another process removes the files.

    The constructor marks the segment as used just now.

    Raises
    ------
    DamagedError
        If the file is cut short or of another shape or type.
    FileNotFoundError
        If it is gone.
    """

    def __init__(self, segment: Segment, kind: RowKind) -> None:
        self.segment = segment
        try:
            self._values = np.load(_values_path(segment.index), mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedError(f"{segment.index}: the rows cannot be read") from error
        shape = (len(segment.cells), *kind.shape)
        if self._values.shape != shape or self._values.dtype != kind.stored:
            raise DamagedError(f"{segment.index}: the rows are of another shape or type")
        self._verified = np.zeros(len(segment.cells), dtype=bool)
        os.utime(segment.index)

    def row(self, place: int) -> np.ndarray:
        """Return one row as it is stored; raises `DamagedError` if it fails its checksum.

        The checksum of a row is verified at its first use.
        """
        values: np.ndarray = self._values[place]
        if not self._verified[place]:
            if _checksum(values) != self.segment.checksums[place]:
                raise DamagedError(f"{self.segment.index}: row {place} fails its checksum")
            self._verified[place] = True
        return values


def write_segment(folder: Path, kind: RowKind, cells: Sequence[str], rows: Iterable[np.ndarray]) -> Segment:
    """Write stored rows, one for each of ``cells``, and return the segment.

    Rows are written as they come, so memory holds one at a time. A segment is written whole or not at all.
    """
    index = folder / f"{_name(cells)}{_INDEX}"
    checksums: list[int] = []
    shape = (len(cells), *kind.shape)
    # Plain writes, no memory map: on a full disk a map kills the process, a write raises.
    with new_file(_values_path(index)) as temporary, temporary.open("wb") as stream:
        header = {"descr": kind.stored.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for _, row in zip(cells, rows, strict=True):
            stream.write(np.ascontiguousarray(row).data)
            checksums.append(_checksum(row))
    document = {"format": FORMAT, "dtype": kind.dtype, "shape": list(shape)}
    write_json(index, document | {"cells": list(cells), "checksums": checksums})
    return Segment(index, kind)


def indexes(folder: Path) -> list[Path]:
    """Return the indexes of the segments in ``folder``; none if there is no such folder."""
    return [path for path in folder.glob(f"*{_INDEX}") if not path.name.startswith(".")]


def segment_size(index: Path) -> int:
    """Return the bytes on disk of the segment with this index; missing files count 0."""
    return sum(path.stat().st_size for path in (index, _values_path(index)) if path.exists())


def remove_segment(index: Path) -> None:
    """Remove a segment's files, the index first; what others have mapped stays readable to them."""
    index.unlink(missing_ok=True)
    _values_path(index).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in ``folder``; no process may be writing there."""
    for path in folder.iterdir():
        torn = path.suffix == ".npy" and not path.with_suffix(_INDEX).exists()
        if torn or (path.name.startswith(".") and path.suffix in (".npy", _INDEX)):
            path.unlink(missing_ok=True)


def _values_path(index: Path) -> Path:
    return index.with_suffix(".npy")


def _name(cells: Sequence[str]) -> str:
    return json_digest(list(cells))[:32]


def _checksum(row: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(row).data)


# The folder of all segments.


@dataclass(eq=False)
class CacheSpace:
    """A cache folder as one training uses it; other processes may use the folder at the same time.

    Attributes
    ----------
    folder : Path
        Holds one folder for each key, and in it the segments of that key.
    max_bytes : int
        The segments used longest ago are removed so that the folder holds at most this much. Those that this
        training uses stay.
    segment_bytes : int
        Approximate size of a segment, which a process that is killed loses at most.
    """

    folder: Path
    max_bytes: int = 10 * GIGABYTE
    segment_bytes: int = 256 << 20
    _used: dict[Path, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def room(self) -> int:
        """Bytes that can be written when all that this training does not use is removed."""
        return max(0, self.max_bytes - sum(self._used.values()))

    def use(self, segment: Segment) -> None:
        """Keep ``segment`` from being removed."""
        self._used[segment.index] = segment.size

    def release(self, segment: Segment) -> None:
        """Let ``segment`` be removed again."""
        self._used.pop(segment.index, None)

    def place(self, key: str) -> Path:
        """Return the folder of the segments of ``key``."""
        return self.folder / key

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """Yield the folder of ``key`` to its one writer; others wait. The lock dies with its process."""
        place = self.place(key)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / _LOCK):
            sweep(place)
            yield place

    def require(self, n_bytes: int, what: str) -> None:
        """Raise if the disk cannot hold ``n_bytes`` more.

        Raises
        ------
        TrainingError
            If ``n_bytes`` do not fit, even after the segments that this training does not use are removed.
        """
        old = sum(segment_size(index) for index in self._idle())
        if n_bytes > self._free() + old:
            raise self.refusal(n_bytes, what)

    def refusal(self, n_bytes: int, what: str) -> TrainingError:
        """Return the error that says that ``n_bytes`` do not fit on the disk."""
        return TrainingError(
            f"{what} need {n_bytes / GIGABYTE:.3g} GB in {self.folder}; "
            f"{max(0, self._free()) / GIGABYTE:.3g} GB of the disk are free for them. Free some disk, lower "
            "cache.max_gb (cells that are not kept are computed whenever they are needed) "
            "or set cache.dtype to bfloat16 (half the size; weights will differ slightly)"
        )

    def make_room(self, n_bytes: int) -> None:
        """Remove segments, those used longest ago first, until ``n_bytes`` more fit folder and disk.

        Stops without an error when all that is left is in use.
        """
        if self._over(n_bytes) > 0:
            # What killed writers left goes first, wherever no process is writing now.
            for lock in self.folder.glob(f"*/{_LOCK}"):
                with suppress(Timeout), FileLock(lock, timeout=0):
                    sweep(lock.parent)
        over = self._over(n_bytes)
        for index in self._idle():
            if over <= 0:
                return
            over -= segment_size(index)
            remove_segment(index)

    def _over(self, n_bytes: int) -> int:
        """Return how many bytes have to go before ``n_bytes`` fit."""
        total = 0
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return n_bytes + max(total - self.max_bytes, -self._free())

    def _free(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free - RESERVE

    def _idle(self) -> list[Path]:
        """Return the indexes of segments that this training does not use, the one used longest ago first."""
        dated = []
        for index in (path for place in self.folder.glob("*/") for path in indexes(place)):
            with suppress(FileNotFoundError):
                dated.append((index.stat().st_mtime_ns, index))
        return [index for _, index in sorted(dated) if index not in self._used]
