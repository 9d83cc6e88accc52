"""Labels for the cells of an h5ad file or an AnnData: type, confidence, novelty."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.coverage import Coverage
from canal.annotation.output import check_target, write_copy
from canal.annotation.query import Query, query_adata, query_file
from canal.annotation.reading import Reading, begin
from canal.annotation.records import make_record
from canal.annotation.units import AUTO
from canal.config import Values
from canal.data.h5ad import open_h5ad
from canal.digests import canonical_json

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.model.annotator import Annotator, Prediction
    from canal.model.compute import Precision

TYPE, BEST_TYPE = "canal_cell_type", "canal_best_type"
CONFIDENCE, NOVELTY, IS_NOVEL = "canal_confidence", "canal_novelty", "canal_is_novel"
LOW_QUALITY = "canal_low_quality"
UNASSIGNED = "Unassigned"
_TENTHS = 10

Progress = Callable[[str], None]


def _silent(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Options:
    """How a query is read and what is written beside the labels.

    Attributes
    ----------
    layer : str
        X, raw or the name of a layer.
    values : str
        auto, counts, log1p_10k or log2p_10k.
    gene_column : str or None
        Column of var with gene symbols; None: the index.
    chunk_cells : int
        Cells held in memory at a time.
    min_coverage : float
        Share of the model's genes below which cells are not labelled.
    overwrite : bool
        Whether an output that is there may be replaced.
    device : str
        auto, cpu or cuda.
    dtype : str
        float32, or bfloat16: other last digits, and faster where the machine has instructions for it.
    model_name : dict
        What the model is, JSON values; written into the output.
    origin : dict
        When, and from which file, JSON values; written into the output beside the model.
    """

    layer: str = "X"
    values: str = "auto"
    gene_column: str | None = None
    chunk_cells: int = 2000
    min_coverage: float = 0.4
    overwrite: bool = False
    device: str = "auto"
    dtype: Precision = "float32"
    model_name: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


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
    """

    n_cells: int
    values: Values
    detected: bool
    coverage: Coverage
    counts: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def unassigned(self) -> int:
        """Number of cells that are none of the known types."""
        return self.counts.get(UNASSIGNED, 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        coverage = self.coverage
        return {
            "n_cells": self.n_cells,
            "values": self.values,
            "values_detected": self.detected,
            "genes": {"found": coverage.found, "panel": coverage.panel, "missing": list(coverage.missing)},
            "cell_types": self.counts,
            "warnings": list(self.warnings),
        }


def annotate_h5ad(
    annotator: Annotator,
    source: Path,
    target: Path,
    options: Options | None = None,
    progress: Progress = _silent,
    on_record: Callable[[str], None] | None = None,
) -> Summary:
    """Write a copy of an h5ad file with labels; the input is not changed, memory does not grow with cells.

    obs of the copy gains ``canal_cell_type`` ("Unassigned" where the cell is novel), ``canal_best_type``,
    ``canal_confidence``, ``canal_novelty``, ``canal_is_novel`` and ``canal_low_quality`` (no gene of the model
    is expressed: "Unassigned" as well); ``uns["canal"]`` is the annotation record, a JSON text of the model, the options and the summary. ``progress`` is told at every tenth of the cells;
    ``on_record`` is told the record when the copy is whole, just before it appears under its name.

    Raises
    ------
    DataError
        If the file cannot be read or has no cells, too few of the model's genes, or values of no known units;
        or if the target is the source, or there and not to be replaced.
    """
    options = options or Options()
    check_target(source, target, options.overwrite)
    with open_h5ad(source) as file:
        query = query_file(file, options.layer, options.gene_column)
        table, summary = _label(annotator, query, options, progress)
    write_copy(source, target, table, canonical_json(_record(annotator, options, summary)), on_record)
    return summary


def label_h5ad(
    annotator: Annotator, source: Path, options: Options | None = None, progress: Progress = _silent
) -> pd.DataFrame:
    """Return the columns that `annotate_h5ad` adds, indexed by the file's cell names; nothing is written.

    Raises
    ------
    DataError
        As `annotate_h5ad`.
    """
    options = options or Options()
    with open_h5ad(source) as file:
        query = query_file(file, options.layer, options.gene_column)
        table, _ = _label(annotator, query, options, progress)
        table.index = file.obs_names()
    return table


def annotate_adata(
    annotator: Annotator, adata: AnnData, options: Options | None = None, progress: Progress = _silent
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
    table, summary = _label(annotator, query, options, progress)
    for text in summary.warnings:
        warnings.warn(text, stacklevel=2)
    table.index = adata.obs_names.copy()
    table.attrs["canal"] = _record(annotator, options, summary)
    return table


def _label(
    annotator: Annotator, query: Query, options: Options, progress: Progress
) -> tuple[pd.DataFrame, Summary]:
    """Return the new columns of obs, and the summary."""
    import pandas as pd

    from canal.model.compute import find_device, precision

    reading = begin(query, annotator.genes, options.values, options.min_coverage)
    device = find_device(options.device)
    annotator.network.to(device)
    parts, done = [], 0
    with precision(options.dtype, device):
        for block in reading.blocks(options.chunk_cells):
            parts.append(_columns(annotator.predict(block.expression), block.empty))
            before, done = done, done + len(block.expression)
            if _tenth(done, query.n_cells) > _tenth(before, query.n_cells):
                progress(f"labelled {done:,} of {query.n_cells:,} cells")
    table = pd.concat(parts, ignore_index=True)
    for name in (TYPE, BEST_TYPE):
        table[name] = table[name].astype("category")
    return table, _summary(table, reading, detected=options.values == AUTO)


def _columns(answer: Prediction, empty: np.ndarray) -> pd.DataFrame:
    """Return what is kept of a block's answer: a few values a cell, whatever the number of types."""
    import pandas as pd

    best = np.array(answer.labels, dtype=object)
    return pd.DataFrame(
        {
            TYPE: np.where(answer.is_novel | empty, UNASSIGNED, best),
            BEST_TYPE: best,
            CONFIDENCE: answer.confidence.astype(np.float32),
            NOVELTY: answer.novelty.astype(np.float32),
            IS_NOVEL: answer.is_novel.astype(bool),
            LOW_QUALITY: empty,
        }
    )


def _tenth(done: int, total: int) -> int:
    return _TENTHS * done // total


def _summary(table: pd.DataFrame, reading: Reading, detected: bool) -> Summary:
    counts = Counter(table[TYPE].astype(str))
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Summary(len(table), reading.units.values, detected, reading.coverage, ordered, reading.warnings)


def _record(annotator: Annotator, options: Options, summary: Summary) -> dict[str, Any]:
    rule = annotator.novelty
    return make_record(
        {
            **options.origin,
            "model": dict(options.model_name),
            "labels": list(annotator.labels),
            "novelty": None if rule is None else rule.to_json(),
            "options": {
                "layer": options.layer,
                "values": options.values,
                "gene_column": options.gene_column,
                "min_coverage": options.min_coverage,
                "dtype": options.dtype,
            },
            **summary.to_json(),
        }
    )
