"""The cells that a version keeps to watch forgetting, with both versions' answers, in one layout.

The layout follows from the cells' embedding and takes longest, so it is kept in ``.canal/layouts`` under the
digest of all that it follows from. Such a file holds places and names no cell.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from canal.app.models import LoadedModels
from canal.continual.cells import LabelledCells, StoredCells, load_cells
from canal.core.files import new_file
from canal.registry.store.database import Version
from canal.report.plots import tsne_places

Document = dict[str, Any]

FEWEST, MOST = 5, 3000
"""Fewer cells make no map, and more would take longer than all else on a page."""
_SHOWN = 800
"""Cells of a map: more dots would cover each other, and take seconds."""
_ITERATIONS = 500
_LAYOUTS = 20
"""Layouts that are kept, the newest."""


def mapped_cells(
    loaded: LoadedModels, version: Version, other: Version | None, folder: Path
) -> Document | None:
    """Return the cells with both versions' answers and a place; None where too few or too many are kept.

    Parameters
    ----------
    version, other
        The version that kept them, and the one that it is compared with.
    folder
        The version's files.
    """
    stored = _stored(folder)
    if stored is None:
        return None
    cells = stored.cells.take(_spread(stored.cells))
    answer, embedding = loaded.of(version).predict_represented(cells.expression)
    columns = {
        "cell_id": cells.cell_ids,
        "stage": cells.stages,
        "truth": cells.cell_types,
        "after": answer.labels,
        "confidence": np.round(answer.confidence.astype(float), 4).tolist(),
        "novelty": np.round(answer.novelty.astype(float), 4).tolist(),
    }
    if other is not None and not other.erased:
        before = loaded.of(other)
        if set(before.genes) <= set(stored.genes):
            genes = [stored.genes.index(gene) for gene in before.genes]
            columns["before"] = before.predict(cells.expression[:, genes]).labels
    places = _places(embedding, loaded.project.layout.layouts)
    columns["x"], columns["y"] = np.round(places.astype(np.float64), 3).T.tolist()
    rows = zip(*columns.values(), strict=True)
    return {"kept": len(stored.cells), "cells": [dict(zip(columns, row, strict=True)) for row in rows]}


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


def _places(embedding: np.ndarray, kept: Path) -> np.ndarray:
    """Return the layout of an embedding: the kept one of the same digest, or a new one, which is kept."""
    digest = hashlib.sha256(np.ascontiguousarray(embedding).tobytes())
    digest.update(f"{embedding.shape} {embedding.dtype} {_ITERATIONS} {sklearn.__version__}".encode())
    path = kept / f"{digest.hexdigest()}.npy"
    if path.is_file():
        with suppress(ValueError, OSError):
            places: np.ndarray = np.load(path, allow_pickle=False)
            if places.shape == (len(embedding), 2):
                return places
    places = tsne_places(embedding, _ITERATIONS)
    with suppress(OSError):  # of a folder that this user may not write
        kept.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, places, allow_pickle=False)
        for old in sorted(kept.glob("*.npy"), key=lambda one: one.stat().st_mtime)[:-_LAYOUTS]:
            old.unlink(missing_ok=True)
    return places
