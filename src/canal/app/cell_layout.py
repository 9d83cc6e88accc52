"""The cells that a version keeps to watch forgetting, with both versions' answers, in one layout.

Answers and layout follow from the models and the cells and take longest, so they are kept in
``.canal/layouts`` under the digest of all that they follow from. Such a file names no cell. Nothing is judged
by it: rulings and comparisons are made of recorded predictions, or by the models anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from canal.app.models import LoadedModels
from canal.app.project import Project
from canal.continual.cells import LabelledCells, StoredCells, load_cells
from canal.core.files import new_file, scratch_folder
from canal.core.progress import doing
from canal.model.load import CellAnnotator, load_model
from canal.model.storage import read_names
from canal.registry.manifest.pages import GENES
from canal.registry.manifest.version_folder import key_digest
from canal.registry.store.database import Version
from canal.report.beside import Beside, make_layout

Document = dict[str, Any]

FEWEST, MOST = 5, 3000
"""Fewer cells make no map, and more would take longer than all else on a page."""
_SHOWN = 800
"""Cells of a map: more dots would cover each other, and take seconds."""
_ITERATIONS = 500
_LAYING_OUT = "laying out the cells that are kept to watch forgetting"
_WORTH = 200
"""Cells from which on a layout takes seconds, so that the step that evaluates a stage makes it."""
_KEY = 16
_ANSWERS = ("labels", "confidence", "novelty", "embedding")
_LAYOUTS = 60
"""Files of layouts and answers that are kept, the newest."""


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

    @doing(_LAYING_OUT)
    def __init__(self, loaded: LoadedModels, version: Version, folder: Path) -> None:
        self.loaded, self.stored = loaded, _stored(folder)
        if self.stored is None:
            return
        self.cells = _shown(self.stored)
        self.answer = self._answers(version, self.cells.expression)
        self._layout = _Layout(self.answer["embedding"], loaded.project.layout.layouts, version.key)

    @staticmethod
    def is_laid_out(project: Project, version: Version) -> bool:
        """Whether the layout of a version's cells is kept, so that their map takes no time."""
        return any(project.layout.layouts.glob(f"{version.key[:_KEY]}-*.npy"))

    @doing(_LAYING_OUT)
    def document(self, other: Version | None) -> Document | None:
        """Return the cells with both versions' answers and a place; None where too few or many are kept."""
        if self.stored is None:
            return None
        columns = {
            "cell_id": self.cells.cell_ids,
            "stage": self.cells.stages,
            "truth": self.cells.cell_types,
            "after": self.answer["labels"].tolist(),
            "confidence": np.round(self.answer["confidence"].astype(float), 4).tolist(),
            "novelty": np.round(self.answer["novelty"].astype(float), 4).tolist(),
        }
        if other is not None and not other.erased:
            theirs = read_names(self.loaded.project.store.artifacts(other), GENES)
            if set(theirs) <= set(self.stored.genes):
                genes = [self.stored.genes.index(gene) for gene in theirs]
                before = self._answers(other, self.cells.expression[:, genes])
                columns["before"] = before["labels"].tolist()
        columns["x"], columns["y"] = np.round(self._layout.places().astype(np.float64), 3).T.tolist()
        rows = zip(*columns.values(), strict=True)
        return {
            "kept": len(self.stored.cells),
            "cells": [dict(zip(columns, row, strict=True)) for row in rows],
        }

    def _answers(self, version: Version, expression: np.ndarray) -> Mapping[str, np.ndarray]:
        layouts = self.loaded.project.layout.layouts
        return _answers(layouts, version.key, lambda: self.loaded.of(version), expression)


@doing(_LAYING_OUT)
def lay_out(project: Project, stage: str) -> None:
    """Keep the answers and the layout of the cells of a learned stage, for the first page of its version.

    Few cells are laid out when a page asks for them, as fast.
    """
    folder, layouts = project.layout.model(stage), project.layout.layouts
    if (stored := _stored(folder)) is None or len(stored.cells) < _WORTH:
        return
    key = key_digest(folder)
    answer = _answers(layouts, key, lambda: load_model(folder / "model"), _shown(stored).expression)
    _Layout(answer["embedding"], layouts, key).places()


class _Layout:
    """The layout of an embedding: the kept one of the same digest, or one that is made meanwhile and kept."""

    def __init__(self, embedding: np.ndarray, kept: Path, key: str) -> None:
        self.embedding = np.ascontiguousarray(embedding)
        digest = hashlib.sha256(self.embedding.tobytes())
        shape = f"{embedding.shape} {embedding.dtype} {_ITERATIONS} {installed('scikit-learn')}"
        digest.update(shape.encode())
        self._scratch = ExitStack()
        path, source = kept / f"{key[:_KEY]}-{digest.hexdigest()}.npy", ""
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


def _answers(
    layouts: Path, key: str, annotator: Callable[[], CellAnnotator], expression: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Return a version's answers to cells: ``labels``, ``confidence``, ``novelty`` and ``embedding``."""
    digest = hashlib.sha256(np.ascontiguousarray(expression).tobytes()).hexdigest()
    path = layouts / f"{key[:_KEY]}-{digest}.npz"
    with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(path, allow_pickle=False) as kept:
        found = {name: kept[name] for name in _ANSWERS}
        if {len(one) for one in found.values()} == {len(expression)}:
            return found
    answer, embedding = annotator().predict_represented(expression)
    found = dict(
        zip(_ANSWERS, (np.array(answer.labels), answer.confidence, answer.novelty, embedding), strict=True)
    )
    with suppress(OSError):  # where nothing may be written, they are computed again
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)
    return found


def _stored(folder: Path) -> StoredCells | None:
    """Return the cells that a version keeps to watch forgetting; None where these are too few or too many."""
    path = folder / "probe" / "probe.h5ad"
    if not path.is_file():
        return None
    stored = load_cells(path, read_names(folder, GENES), ranked=False)
    return stored if FEWEST <= len(stored.cells) <= MOST else None


def _shown(stored: StoredCells) -> LabelledCells:
    """Return the cells of a map: of each type and stage the same share, in their order, but five."""
    cells = stored.cells
    groups: dict[tuple[str, str], list[int]] = {}
    for row, group in enumerate(zip(cells.stages, cells.cell_types, strict=True)):
        groups.setdefault(group, []).append(row)
    share = min(1.0, _SHOWN / len(cells))
    chosen = [rows[: max(FEWEST, round(share * len(rows)))] for rows in groups.values()]
    return cells.take(np.sort(np.concatenate(chosen)))
