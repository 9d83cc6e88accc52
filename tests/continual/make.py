"""Small labelled cells for tests: ``from tests.continual.make import make_cells``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from canal.continual.cells import LabelledCells


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
