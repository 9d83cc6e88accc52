"""Cache what cannot change during a stage: the frozen blocks' outputs and the teacher's representations.

Everything here is computed one cell at a time, by one thread of torch. A cell's values are then the same bits
whatever other cells are computed with it, and however many side by side, so a training that reads them
from a file and one that computes them anew for every batch end with the same weights.

`CachedRows` returns rows by cell; `RowFinder` finds the segment that holds the row of a cell, whichever
stage, run or process wrote it; `keep_missing` computes and stores missing rows, once among all processes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import cache
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from torch import Tensor

import canal.model
from canal.continual.segments import (
    GIGABYTE,
    CacheSpace,
    DamagedError,
    RowDtype,
    RowKind,
    Segment,
    SegmentRows,
    indexes,
    remove_segment,
    write_segment,
)
from canal.core.digests import file_digest, json_digest
from canal.core.errors import DISK_FULL
from canal.model.backbone import Performer
from canal.model.compute import each_alone
from canal.model.head import AnnotatorNetwork
from canal.model.storage import weights_digest

FORMAT = 2

Compute = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Computes the float32 row of each position, in order; its bits may not depend on the other positions."""

ComputeCells = Callable[[Sequence[str]], Iterator[np.ndarray]]
"""Computes the float32 row of each cell, given by its digest, in that order."""

_SPARSE = 0.5


class PrefixFeatures:
    """Outputs of ``Performer.encode_prefix`` for cells, by row.

    Parameters
    ----------
    performer
        Only its embeddings and frozen blocks are used.
    tokens
        uint8 ``(n_cells, n_genes)``.
    space
        Where to keep the outputs, ``(n_genes + 1, dim)`` a cell, read through memory maps, so memory does not
        grow with cells. A cell is found by its tokens: epochs, trials and stages with one prefix share it.
        None: keep nothing, compute each cell at each use.
    dtype
        "bfloat16" rounds the outputs, kept or not, and halves the space.

    Attributes
    ----------
    shape : tuple of int
        ``(n_cells, n_genes + 1, dim)``.
    key : str
        Digest of all that decides the outputs of a cell beside its tokens. The panel is in it: the weights
        hold a vector for each of its genes.
    cells : tuple of str
        Digest of each cell's tokens.

    Raises
    ------
    TrainingError
        If the disk cannot hold the rows that are to be stored.
    """

    def __init__(
        self,
        performer: Performer,
        tokens: np.ndarray,
        space: CacheSpace | None,
        dtype: RowDtype = "float32",
    ) -> None:
        self._performer, self._tokens = performer, tokens
        self.shape = (len(tokens), performer.n_genes + 1, performer.config.dim)
        self.device = performer.token_emb.weight.device
        self.key = _key(self.device, what="prefix", weights=prefix_digest(performer), dtype=dtype)
        self.cells = tuple(hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in tokens)
        self._kind, self._space = RowKind(self.shape[1:], dtype), space
        self._rows = CachedRows(self._kind, self.cells, self._compute, space, self.key)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def kept(self) -> int:
        """How many cells' outputs are on disk; the others are computed at each use."""
        return self._rows.kept

    @property
    def shortage(self) -> str:
        """A message on how many cells do not fit the cache; empty where all do."""
        if self._space is None or self.kept == len(self):
            return ""
        return (
            f"the features of {self.kept:,} of {len(self):,} cells are kept, the others are computed "
            f"whenever they are needed: all take {self._kind.segment_bytes(len(self)) / GIGABYTE:.3g} GB, "
            f"cache.max_gb is {self._space.max_bytes / GIGABYTE:g}"
        )

    def rows(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Return the outputs of the cells at ``indices``, float32 ``(len(indices), n_genes + 1, dim)``."""
        return torch.from_numpy(self._rows.take(indices))

    def _compute(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        @torch.inference_mode()
        def one(index: int) -> np.ndarray:
            tokens = torch.from_numpy(self._tokens[index : index + 1]).to(self.device)
            result: np.ndarray = self._performer.encode_prefix(tokens)[0].cpu().numpy()
            return result

        return each_alone(one, indices)


def representations(
    teacher: AnnotatorNetwork, features: PrefixFeatures, space: CacheSpace | None, n_cells: int | None = None
) -> np.ndarray:
    """Return the teacher's representation h_{t-1} of the first ``n_cells`` (default: all) of ``features``.

    float32 ``(n_cells, 64)``. ``features`` must come from the teacher's own prefix, which student and teacher
    share unless the student's panel has grown. Kept in ``space`` as `PrefixFeatures` keeps its values, but
    always as float32; 256 bytes a cell, so the result stays in memory.
    """

    @torch.inference_mode()
    def one(index: int) -> np.ndarray:
        answer = teacher.finish(features.rows([index]).to(device))
        result: np.ndarray = answer.representation[0].float().cpu().numpy()
        return result

    device = teacher.head.filter.weight.device
    cells = features.cells[:n_cells]
    kind = RowKind((teacher.head.to_representation.out_features,))
    weights = weights_digest(teacher.state_dict())
    key = _key(device, what="teacher", weights=weights, features=features.key)
    rows = CachedRows(kind, cells, lambda indices: each_alone(one, indices), space, key)
    return rows.take(range(len(cells)))


def prefix_digest(performer: Performer) -> str:
    """Return the SHA-256 of the weights that `PrefixFeatures` uses."""
    kept = ("token_emb.", "pos_emb.", *(f"blocks.{i}." for i in range(performer.first_trained)))
    return weights_digest({k: v for k, v in performer.state_dict().items() if k.startswith(kept)})


def _key(device: torch.device, **parts: str) -> str:
    # Another torch, processor or edit of the network may round differently, and results are promised to the
    # bit. Features outlive the code that made them, so the code counts.
    machine = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    known = {"format": str(FORMAT), "torch": torch.__version__, "machine": machine, "code": _code_digest()}
    precise = {} if not torch.is_autocast_enabled(device.type) else {"products": "bfloat16"}
    return json_digest(known | precise | parts)[:32]


@cache
def _code_digest() -> str:
    folder = Path(canal.model.__file__).parent
    return json_digest({path.name: file_digest(path) for path in folder.glob("*.py")})


class CachedRows:
    """The rows of a set of cells.

    The constructor computes and stores the missing rows; see `keep_missing`. Cells beyond the cache's size
    are computed at each use.

    Parameters
    ----------
    kind
        What a row is.
    cells
        The digest of each cell: equal digests, equal rows.
    compute
        Computes rows by their positions in ``cells``.
    space
        Where rows are kept; None: nowhere.
    key
        Digest of all that decides the rows beside the cells.

    Raises
    ------
    TrainingError
        If the disk cannot hold the rows that are to be stored.
    """

    def __init__(
        self, kind: RowKind, cells: Sequence[str], compute: Compute, space: CacheSpace | None, key: str
    ) -> None:
        self._kind, self._cells, self._compute = kind, tuple(cells), compute
        self._position = {cell: position for position, cell in enumerate(self._cells)}
        self._finder = None if space is None else RowFinder(kind, self._cells, space, key)
        self._keep()

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def kept(self) -> int:
        """How many of the cells are on disk; the others are computed at each use."""
        return 0 if self._finder is None else sum(cell in self._finder for cell in self._cells)

    def take(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows of the cells at ``positions``, float32 ``(len(positions), *shape)``.

        If a row is damaged, its segment is removed and its cells are computed anew.
        """
        wanted = [int(position) for position in positions]
        rows = np.empty((len(wanted), *self._kind.shape), dtype=self._kind.stored)
        n_before = len(self._finder or ())
        missing = self._read(wanted, rows)
        if len(self._finder or ()) < n_before:
            self._keep()
            missing = self._read(wanted, rows)
        if missing:
            computed = self._compute([wanted[place] for place in missing])
            for place, row in zip(missing, computed, strict=True):
                rows[place] = self._kind.encode(row)
        return self._kind.decode(rows)

    def _keep(self) -> None:
        if self._finder is not None:
            keep_missing(self._finder, lambda cells: self._compute([self._position[c] for c in cells]))

    def _read(self, wanted: list[int], rows: np.ndarray) -> list[int]:
        """Fill in the rows that are stored and return the positions of the others."""
        missing = []
        for place, position in enumerate(wanted):
            row = None if self._finder is None else self._finder.row(self._cells[position])
            if row is None:
                missing.append(place)
            else:
                rows[place] = row
        return missing


class RowFinder:
    """Stored rows of one key by the digest of their cell, for the cells that are wanted.

    Segments that hold a wanted cell are mapped and kept from being removed. Damaged ones are removed; their
    cells are then missing.
    """

    def __init__(self, kind: RowKind, cells: Iterable[str], space: CacheSpace, key: str) -> None:
        self.kind, self.space, self.key = kind, space, key
        self._wanted = tuple(dict.fromkeys(cells))
        self._known: dict[Path, Segment] = {}
        self._found: dict[str, tuple[SegmentRows, int]] = {}
        self._changing = RLock()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, cell: str) -> bool:
        return cell in self._found

    @property
    def missing(self) -> list[str]:
        """The wanted cells that no segment holds, each once, in order."""
        return [cell for cell in self._wanted if cell not in self._found]

    def row(self, cell: str) -> np.ndarray | None:
        """Return the stored row of ``cell``; None if it is not stored, or its segment is damaged."""
        if (where := self._found.get(cell)) is None:
            return None
        rows, place = where
        try:
            return rows.row(place)
        except DamagedError:
            with self._changing:
                remove_segment(rows.segment.index)
                self.space.release(rows.segment)
                self._known.pop(rows.segment.index, None)
                self._found = {cell: where for cell, where in self._found.items() if where[0] is not rows}
            return None

    def refresh(self) -> None:
        """Search the segments that are on disk now for missing cells."""
        with self._changing:
            listed = set(indexes(self.space.place(self.key)))
            self._known = {index: segment for index, segment in self._known.items() if index in listed}
            for index in listed - self._known.keys():
                try:
                    self._known[index] = Segment(index, self.kind)
                except (DamagedError, FileNotFoundError):
                    remove_segment(index)
            missing = set(self.missing)
            overlap = {index: len(missing.intersection(it.cells)) for index, it in self._known.items()}
            # The fullest first: where a cell has two copies, take the one in a segment that is needed anyway.
            for index in sorted(overlap, key=lambda index: (-overlap[index], index)):
                if not missing.isdisjoint(self._known[index].cells):
                    self.hold(self._known[index], missing)
                    missing -= self._found.keys()

    def hold(self, segment: Segment, cells: Set[str]) -> None:
        """Take the rows of ``cells`` from ``segment``, as far as it has them, and keep it on disk."""
        try:
            rows = SegmentRows(segment, self.kind)
        except (DamagedError, FileNotFoundError):
            remove_segment(segment.index)
            return
        self.space.use(segment)
        with self._changing:
            found = {cell: (rows, place) for place, cell in enumerate(segment.cells) if cell in cells}
            self._found = self._found | found

    def release_sparse(self) -> list[str]:
        """Release the segments of which few rows are needed; return their wanted cells.

        A few cells of a bank would otherwise keep all of an old stage's segments on disk. The rows can still
        be read and copied, but the next process may not find their segments.
        """
        needed = Counter(rows for rows, _ in self._found.values())
        sparse = {rows for rows, n in needed.items() if n < _SPARSE * len(rows.segment.cells)}
        for rows in sparse:
            self.space.release(rows.segment)
        cells = [cell for cell in self._wanted if cell in self and self._found[cell][0] in sparse]
        for cell in cells:
            self.row(cell)  # verifies: what is damaged is then missing, and not copied
        return [cell for cell in cells if cell in self]


def keep_missing(finder: RowFinder, compute: ComputeCells) -> None:
    """Compute and store the rows that ``finder`` misses, a segment at a time; complete segments stay.

    Where another process computes rows of the same key, this one waits and then finds them. Cells that do not
    fit, even after all unused segments are removed, stay missing.

    Raises
    ------
    TrainingError
        If the disk cannot hold the rows that are to be stored: raised before anything is computed, unless
        other processes fill the disk.
    """
    finder.refresh()
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
            finder.refresh()  # another process may have been here first
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
    """Yield the rows to store: copies of those in another segment, then the computed ones."""
    encode = finder.kind.encode
    missing = [cell for cell in chosen if cell not in finder]
    for cell in chosen[: len(chosen) - len(missing)]:
        row = finder.row(cell)
        yield encode(next(compute([cell]))) if row is None else row
    yield from map(encode, compute(missing))
