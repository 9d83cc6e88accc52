"""Labels for the cells of a file or an AnnData: type, confidence, novelty; kept on disk meanwhile."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.clusters import clusters_of_adata, clusters_of_file, voted
from canal.annotation.columns import columns_of, joined, told_left_over
from canal.annotation.naming import doubt, rename
from canal.annotation.options import Listeners, OnCells, Options, in_tenths
from canal.annotation.output import Output, check_target
from canal.annotation.query import Query, query_adata, query_file
from canal.annotation.query_units import AUTO
from canal.annotation.reading import begin
from canal.annotation.records import make_record
from canal.annotation.summary import Likeness, Summary, summarise
from canal.core import __version__
from canal.core.digests import canonical_json, json_digest
from canal.core.errors import CanalError, DataError
from canal.core.files import new_file, read_json, write_json
from canal.io.arrays import reading
from canal.io.formats import Fingerprint, open_cells
from canal.memory.answer import ExactAnnotator

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.model.load import CellAnnotator

Progress = Callable[[str], None]


def _silent(message: str) -> None:
    """Say nothing."""


def annotate_h5ad(
    annotator: CellAnnotator,
    source: Path,
    target: Path | Output,
    options: Options | None = None,
    listeners: Listeners | None = None,
) -> Summary:
    """Write a copy of a file of cells with labels; the input is not changed, memory does not grow with cells.

    obs of the copy gains the columns of `canal.annotation.columns`: ``canal_cell_type`` ("Unassigned" where
    the cell is novel, or expresses none of the model's genes), the likeliest type and the second one,
    confidence, margin, novelty; ``uns["canal"]`` is the annotation record, a JSON text. An h5ad file or zarr
    store is copied as it is; 10x and loom files become a new h5ad file. In memory are a block of cells, the
    labels (some 40 bytes a cell) and, where cells do not lie together, what `canal.io.blocks` says.

    Parameters
    ----------
    annotator, source, target, options
        Who labels, what is read and written (a path, or what `Output.find` said of it), and how.
    listeners
        Who is told how far it is.

    Raises
    ------
    DataError
        If the file cannot be read, changes meanwhile, or has no cells, too few of the model's genes, or
        values of no known units; or if the target is the source, or there and not to be replaced, or of
        another format, or cannot be written.
    """
    options, listeners = options or Options(), listeners or Listeners()
    place = target.target if isinstance(target, Output) else target
    check_target(source, place, options.overwrite)
    seen = Fingerprint.of(source)
    output = target if isinstance(target, Output) else Output.find(source, target, options.only_obs)
    parts = Parts(
        parts_folder(place), lambda: _job(annotator, seen, options), options.resume, listeners.notice
    )
    told = listeners.on_cells or in_tenths(listeners.notice)
    with parts:
        with open_cells(source) as file:
            clusters = clusters_of_file(file, options.vote)
            query = query_file(file, options.layer, options.gene_column)
            names = file.obs_names()  # of a copy, too: labels of cells whose names are damaged are no answer
            table, summary = _label(annotator, query, options, told, parts)
            table = voted(table, clusters, annotator, query, options, listeners.notice)
            table.index = names if output.is_table else table.index
        seen.check()
        parts.labelled = True

        def whole(note: str) -> None:
            seen.check()
            if listeners.on_record is not None:
                listeners.on_record(note)

        gone = output.write(table, canonical_json(_record(annotator, options, summary)), whole)
    if gone:
        listeners.notice(told_left_over(gone))
    return summary


def label_h5ad(
    annotator: CellAnnotator, source: Path, options: Options | None = None, progress: Progress = _silent
) -> pd.DataFrame:
    """Return the columns that `annotate_h5ad` adds, indexed by the file's cell names; nothing is written.

    Raises
    ------
    DataError
        As `annotate_h5ad`.
    """
    options = options or Options()
    with open_cells(source) as file:
        query = query_file(file, options.layer, options.gene_column)
        table, _ = _label(annotator, query, options, in_tenths(progress))
        table.index = file.obs_names()
    return table


def annotate_adata(
    annotator: CellAnnotator, adata: AnnData, options: Options | None = None, progress: Progress = _silent
) -> pd.DataFrame:
    """Return the columns that `annotate_h5ad` adds, one row a cell of an AnnData, which is not changed.

    ``attrs["canal"]`` of the table is what the file would hold as ``uns["canal"]``; whatever makes the labels
    less certain is also given as a `UserWarning`.

    Raises
    ------
    DataError
        As `annotate_h5ad`.
    """
    options = options or Options()
    query = query_adata(adata, options.layer, options.gene_column)
    clusters = clusters_of_adata(adata, options.vote)
    table, summary = _label(annotator, query, options, in_tenths(progress))
    table = voted(table, clusters, annotator, query, options, progress)
    for text in summary.warnings:
        warnings.warn(text, stacklevel=2)
    table.index = adata.obs_names.copy()
    table.attrs["canal"] = _record(annotator, options, summary)
    return table


def _label(
    annotator: CellAnnotator, query: Query, options: Options, tell: OnCells, parts: Parts | None = None
) -> tuple[pd.DataFrame, Summary]:
    """Return the new columns of obs, and the summary."""
    renamed, how = rename(query, annotator.genes, options.naming, options.gene_column is not None)
    try:
        reading = begin(renamed, annotator.genes, options.values, options.min_coverage, options.force)
    except DataError as error:
        if unclear := doubt(how):
            raise DataError(f"{error}; {unclear}") from error
        raise
    asked = annotator.without(reading.coverage.missing)
    frames: list[pd.DataFrame] = [] if parts is None else parts.frames
    done = 0 if parts is None else parts.done
    tell(done, query.n_cells)
    likeness = Likeness()
    with _computing(annotator, options):
        for block in reading.blocks(options.chunk_cells, done):
            answer = asked.predict(block.expression)
            likeness.add(answer)
            frame = columns_of(answer, block.empty, annotator.labels, options.probabilities)
            if parts is None:
                frames.append(frame)
            else:
                parts.add(frame)
            done += len(frame)
            tell(done, query.n_cells)
    table = joined(frames, annotator.ontology)
    study = likeness.to_json(annotator.about())
    return table, summarise(annotator, table, reading, how, options.values == AUTO, study)


def _computing(annotator: CellAnnotator, options: Options) -> AbstractContextManager[object]:
    """Move an annotator to its device and return the block it computes in; sums need neither, nor torch."""
    if isinstance(annotator, ExactAnnotator):
        return nullcontext()
    from canal.model.compute import find_device, precision

    device = find_device(options.device)
    annotator.on(device)
    return precision(options.dtype, device)


def _record(annotator: CellAnnotator, options: Options, summary: Summary) -> dict[str, Any]:
    return make_record(
        {
            **options.origin,
            "model": dict(options.model_name),
            "labels": list(annotator.labels),
            **annotator.about(),
            "options": _asked(options),
            **summary.to_json(),
            **({"vote": options.vote} if options.vote else {}),
        }
    )


def _asked(options: Options) -> dict[str, Any]:
    """Return the options that decide labels, as JSON values."""
    return {
        "layer": options.layer,
        "values": options.values,
        "gene_column": options.gene_column,
        "min_coverage": options.min_coverage,
        "dtype": options.dtype,
        **({"effort": options.effort} if options.effort != "full" else {}),
        **({"force": True} if options.force else {}),
        **({"probabilities": True} if options.probabilities else {}),
        **options.naming.to_json(),
    }


def _job(annotator: CellAnnotator, seen: Fingerprint, options: Options) -> dict[str, Any]:
    """Return all that decides the answers: input, model and options."""
    return {
        "canal": __version__,
        "input": [list(file) for file in seen.files],
        "sha256": dict(options.origin.get("input", {})).get("sha256"),
        "model": dict(options.model_name),
        "labels": list(annotator.labels),
        "genes": list(annotator.genes),
        "answers": annotator.digest(),
        "options": _asked(options),
    }


# Answers kept on disk while a long labelling lasts, so that it can go on where it was interrupted.

_JOB = "job.json"
_EVERY = 20.0
"""Seconds of work that a kill may cost."""


def parts_folder(target: Path) -> Path:
    """Return where the answers for an output are kept: a hidden folder beside it."""
    return target.parent / f".{target.name[:100]}.canal-parts"


class Parts:
    """The answers of a job, in the order of its cells; use it in a ``with`` block around all the work.

    They are kept when the work is interrupted or killed, or the output of a long job cannot be written; they
    are removed when it succeeds or the input is refused.
    A job that is short keeps nothing.

    Parameters
    ----------
    folder
        Where they are kept.
    job
        Returns all that decides the answers, as JSON values: those of another job are never used.
    resume
        Whether to begin with what is there; otherwise it is removed.
    notice
        Is told where a later run may go on, and why answers cannot be kept.
    """

    def __init__(
        self, folder: Path, job: Callable[[], Any], resume: bool, notice: Callable[[str], None]
    ) -> None:
        self._folder, self._job, self._resume, self._notice = folder, job, resume, notice
        self.frames: list[pd.DataFrame] = []
        self.done = 0
        self.labelled = False
        """Whether every cell has its answer, so that a later error is about the output alone."""
        self._unsaved: list[pd.DataFrame] = []
        self._last, self._broken = time.monotonic(), False

    def __enter__(self) -> Parts:
        if self._resume and self._folder.is_dir():
            self._load()
            self._notice(f"going on behind the first {self.done:,} cells")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or not self._worth_keeping(kind):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._save()
        if self.done and not self._broken:
            self._notice(f"interrupted: --resume goes on behind the first {self.done:,} cells")

    def _worth_keeping(self, kind: type[BaseException]) -> bool:
        """Return whether to keep answers after an error: after an interruption, else those of a long job."""
        if not self.labelled and not issubclass(kind, Exception):
            return True
        refused = issubclass(kind, CanalError) and not self.labelled
        return self._folder.is_dir() and not refused

    def add(self, frame: pd.DataFrame) -> None:
        """Take the answers for the next cells."""
        self.frames.append(frame)
        self._unsaved.append(frame)
        self.done += len(frame)
        if time.monotonic() - self._last >= _EVERY:
            self._save()

    def _save(self) -> None:
        """Write what is not yet on disk as one file, whole or not at all."""
        import pandas as pd

        if not self._unsaved or self._broken:
            return
        frame = pd.concat(self._unsaved, ignore_index=True)
        try:
            self._folder.mkdir(0o700, exist_ok=True)  # answers are about cells that others may not see
            if not (self._folder / _JOB).is_file():
                write_json(self._folder / _JOB, json_digest(self._job()))
            with new_file(self._folder / f"{self.done - len(frame):012d}.parquet") as temporary:
                frame.to_parquet(temporary)
        except OSError as error:
            self._broken = True
            self._notice(f"{self._folder} cannot be written ({error}), so --resume will not know of this run")
            return
        self._unsaved, self._last = [], time.monotonic()

    def _load(self) -> None:
        import pandas as pd

        with reading(self._folder, _JOB):
            known = read_json(self._folder / _JOB)
        if known != json_digest(self._job()):
            raise DataError(
                f"{self._folder} holds answers for another input, model or other options; "
                "leave --resume out to begin anew"
            )
        for path in sorted(self._folder.glob("[0-9]*.parquet")):
            with reading(path, "answers"):
                frame = pd.read_parquet(path)
            if int(path.stem) != self.done:
                break
            self.frames.append(frame)
            self.done += len(frame)
