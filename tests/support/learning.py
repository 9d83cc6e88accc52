"""Small labelled cells, and rows by cell for the cache, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from canal.continual.cells import LabelledCells
from canal.continual.feature_cache import CachedRows
from canal.continual.segments import CacheSpace, RowKind


def make_cells(
    types: Sequence[str],
    stage: str = "first",
    expression: np.ndarray | None = None,
    n_genes: int = 3,
    ids: Sequence[str] | None = None,
    batches: Sequence[str] | None = None,
) -> LabelledCells:
    """Return one cell a type given; ids are ``<stage>:c000``, and the source has the stage's name."""
    n = len(types)
    names = [f"c{i:03d}" for i in range(n)] if ids is None else ids
    values = np.arange(n * n_genes).reshape(n, n_genes) % 7 if expression is None else expression
    return LabelledCells(
        cell_ids=tuple(f"{stage}:{name}" for name in names),
        expression=np.asarray(values, dtype=np.float32),
        cell_types=tuple(types),
        stages=(stage,) * n,
        sources=(stage,) * n,
        batches=("b1",) * n if batches is None else tuple(batches),
    )


KIND = RowKind((10, 30))
KEY = "key"


def names(*numbers: int) -> list[str]:
    """Return the digests of cells by number."""
    return [f"c{number}" for number in numbers]


def value(cell: str) -> np.ndarray:
    """Return what the row of a cell has to be."""
    return np.random.default_rng(int(cell[1:])).normal(size=KIND.shape).astype(np.float32)


def values(cells: Sequence[str]) -> np.ndarray:
    """Return the rows of cells, ``(len(cells), 10, 30)``."""
    return np.array([value(cell) for cell in cells], dtype=np.float32).reshape(-1, *KIND.shape)


def space_of(folder, max_rows: int = 1000, segment_rows: int = 2) -> CacheSpace:
    """Return a cache for so many rows in full segments of ``segment_rows``."""
    max_bytes = max_rows // segment_rows * KIND.segment_bytes(segment_rows)
    return CacheSpace(folder, max_bytes, KIND.segment_bytes(segment_rows))


class Computer:
    """Makes cached rows, and counts which cells were computed for them."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def rows(self, cells: Sequence[str], space: CacheSpace | None, kind: RowKind = KIND) -> CachedRows:
        def compute(positions: Sequence[int]) -> Iterator[np.ndarray]:
            for position in positions:
                self.computed.append(cells[position])
                yield value(cells[position])

        return CachedRows(kind, cells, compute, space, KEY)


def cells_apart(where, names, types, n_genes, shift, seed):
    """Return cells of a stage's part whose types are well apart, each expressing a gene of its own most."""
    stage, part = where
    random = np.random.default_rng([*seed, *part.encode(), *stage.encode()])
    means = np.eye(n_genes)[[types.index(name) for name in names]] * 6 + shift
    values = np.maximum(random.normal(means, 0.7), 0).astype(np.float32)
    n = len(names)
    ids = tuple(f"{stage}:{part}:{number}" for number in range(n))
    return LabelledCells(ids, values, tuple(names), (stage,) * n, (stage,) * n, ("",) * n)
