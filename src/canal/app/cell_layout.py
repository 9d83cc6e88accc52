"""The cells that a version keeps to watch forgetting, with both versions' answers, in one layout.

The layout follows from the cells' embedding and takes longest, so it is kept in ``.canal/layouts`` under the
digest of all that it follows from. Such a file holds places and names no cell.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np

from canal.app.models import LoadedModels
from canal.app.project import Project
from canal.continual.cells import LabelledCells, StoredCells, load_cells
from canal.core.files import scratch_folder
from canal.registry.store.database import Version
from canal.report.beside import Beside, make_layout

Document = dict[str, Any]

FEWEST, MOST = 5, 3000
"""Fewer cells make no map, and more would take longer than all else on a page."""
_SHOWN = 800
"""Cells of a map: more dots would cover each other, and take seconds."""
_ITERATIONS = 500
_KEY = 16
_LAYOUTS = 20
"""Layouts that are kept, the newest."""


class CellMap:
    """The cells that a version keeps, answered by it; their layout is made meanwhile.

    Parameters
    ----------
    loaded
        The project's annotators.
    version
        The version.
    folder
        Its files.
    """

    def __init__(self, loaded: LoadedModels, version: Version, folder: Path) -> None:
        self.loaded, self.stored = loaded, _stored(folder)
        if self.stored is None:
            return
        self.cells = self.stored.cells.take(_spread(self.stored.cells))
        self.answer, self.embedding = loaded.of(version).predict_represented(self.cells.expression)
        self._layout = _Layout(self.embedding, loaded.project.layout.layouts, version.key[:_KEY])

    @staticmethod
    def is_laid_out(project: Project, version: Version) -> bool:
        """Whether the layout of a version's cells is kept, so that their map takes no time."""
        return any(project.layout.layouts.glob(f"{version.key[:_KEY]}-*.npy"))

    def document(self, other: Version | None) -> Document | None:
        """Return the cells with both versions' answers and a place; None where too few or many are kept."""
        if self.stored is None:
            return None
        columns = {
            "cell_id": self.cells.cell_ids,
            "stage": self.cells.stages,
            "truth": self.cells.cell_types,
            "after": self.answer.labels,
            "confidence": np.round(self.answer.confidence.astype(float), 4).tolist(),
            "novelty": np.round(self.answer.novelty.astype(float), 4).tolist(),
        }
        if other is not None and not other.erased:
            before = self.loaded.of(other)
            if set(before.genes) <= set(self.stored.genes):
                genes = [self.stored.genes.index(gene) for gene in before.genes]
                columns["before"] = before.predict(self.cells.expression[:, genes]).labels
        columns["x"], columns["y"] = np.round(self._layout.places().astype(np.float64), 3).T.tolist()
        rows = zip(*columns.values(), strict=True)
        return {
            "kept": len(self.stored.cells),
            "cells": [dict(zip(columns, row, strict=True)) for row in rows],
        }


class _Layout:
    """The layout of an embedding: the kept one of the same digest, or one that is made meanwhile and kept."""

    def __init__(self, embedding: np.ndarray, kept: Path, name: str) -> None:
        self.embedding = np.ascontiguousarray(embedding)
        digest = hashlib.sha256(self.embedding.tobytes())
        shape = f"{embedding.shape} {embedding.dtype} {_ITERATIONS} {installed('scikit-learn')}"
        digest.update(shape.encode())
        self._scratch = ExitStack()
        path, source = kept / f"{name}-{digest.hexdigest()}.npy", ""
        if not path.is_file():
            source = str(self._scratch.enter_context(scratch_folder("layout")) / "embedding.npy")
            np.save(source, self.embedding, allow_pickle=False)
        self._made = Beside(path, make_layout, source, str(_ITERATIONS))

    def places(self) -> np.ndarray:
        """Return the places, ``(n_cells, 2)``."""
        with self._scratch:
            path = self._made.wait()
        if path is not None:
            with suppress(ValueError, OSError):
                places: np.ndarray = np.load(path, allow_pickle=False)
                if places.shape == (len(self.embedding), 2):
                    for old in sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime)[:-_LAYOUTS]:
                        old.unlink(missing_ok=True)
                    return places
            path.unlink(missing_ok=True)  # damaged
        from canal.report.plots import tsne_places  # half a second, for a folder that nobody may write

        return tsne_places(self.embedding, _ITERATIONS)


def _stored(folder: Path) -> StoredCells | None:
    """Return the cells that a version keeps to watch forgetting; None where these are too few or too many."""
    path = folder / "probe" / "probe.h5ad"
    if not path.is_file():
        return None
    genes = tuple(json.loads((folder / "model" / "genes.json").read_text(encoding="utf-8")))
    stored = load_cells(path, genes, ranked=False)
    return stored if FEWEST <= len(stored.cells) <= MOST else None


def _spread(cells: LabelledCells) -> np.ndarray:
    """Return the rows of a map's cells: of each type and stage the same share, in their order, but five."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, group in enumerate(zip(cells.stages, cells.cell_types, strict=True)):
        groups.setdefault(group, []).append(row)
    share = min(1.0, _SHOWN / len(cells))
    chosen = [rows[: max(FEWEST, round(share * len(rows)))] for rows in groups.values()]
    return np.sort(np.concatenate(chosen))
