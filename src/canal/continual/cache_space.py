"""The folder of all cached rows: how much it may hold, what goes when it is full, who writes where."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from canal.continual.segments import Segment, indexes, remove_segment, segment_size, sweep
from canal.core.errors import TrainingError

GIGABYTE = 10**9
RESERVE = 256 << 20
"""Bytes of free disk left alone, for checkpoints and the model itself."""

_LOCK = "lock"


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
        About how large a segment becomes: what a process that is killed loses at most.
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
        """Refuse to begin what the disk cannot hold.

        Raises
        ------
        TrainingError
            If ``n_bytes`` do not fit, even after the segments that nobody here uses are removed.
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
            self._sweep_all()
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

    def _sweep_all(self) -> None:
        """Remove what killed writers left, wherever nobody is writing now."""
        for lock in self.folder.glob(f"*/{_LOCK}"):
            with suppress(Timeout), FileLock(lock, timeout=0):
                sweep(lock.parent)
