"""Labels for the cells of a file or an AnnData: type, confidence, novelty."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.columns import (
    LOW_QUALITY,
    TYPE,
    UNASSIGNED,
    columns_of,
    joined,
    told_left_over,
)
from canal.annotation.coverage import Coverage
from canal.annotation.expected import Likeness, lost_weight, told_lost
from canal.annotation.expected import told as told_shift
from canal.annotation.formats import open_cells
from canal.annotation.naming import doubt, rename
from canal.annotation.options import Options
from canal.annotation.output import check_target
from canal.annotation.outputs import Output
from canal.annotation.parts import Parts, parts_folder
from canal.annotation.query import Query, query_adata, query_file
from canal.annotation.query_units import AUTO
from canal.annotation.reading import Reading, begin
from canal.annotation.records import make_record
from canal.annotation.telling import OnCells, in_tenths
from canal.annotation.unchanged import Fingerprint
from canal.annotation.vote import clusters_of_adata, clusters_of_file, voted
from canal.config.sections import Values
from canal.core import __version__
from canal.core.digests import canonical_json
from canal.core.errors import DataError
from canal.memory.answer import ExactAnnotator

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.model.load import CellAnnotator

Progress = Callable[[str], None]


def _silent(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes
    ----------
    n_cells : int
    values : str
        The units the values were taken for.
    detected : bool
        Whether they were found out, not given.
    coverage : Coverage
        Which of the model's genes were there.
    counts : dict
        Cells of each type, "Unassigned" included, most frequent first.
    warnings : tuple of str
        What makes the labels less certain.
    renamed : dict
        Where genes were found by another name: the column of var, and how many genes by what.
    lost : dict
        Where genes are few: for each type the share of its weight that is lost.
    study : dict
        How like the learned studies the cells are, and what follows; see `canal.annotation.expected`.
    """

    n_cells: int
    values: Values
    detected: bool
    coverage: Coverage
    counts: dict[str, int]
    warnings: tuple[str, ...]
    renamed: Mapping[str, Any] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unassigned(self) -> int:
        """Number of cells that are none of the known types."""
        return self.counts.get(UNASSIGNED, 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        coverage = self.coverage
        genes = {"found": coverage.found, "panel": coverage.panel, "missing": list(coverage.missing)}
        more = {"renamed": dict(self.renamed), "lost_weight": dict(self.lost)}
        return {
            "n_cells": self.n_cells,
            "values": self.values,
            "values_detected": self.detected,
            "genes": {**genes, **{name: found for name, found in more.items() if found}},
            "cell_types": self.counts,
            "warnings": list(self.warnings),
            **({"study": dict(self.study)} if self.study else {}),
        }


def annotate_h5ad(
    annotator: CellAnnotator,
    source: Path,
    target: Path,
    options: Options | None = None,
    progress: Progress = _silent,
    on_record: Callable[[str], None] | None = None,
    on_cells: OnCells | None = None,
) -> Summary:
    """Write a copy of a file of cells with labels; the input is not changed, memory does not grow with cells.

    obs of the copy gains the columns of `canal.annotation.columns`: ``canal_cell_type`` ("Unassigned" where
    the cell is novel, or expresses none of the model's genes), the likeliest type and the second one,
    confidence, margin, novelty; ``uns["canal"]`` is the annotation record, a JSON text of the model, the
    options and the summary. An h5ad file or zarr store is copied as it is; 10x and loom files
    become a new h5ad file; see `canal.annotation.formats` and `canal.annotation.new_output`.

    In memory are a block of cells, the labels (some 40 bytes a cell) and, for a matrix that does not lie by
    cell, what `canal.annotation.gathering` says.

    Parameters
    ----------
    annotator, source, target, options
        Who labels, what is read and written, and how.
    progress
        Is told what a person may want to know meanwhile, and every tenth of the cells unless ``on_cells`` is
        there.
    on_record
        Is told the record when the copy is whole, just before it appears under its name.
    on_cells
        Is told (cells done, cells in all) after every block.

    Raises
    ------
    DataError
        If the file cannot be read, changes meanwhile, or has no cells, too few of the model's genes, or
        values of no known units; or if the target is the source, or there and not to be replaced, or of
        another format, or cannot be written.
    """
    options = options or Options()
    check_target(source, target, options.overwrite)
    seen = Fingerprint.of(source)
    output = Output.find(source, target, options.only_obs)
    parts = Parts(parts_folder(target), lambda: _job(annotator, seen, options), options.resume, progress)
    with parts:
        with open_cells(source) as file:
            clusters = clusters_of_file(file, options.vote)
            query = query_file(file, options.layer, options.gene_column)
            names = file.obs_names()  # of a copy, too: labels of cells whose names are damaged are no answer
            table, summary = _label(annotator, query, options, on_cells or in_tenths(progress), parts)
            table = voted(table, clusters, annotator, query, options, progress)
            table.index = names if output.is_table else table.index
        seen.check()
        parts.labelled = True

        def whole(note: str) -> None:
            seen.check()
            if on_record is not None:
                on_record(note)

        gone = output.write(table, canonical_json(_record(annotator, options, summary)), whole)
    if gone:
        progress(told_left_over(gone))
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
    return table, _summary(annotator, table, reading, how, options.values == AUTO, study)


def _computing(annotator: CellAnnotator, options: Options) -> AbstractContextManager[object]:
    """Move an annotator to its device and return the block it computes in; sums need neither, nor torch."""
    if isinstance(annotator, ExactAnnotator):
        return nullcontext()
    from canal.model.compute import find_device, precision

    device = find_device(options.device)
    annotator.on(device)
    return precision(options.dtype, device)


def _summary(
    annotator: CellAnnotator,
    table: pd.DataFrame,
    reading: Reading,
    renamed: Mapping[str, Any],
    detected: bool,
    study: Mapping[str, Any],
) -> Summary:
    types = table[TYPE].cat
    counts = dict(zip(types.categories, np.bincount(types.codes).tolist(), strict=True))
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    coverage, said = reading.coverage, list(reading.warnings)
    lost = lost_weight(annotator, coverage.missing) if coverage.warning else {}
    said += [text for text in (told_lost(lost) if lost else "", doubt(renamed), told_shift(study)) if text]
    if empty := int(table[LOW_QUALITY].sum()):
        said.append(
            f"{empty:,} cells express none of the model's genes: they are {UNASSIGNED}, see {LOW_QUALITY}"
        )
    return Summary(
        len(table), reading.units.values, detected, coverage, ordered, tuple(said), renamed, lost, study
    )


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
