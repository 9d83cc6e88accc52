"""Computing and keeping the rows that the cache lacks, once among all processes, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from canal.continual.row_finder import RowFinder
from canal.continual.segments import Segment, write_segment
from canal.core.errors import DISK_FULL

ComputeCells = Callable[[Sequence[str]], Iterator[np.ndarray]]
"""Gives the float32 row of each cell asked for by its digest, in that order."""


def keep_missing(finder: RowFinder, compute: ComputeCells) -> None:
    """Compute what ``finder`` misses and keep it, a segment at a time: what is finished stays.

    Where another process computes rows of the same key, this one waits and finds them. Cells for which there
    is no room, even after all that nobody here uses is removed, stay missing.

    Raises
    ------
    TrainingError
        If the disk cannot hold what is to be kept: before anything is computed, unless others fill the disk.
    """
    finder.look()
    if finder.missing:
        _fill(finder, compute)
    finder.space.make_room(0)


def _fill(finder: RowFinder, compute: ComputeCells) -> None:
    space, kind = finder.space, finder.kind
    short = kind.segment_bytes(len(finder.missing)) > space.room
    moving = finder.release_sparse() if short else []
    n_rows = len(moving) + len(finder.missing)
    if n_bytes := min(space.room, kind.segment_bytes(n_rows)):
        space.require(n_bytes, f"the features of {n_rows:,} cells")
    while finder.missing:
        with space.writing(finder.key) as folder:
            finder.look()  # another process may have been here first
            wanted = [*moving, *finder.missing]
            chosen = wanted[: kind.rows_within(min(space.room, space.segment_bytes))]
            if not chosen:
                return
            space.make_room(kind.segment_bytes(len(chosen)))
            finder.hold(_write(finder, compute, folder, chosen), set(chosen))
        moving = moving[len(chosen) :]


def _write(finder: RowFinder, compute: ComputeCells, folder: Path, chosen: list[str]) -> Segment:
    try:
        return write_segment(folder, finder.kind, chosen, _rows(finder, compute, chosen))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        n_bytes = finder.kind.segment_bytes(len(chosen))
        raise finder.space.refusal(n_bytes, f"the features of {len(chosen):,} cells") from error


def _rows(finder: RowFinder, compute: ComputeCells, chosen: list[str]) -> Iterator[np.ndarray]:
    """Yield the rows to store: copies of those that lie in another segment, then the computed ones."""
    encode = finder.kind.encode
    missing = [cell for cell in chosen if cell not in finder]
    for cell in chosen[: len(chosen) - len(missing)]:
        row = finder.row(cell)
        yield encode(next(compute([cell]))) if row is None else row
    yield from map(encode, compute(missing))
