"""Label the cells of a file or AnnData (cell type, confidence, novelty), in blocks that can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.clusters import ComputeOptions, add_vote, clusters_of_adata, clusters_of_file, computing
from canal.annotation.coarse import about_ontology, hierarchy_of, with_coarse
from canal.annotation.columns import (
    KEY,
    columns_of,
    join_blocks,
    stale_columns_message,
    under_key,
    with_limits,
)
from canal.annotation.options import Callbacks, Options
from canal.annotation.output import Output, check_target
from canal.annotation.places import check_free_file
from canal.annotation.query import Query, query_adata, query_file
from canal.annotation.reading import Block, reading_for
from canal.annotation.records import make_record
from canal.annotation.resuming import Parts, parts_folder
from canal.annotation.summary import Depth, Likeness, Summary, summarise
from canal.core import __version__
from canal.core.digests import canonical_json
from canal.core.errors import LOG, DataError, in_python
from canal.core.progress import OnCells, by_cells, doing
from canal.io.formats import Fingerprint, open_cells
from canal.io.locations import Location

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from canal.model.load import CellAnnotator

FIRST_CELLS = 100
"""Cells that are labelled before all others, so that it is soon told how long the rest takes."""

Progress = Callable[[str], None]


def _silent(message: str) -> None:
    """Drop a progress message."""


def annotate_h5ad(
    annotator: CellAnnotator,
    source: Path,
    target: Path | Output,
    options: Options | None = None,
    callbacks: Callbacks | None = None,
) -> Summary:
    """Write a labelled copy of a file of cells; the input is not changed, memory does not grow with cells.

    obs of the copy gains the columns of `canal.annotation.columns`: ``canal_cell_type`` ("Unassigned" where
    the cell is novel, or expresses none of the model's genes), the likeliest type and the second one,
    confidence, margin, novelty. ``uns["canal"]`` is the record, a JSON text, and
    ``uns["canal_cell_type_colors"]`` a colour for each type; ``options.key_added`` replaces ``canal``. An
    h5ad file or zarr store is copied, other formats become a new h5ad file. Memory holds a block of cells,
    the labels (40 bytes each) and, for a matrix stored by gene, `canal.io.blocks`' buffers.

    Parameters
    ----------
    annotator, source, target, options, callbacks
        The model, the input, the output (a path, or its `Output`), how cells are read, and functions that
        receive progress, notices and the record.

    Raises
    ------
    DataError
        If the file cannot be read, changes during the run, has no cells, too few of the model's genes, or
        values of unknown units; if labels under the key would replace what canal did not write; or if the
        target is the source, exists already, has another format, or cannot be written.
    """
    options, callbacks = options or Options(), callbacks or Callbacks()
    output = _output(source, target, options, callbacks.notice).of_panel(annotator.genes)
    fingerprint, folder = Fingerprint.of(source), parts_folder(output.target)
    parts = Parts(folder, lambda: _job(annotator, fingerprint, options), options.resume, callbacks.notice)
    on_cells = callbacks.on_cells or by_cells(callbacks.notice)
    with parts:
        with open_cells(source, annotator.genes) as file:
            if not output.is_table:
                check_free_file(file, options.key_added)
            if file.assumed:
                callbacks.notice(file.assumed)
            clusters = clusters_of_file(file, options.vote)
            query = query_file(file, options.layer, options.gene_column)
            names = file.obs_names()  # read for copies as well: damaged cell names must raise an error
            table, summary = _label(annotator, query, options, on_cells, parts)
            table = add_vote(table, clusters, annotator, query, options, callbacks.notice)
            table = under_key(table, options.key_added)
            table.index = names if output.is_table else table.index
            if output.is_table and (again := len(names) - len(set(names))):
                callbacks.notice(
                    f"names of cells stand again in the file ({again:,}): the rows of {output.target.name} "
                    "are in its order, and cannot be joined by name"
                )
        fingerprint.check()
        parts.labelled = True

        def on_complete(record: str) -> None:
            fingerprint.check()
            if callbacks.on_record is not None:
                callbacks.on_record(record)

        with doing(f"writing {output.target.name}"):
            record = canonical_json(make_annotation_record(annotator, options, summary, output.target.name))
            removed = output.write(table, record, on_complete)
    if removed:
        callbacks.notice(stale_columns_message(removed))
    return summary


def _output(source: Path, target: Path | Output, options: Options, notice: Callable[[str], None]) -> Output:
    """Return the output of a target, checked: what cannot be written, or holds no embedding, is refused."""
    path = target.target if isinstance(target, Output) else target
    check_target(source, path, options.overwrite)
    output = target if isinstance(target, Output) else Output.find(source, target, options.only_obs)
    if not path.suffix and not output.is_table:
        notice(f"{path} has no suffix: a labelled h5ad file is written under that name")
    if output.is_table and options.latent:
        raise DataError(
            f"{path}: a table of labels holds no embedding: leave --latent out, or write an h5ad file"
        )
    return output


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
    with open_cells(source, annotator.genes) as file:
        query = query_file(file, options.layer, options.gene_column)
        table, _ = _label(annotator, query, options, by_cells(progress))
        table.index = file.obs_names()
    return table


def annotate_path(
    annotator: CellAnnotator, source: Location, options: Options | None = None, progress: Progress = _silent
) -> pd.DataFrame:
    """Return of a file, folder or address what `annotate_adata` returns of an AnnData; nothing is written.

    Raises
    ------
    DataError
        As `annotate_h5ad`.
    """
    options = options or Options()
    fingerprint = Fingerprint.of(source)
    with open_cells(source, annotator.genes) as file:
        if file.assumed:
            LOG.info(file.assumed)
        clusters = clusters_of_file(file, options.vote)
        query = query_file(file, options.layer, options.gene_column)
        table = _labelled(annotator, query, clusters, options, progress)
        table.index = file.obs_names()
    fingerprint.check()
    return table


def annotate_adata(
    annotator: CellAnnotator, adata: AnnData, options: Options | None = None, progress: Progress = _silent
) -> pd.DataFrame:
    """Return the columns that `annotate_h5ad` adds, one row a cell of an AnnData, which is not changed.

    ``attrs["canal"]`` of the table is the record, a dict, as a file holds it as a text in ``uns["canal"]``;
    the summary's warnings are also raised as `UserWarning`. Probabilities and the embedding, where they are
    asked for, are columns ``canal_p_TYPE`` and ``X_canal_NUMBER``.

    Raises
    ------
    DataError
        As `annotate_h5ad`.
    """
    options = options or Options()
    query = query_adata(adata, options.layer, options.gene_column)
    clusters = clusters_of_adata(adata, options.vote)
    table = _labelled(annotator, query, clusters, options, progress)
    table.index = adata.obs_names.copy()
    return table


def _labelled(
    annotator: CellAnnotator, query: Query, clusters: np.ndarray | None, options: Options, progress: Progress
) -> pd.DataFrame:
    """Return the new columns, with the record in attrs; warnings of the summary are raised as such."""
    table, summary = _label(annotator, query, options, by_cells(progress))
    table = under_key(add_vote(table, clusters, annotator, query, options, progress), options.key_added)
    for text in summary.warnings:
        warnings.warn(in_python(text), stacklevel=3)
    table.attrs[KEY] = make_annotation_record(annotator, options, summary)
    return table


def _label(
    annotator: CellAnnotator, query: Query, options: Options, on_cells: OnCells, parts: Parts | None = None
) -> tuple[pd.DataFrame, Summary]:
    """Return the new columns of obs, and the summary."""
    if options.max_novelty is not None and not annotator.about().get("novelty"):
        raise DataError("--max-novelty: this version scores no novelty, so no cell is above: leave it out")
    with doing(f"reading {query.name}: its genes and the units of its values"):
        reading, restricted = reading_for(annotator, query, options)
    frames: list[pd.DataFrame] = [] if parts is None else parts.frames
    done = 0 if parts is None else parts.done
    likeness, depth = Likeness(), Depth(reading.coverage.found)
    compute = ComputeOptions(options.chunk_cells, options.device, options.dtype)
    with doing("labelling cells"), computing(annotator, compute):
        on_cells(done, query.n_cells)
        for block in _soon(reading.blocks(options.chunk_cells, done)):
            frame = label_block(restricted, annotator, block, options, likeness)
            depth.add(block)
            if parts is None:
                frames.append(frame)
            else:
                parts.add(frame)
            done += len(frame)
            on_cells(done, query.n_cells)
    table = join_blocks(frames, annotator.ontology)
    study = likeness.to_json(annotator.about())
    return table, summarise(annotator, table, reading, options, (study, depth.to_json()))


def label_block(
    restricted: CellAnnotator, annotator: CellAnnotator, block: Block, options: Options, likeness: Likeness
) -> pd.DataFrame:
    """Return the columns of a block of cells; see `columns_of`.

    Parameters
    ----------
    restricted, annotator
        The model without the genes that the query lacks, which answers, and the model itself.
    block
        The cells.
    options
        How they are labelled.
    likeness
        Counts how many resemble the cells of the learned studies.
    """
    latent = None
    if options.latent:
        answer, latent = restricted.predict_represented(block.expression)
    else:
        answer = restricted.predict(block.expression)
    likeness.add(answer)
    frame = columns_of(answer, block.empty, annotator.labels, options.probabilities, latent)
    if options.coarse is not None:
        hierarchy = hierarchy_of(annotator.labels, annotator.ontology)
        frame = with_coarse(frame, answer.probabilities, hierarchy, options.coarse, options.max_novelty)
    return with_limits(frame, options.max_novelty, options.min_confidence)


def _soon(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield blocks, the first of them in two: a few cells, and the rest."""
    for block in islice(blocks, 1):
        if len(block.expression) <= FIRST_CELLS:
            yield block
            continue
        for part in (slice(FIRST_CELLS), slice(FIRST_CELLS, None)):
            start = block.start + (part.start or 0)
            totals = None if block.totals is None else block.totals[part]
            yield Block(start, block.expression[part], block.empty[part], totals)
    yield from blocks


def make_annotation_record(
    annotator: CellAnnotator, options: Options, summary: Summary, labelled: str = ""
) -> dict[str, Any]:
    """Return the record of an annotation; ``labelled`` is the name of the file that holds the labels."""
    name = labelled.encode("utf-8", "replace").decode()  # a name's bytes need be no text
    return make_record(
        {
            **options.origin,
            "model": dict(options.model_name),
            "labels": list(annotator.labels),
            **annotator.about(),
            "options": decisive_options(options),
            **summary.to_json(),
            "distributions": dict(summary.distributions),
            **({"cell_ontology": about_ontology()} if options.coarse is not None else {}),
            **({"labelled": name} if name else {}),
            **({"vote": options.vote} if options.vote else {}),
            **({"min_share": options.min_share} if options.min_share is not None else {}),
        }
    )


def decisive_options(options: Options) -> dict[str, Any]:
    """Return the options that determine labels, as JSON values."""
    return {
        "layer": options.layer,
        "values": options.values,
        "gene_column": options.gene_column,
        "min_coverage": options.min_coverage,
        "dtype": options.dtype,
        **({"effort": options.effort} if options.effort != "full" else {}),
        **({"force": True} if options.force else {}),
        **({"probabilities": True} if options.probabilities else {}),
        **({"latent": True} if options.latent else {}),
        **({"key_added": options.key_added} if options.key_added != KEY else {}),
        **{
            name: float(limit)
            for name in ("max_novelty", "min_confidence", "coarse")
            if (limit := getattr(options, name)) is not None
        },
        **options.naming.to_json(),
    }


def _job(annotator: CellAnnotator, fingerprint: Fingerprint, options: Options) -> dict[str, Any]:
    """Return everything that determines the labels: input, model and options."""
    return {
        "canal": __version__,
        "input": [list(file) for file in fingerprint.files],
        "sha256": dict(options.origin.get("input", {})).get("sha256"),
        "model": dict(options.model_name),
        "labels": list(annotator.labels),
        "genes": list(annotator.genes),
        "answers": annotator.digest(),
        "options": decisive_options(options),
    }
