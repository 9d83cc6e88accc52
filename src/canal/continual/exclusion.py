"""Cells that must not be learned from any more, taken out of what older stages left behind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from canal.config.sections import Exclusion
from canal.continual.cells import LabelledCells


def kept_cells(cells: LabelledCells, exclusions: Mapping[str, Exclusion]) -> np.ndarray:
    """Return for each cell whether it may stay, bool ``(n_cells,)``.

    Parameters
    ----------
    cells
        Their ids are ``<source>:<obs name>``.
    exclusions
        By source: obs names of cells, and batches, that are excluded. A source without an entry keeps all.
    """
    names = {source: {f"{source}:{name}" for name in one.cells} for source, one in exclusions.items()}
    batches = {source: set(one.batches) for source, one in exclusions.items()}
    none: set[str] = set()
    excluded = [
        cell in names.get(source, none) or batch in batches.get(source, none)
        for cell, source, batch in zip(cells.cell_ids, cells.sources, cells.batches, strict=True)
    ]
    return ~np.array(excluded, dtype=bool)


def without_excluded(cells: LabelledCells, exclusions: Mapping[str, Exclusion]) -> LabelledCells:
    """Return the cells of `kept_cells`, in their order."""
    return cells.take(np.flatnonzero(kept_cells(cells, exclusions)))
