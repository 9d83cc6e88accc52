"""Commands that label cells: annotate, and collect, which puts the shards of many files together."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from canal import app
from canal.cli.parsing import AsJson, Model, Root, examples, note, show_result
from canal.core.errors import CanalError
from canal.report.terminal import annotation_table, cells_progress, partitions_table


def add_to(to: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    to.command(
        epilog=examples(
            "canal annotate new.h5ad -o labelled.h5ad --layer counts",
            "canal annotate filtered_feature_bc_matrix.h5 -o labels.csv",
            "canal annotate new.h5ad -o labelled.h5ad --model lung-atlas.zip",
            "canal annotate atlas/*.h5ad -o atlas-labels --engine dask",
            "canal annotate atlas/*.h5ad -o atlas-labels --shard 3/8",
            "canal annotate 's3://lab/atlas/*.h5ad' -o s3://lab/labels",
        )
    )(annotate)
    to.command(epilog=examples("canal collect atlas-labels"))(collect)


def annotate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="Cells to label, never changed: h5ad, zarr, 10x, loom, csv, tsv; or s3://bucket/*.h5ad.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="The labelled copy; .csv or .parquet: labels alone; of several files or with --shard or "
            "--engine a folder for Parquet files. Also an address, s3://bucket/labels.",
        ),
    ],
    model: Model = None,
    layer: Annotated[str, typer.Option(help="X, raw or a layer's name.")] = "X",
    use_raw: Annotated[bool, typer.Option("--use-raw", help="The same as --layer raw.")] = False,
    values: Annotated[str, typer.Option(help="auto, counts, log1p_10k or log2p_10k.")] = "auto",
    gene_column: Annotated[str | None, typer.Option(help="var column with gene symbols.")] = None,
    gene_map: Annotated[Path | None, typer.Option(help="Table: Ensembl id, symbol (tab).")] = None,
    aliases: Annotated[
        Path | None, typer.Option(help="Table: outdated symbol, today's (tab); or HGNC's own.")
    ] = None,
    species: Annotated[
        Literal["auto", "human", "mouse"], typer.Option(help="Whose genes; a mouse's are translated.")
    ] = "auto",
    orthologs: Annotated[
        Path | None, typer.Option(help="Table: mouse gene, human gene (tab); by default canal's own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Label although too few genes are there.")] = False,
    only_obs: Annotated[
        bool, typer.Option("--only-obs", help="Write the labels alone, as .csv or .parquet.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of every type, too.")
    ] = False,
    latent: Annotated[
        bool, typer.Option("--latent", help="Write the model's embedding, too, as obsm X_canal.")
    ] = False,
    key_added: Annotated[
        str, typer.Option(metavar="NAME", help="What written names begin with; other labels stay.")
    ] = "canal",
    max_novelty: Annotated[
        float | None, typer.Option(metavar="X", help="Cells of higher novelty are Unassigned, too.")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(metavar="X", help="Cells of lower confidence are Unassigned, too.")
    ] = None,
    coarse: Annotated[
        float | None,
        typer.Option(metavar="X", help="Name, too, the closest kind of cell so probable, such as 0.9."),
    ] = None,
    vote: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Majority vote by clusters: a column of obs, louvain or leiden."),
    ] = None,
    min_share: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of a cluster its majority needs; else its vote is Mixed."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was interrupted.")] = False,
    chunk_cells: Annotated[int, typer.Option(min=1, help="Cells held in memory at a time.")] = 2000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto is a GPU where there is one.")
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is faster where the machine has it.")
    ] = "float32",
    effort: Annotated[
        Literal["full", "fast"],
        typer.Option(help="fast: the sums answer, the network only where they are unsure."),
    ] = "full",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor cores to use; by default all.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Label the Ith of N shares; canal collect puts them together."),
    ] = None,
    engine: Annotated[
        Literal["local", "dask"] | None, typer.Option(help="Who labels partitions: this process or Dask.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask's; by default workers of this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Dask's workers of this machine.")] = None,
    partition_cells: Annotated[
        int | None, typer.Option(min=1, help="Cells of a partition.  [default: 50000]")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Label the cells of files: type, confidence and novelty of each.

    A cell of no known type is "Unassigned". Several files are labelled into a folder, in partitions; the same
    command again labels those that are missing.
    """
    if use_raw and layer != "X":
        raise CanalError(f"--use-raw means --layer raw, but --layer {layer} was also given: leave one out")
    options = app.annotating.Options(
        layer="raw" if use_raw else layer,
        values=values,
        gene_column=gene_column,
        chunk_cells=chunk_cells,
        force=force,
        naming=app.annotating.Naming(species, orthologs, aliases, gene_map),
        overwrite=overwrite,
        only_obs=only_obs,
        probabilities=probabilities,
        latent=latent,
        key_added=key_added,
        max_novelty=max_novelty,
        min_confidence=min_confidence,
        coarse=coarse,
        vote=vote,
        min_share=min_share,
        resume=resume,
        device=device,
        dtype=dtype,
        effort=effort,
    )
    app.annotating.use_machine(threads, options, note)
    spread: dict[str, Any] = {
        "engine": engine,
        "shard": shard,
        "scheduler": scheduler,
        "workers": workers,
        "cells": partition_cells,
    }
    given = {name: value for name, value in spread.items() if value is not None}
    show: Callable[[dict[str, Any]], Any]
    with cells_progress() as on_cells:
        callbacks = app.annotating.Callbacks(note, on_cells)
        places = [app.annotating.location(one) for one in sources]
        target = app.annotating.location(output)
        if given or app.annotating.into_folder(places, target):
            how, show = app.partitioning.Spread(**given), partitions_table
            made = app.partitioning.annotate_files(places, target, options, model, callbacks, how, root)
        else:
            show = annotation_table
            made = app.annotating.annotate_file(places[0], target, options, model, callbacks, root).to_json()
    show_result(made if as_json else show(made), as_json)


def collect(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="What `canal annotate --shard` labelled into.")
    ],
    model: Model = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Put shards together: an index, and a record of each file.

    Exit code 1 while partitions are missing.
    """
    place = app.annotating.location(folder)
    parts = app.partitioning.collect_files(place, model, app.annotating.Callbacks(note), root)
    show_result(parts if as_json else partitions_table(parts), as_json)
