"""A file that is dropped on the board: received, labelled, shown, handed back, and forgotten.

The road is that of `canal annotate`, with the model loaded once. A file lies in a folder of this process
alone, which goes after the download, after half an hour, or with the board, unless a person asks for it to be
kept: then it lies in labelled/, with a sheet in which its novel cells are named.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from canal.annotation.columns import CELL_TYPE, CONFIDENCE, LATENT, NOVELTY, UNASSIGNED
from canal.annotation.places import type_colours
from canal.app.board_access import RefusedError
from canal.app.board_work import Job
from canal.config.layout import Layout, name_from
from canal.core.errors import DataError
from canal.core.files import scratch_folder
from canal.core.packages import lazy_module
from canal.core.progress import size
from canal.io.h5ad import open_h5ad
from canal.io.hdf5 import open_hdf5

if TYPE_CHECKING:
    from canal.app import annotating, discovering, models
    from canal.model.load import CellAnnotator
    from canal.report import plots
else:
    annotating, discovering, models = (
        lazy_module(f"canal.app.{name}") for name in ("annotating", "discovering", "models")
    )
    plots = lazy_module("canal.report.plots")

Document = dict[str, Any]

KEPT_S = 30 * 60
"""Seconds for which a labelled file waits for its download."""
MOST_FILES = 6
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PLACES = ("X_umap", "X_tsne")
_DOTS, _LAID_OUT, _FEWEST = 3000, 800, 5
"""Cells of a map: with places in the file, without (t-SNE takes seconds), and the fewest that make one."""
_ITERATIONS = 500
_LONGEST_NAME = 180
"""Bytes of a file's name; disks take 255, and the labelled copy's is longer."""


@dataclass
class Dropped:
    """A file on the board.

    Attributes
    ----------
    job : Job
        Labels it; its id names the page.
    folder : Path
        Holds the file under its own name, and the labelled copy.
    name : str
    """

    job: Job
    folder: Path
    name: str
    due: float = field(default_factory=lambda: time.monotonic() + KEPT_S)

    @property
    def source(self) -> Path:
        """The file as it came."""
        return self.folder / self.name

    @property
    def labelled(self) -> Path:
        """The labelled copy."""
        return self.folder / "labelled" / f"{Path(self.name).stem}-labelled.h5ad"


class Drops:
    """The files on a board.

    Parameters
    ----------
    layout
        The project's folders.
    max_mb
        Most megabytes of a file.
    """

    def __init__(self, layout: Layout, max_mb: int) -> None:
        self.layout, self.max_bytes = layout, max_mb << 20
        self._scratch = ExitStack()
        self._lock = threading.Lock()
        self._files: dict[str, Dropped] = {}
        self._receiving = 0
        self._root: Path | None = None
        self._loaded: tuple[str, CellAnnotator] | None = None

    def check(self, length: int) -> None:
        """Raise where a file of so many bytes has no room, before any of it is received."""
        if length > self.max_bytes:
            raise RefusedError(
                413,
                f"the file has {size(length)}, and the board takes {size(self.max_bytes)} (--max-mb): "
                "label it with `canal annotate`, which has no bound",
            )
        self.sweep()
        with self._lock:
            if len(self._files) + self._receiving >= MOST_FILES:
                raise RefusedError(
                    503, f"{MOST_FILES} files wait for their download: download or forget one, then drop this"
                )

    async def receive(self, given: str, stream: AsyncIterator[bytes], owner: str) -> Dropped:
        """Write a file that a browser sends into a folder of its own, and return it.

        Raises
        ------
        RefusedError
            If it is no h5ad file, or larger than the bound.
        """
        name = checked_name(given)
        with self._lock:
            self._receiving += 1
            if self._root is None:
                self._root = self._scratch.enter_context(scratch_folder("board"))
            root = self._root
        job = Job("dropped", f"labelling {name}", owner)
        file = Dropped(job, root / job.id, name)
        try:
            (file.folder / "labelled").mkdir(parents=True)
            received, first = 0, b""
            with file.source.open("wb") as target:
                async for part in stream:
                    received += len(part)
                    if received > self.max_bytes:
                        self.check(received)
                    first = first if len(first) >= len(_SIGNATURE) else first + part
                    if len(first) >= len(_SIGNATURE) and not first.startswith(_SIGNATURE):
                        raise RefusedError(415, f"{name} is no h5ad file: its first bytes are not HDF5's")
                    target.write(part)
            if len(first) < len(_SIGNATURE):
                raise RefusedError(415, f"{name} is no h5ad file: it is empty, or was cut off")
        except BaseException:
            shutil.rmtree(file.folder, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._receiving -= 1
        with self._lock:
            self._files[job.id] = file
        return file

    def find(self, id_: str, owner: str) -> Dropped:
        """Return a visitor's file.

        Raises
        ------
        RefusedError
            If there is none: it was downloaded, forgotten, or is somebody else's.
        """
        with self._lock:
            file = self._files.get(id_)
        if file is None or file.job.owner != owner:
            raise RefusedError(404, "this file is not here any more: drop it again")
        return file

    def mine(self, owner: str) -> list[Dropped]:
        """Return the files of a visitor, oldest first."""
        with self._lock:
            return [one for one in self._files.values() if one.job.owner == owner]

    def hand_over(self, owner: str, to: str) -> None:
        """Give the files of a visitor to the session that a login has given it."""
        for file in self.mine(owner):
            file.job.owner = to

    def forget(self, file: Dropped) -> None:
        """Remove a file and its labelled copy; one that is being labelled goes when that has ended."""
        if not file.job.over:
            file.due = 0.0
            return
        with self._lock:
            self._files.pop(file.job.id, None)
        file.job.result = {}
        shutil.rmtree(file.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the files whose time has passed."""
        with self._lock:
            late = [one for one in self._files.values() if one.job.over and time.monotonic() > one.due]
        for one in late:
            self.forget(one)

    def close(self) -> None:
        """Remove everything."""
        self._scratch.close()

    def label(self, file: Dropped, wanted: str | None) -> Document:
        """Label a file as `canal annotate` does, and return what its page shows.

        Raises
        ------
        CanalError
            If there is no such version, or the cells cannot be labelled.
        """
        job, root = file.job, self.layout.root
        found = models.find_model(wanted or None, root, "full", job.note)
        annotator = self._model(found)
        found = replace(found, load=lambda: annotator)
        own_places = places_key(file.source)
        options = annotating.Options(latent=own_places is None)
        callbacks = annotating.Callbacks(job.note, job.count)
        summary = annotating.annotate_by(found, file.source, file.labelled, options, callbacks, root)
        file.source.unlink()  # the labelled copy holds all of it
        file.due = time.monotonic() + KEPT_S
        job.note("laying out the cells")
        return {
            **summary.to_json(),
            "id": job.id,
            "name": file.name,
            "labelled": file.labelled.name,
            "bytes": file.labelled.stat().st_size,
            "model": dict(found.provenance),
            "shown": shown_cells(file.labelled, annotator.labels, own_places or LATENT),
        }

    def _model(self, found: models.FoundModel) -> CellAnnotator:
        """Return a model, loaded once; the last one is kept."""
        key = str(found.provenance.get("key", ""))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = key, found.load()
        return self._loaded[1]

    def keep(self, file: Dropped, min_cells: int, job: Job) -> Document:
        """Keep a labelled file in labelled/, and write a sheet in which its novel cells are named.

        Raises
        ------
        CanalError
            If a file of that name is kept already, or its novel cells cannot be grouped.
        """
        name = name_from(Path(file.name).stem, "cells")
        target = self.layout.labelled / f"{name}.h5ad"
        if target.exists():
            raise DataError(f"{target} exists already: rename the file that you drop, or move that one away")
        self.layout.labelled.mkdir(exist_ok=True)
        ignored = self.layout.labelled / ".gitignore"
        if not ignored.exists():
            ignored.write_text("# cells stay out of git; sheets may go in\n*.h5ad\n", encoding="utf-8")
        shutil.copyfile(file.labelled, target)
        sheet_file = target.with_suffix(".csv")
        try:
            options = discovering.GroupingOptions(min_cells=min_cells)
            labelled = discovering.LabelledFile(target, None, self.layout.root)
            groups = discovering.novel(labelled, sheet_file, options, False, job.note)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return {
            "groups": len(groups.groups),
            "novel": groups.n_novel,
            "file": target.name,
            "sheet": sheet_file.name,
        }


def checked_name(given: str) -> str:
    """Return the name of a file as it may lie on this disk.

    Raises
    ------
    RefusedError
        If it is no name of an h5ad file.
    """
    name = re.sub(r"[^\w. -]", "_", Path(given.replace("\\", "/")).name).strip(" .")
    if not name.lower().endswith(".h5ad"):
        raise RefusedError(
            415, "the board labels h5ad files; `canal annotate` reads zarr, 10x, loom and tables"
        )
    stem = name[:-5].encode()[:_LONGEST_NAME].decode(errors="ignore").strip(" .")
    return f"{stem or 'cells'}.h5ad"


def places_key(path: Path) -> str | None:
    """Return which matrix of obsm lays the cells of a file out; None where none does."""
    with open_hdf5(path) as file:
        obsm = file.get("obsm")
        nodes = {key: obsm.get(key) for key in _PLACES} if isinstance(obsm, h5py.Group) else {}
        for key, node in nodes.items():
            if isinstance(node, h5py.Dataset) and len(node.shape) == 2 and node.dtype.kind == "f":
                return key if node.shape[1] > 1 else None
    return None


def shown_cells(path: Path, labels: tuple[str, ...], places: str) -> Document:
    """Return types with counts, confidence and novelty, and a map of the cells of a labelled file."""
    with open_h5ad(path) as file:
        types = file.obs_column(CELL_TYPE).to_numpy().astype(str)
        confidence, novelty = (
            file.typed_obs_column(name).to_numpy().astype(float) for name in (CONFIDENCE, NOVELTY)
        )
    colours = type_colours(labels)
    counts = Counter(types.tolist())
    table = [
        {
            "name": name,
            "n": n,
            "share": n / len(types),
            "confidence": float(np.nanmean(confidence[types == name])),
            "novelty": float(np.nanmean(novelty[types == name])),
            "colour": colours.get(name, "#595959"),
        }
        for name, n in counts.most_common()
    ]
    return {"types": table, "map": _map(path, places, types, colours)}


def _map(path: Path, key: str, types: np.ndarray, colours: Mapping[str, str]) -> Document | None:
    """Return dots, each with its place in 0...1 and its type; None where the cells cannot be laid out."""
    most = _DOTS if key in _PLACES else _LAID_OUT
    chosen = np.sort(np.random.default_rng(0).permutation(len(types))[:most])
    with open_hdf5(path) as file:
        matrix = np.asarray(file["obsm"][key][chosen.tolist()], dtype=np.float64)
    good = np.isfinite(matrix).all(axis=1)
    chosen, matrix = chosen[good], matrix[good]
    if len(chosen) < _FEWEST:
        return None
    if key not in _PLACES:
        matrix = plots.tsne_places(matrix.astype(np.float32), _ITERATIONS).astype(np.float64)
    places = matrix[:, :2]
    low, span = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
    scaled = (places - low) / span
    dots = [
        {
            "x": round(float(x), 4),
            "y": round(1 - float(y), 4),
            "type": name,
            "colour": colours.get(name, "#595959"),
        }
        for (x, y), name in zip(scaled, types[chosen].tolist(), strict=True)
    ]
    how = {"X_umap": "the file's own UMAP", "X_tsne": "the file's own t-SNE"}
    # Unassigned beneath: what is named must not be covered by what is not.
    dots.sort(key=lambda dot: dot["type"] != UNASSIGNED)
    return {
        "dots": dots,
        "n": len(dots),
        "of": len(types),
        "how": how.get(key, "t-SNE of the model's embedding"),
    }
