"""Commands that read cells: validate, novel, explain, who, serve; and markers, of a version."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from canal import app
from canal.cli.parsing import (
    MODEL,
    AsJson,
    Batch,
    Drop,
    Duplicates,
    Everything,
    FileValues,
    GeneColumn,
    Label,
    LabelMap,
    Layer,
    MinGenes,
    Parent,
    Root,
    complete_model,
    declared_source,
    examples,
    note,
    open_project,
    show_result,
)
from canal.core.errors import ConfigError
from canal.report.cell_tables import explanation_table, marker_table, novel_table, who_group
from canal.report.gate_tables import verdict_table


def add_to(to: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    to.command(epilog=examples("canal novel labelled.h5ad -o novel.csv --batch donor"))(novel)
    to.command(epilog=examples("canal explain labelled.h5ad -o genes.csv --top 10"))(explain)
    to.command(epilog=examples("canal markers champion -o genes.csv --top 20"))(markers)
    to.command(epilog=examples("canal who labelled.h5ad"))(who)
    to.command(epilog=examples("canal serve champion --port 5001", "canal serve 3 --token-file token"))(serve)
    to.command(
        epilog=examples(
            "canal validate new.h5ad --stage tumour",
            "canal validate lung.h5ad --label cell_type --values counts --map map.csv",
        )
    )(validate)


def validate(
    file: Annotated[Path, typer.Argument(help="An h5ad file.")],
    stage: Annotated[
        str | None, typer.Option(help="Read it with the declaration of this stage; by default the last.")
    ] = None,
    values: FileValues = None,
    label: Label = None,
    label_map: LabelMap = None,
    drop: Drop = None,
    layer: Layer = None,
    batch: Batch = None,
    gene_column: GeneColumn = None,
    duplicates: Duplicates = None,
    min_genes: MinGenes = None,
    parent: Parent = None,
    everything: Everything = False,
    failing: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Write every cell, gene or type that breaks a rule, by name."),
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Run the gate on an h5ad file, as a stage's or the next one's.

    Exit code 1 unless it passes.
    """
    options: dict[str, Any] = {
        "values": values, "label": label, "label_map": label_map, "layer": layer, "batch": batch,
        "gene_column": gene_column, "duplicates": duplicates, "min_genes": min_genes, "drop": drop or None,
    }  # fmt: skip
    if any(value is not None for value in (*options.values(), parent)):
        if stage is not None or values is None:
            raise ConfigError(
                "to judge a file as the next stage's, give --values counts (or log1p_10k, log2p_10k) with "
                "--label, --map and the like; --stage NAME reads it as that stage's file: give one of both"
            )
        source = declared_source(file, options, root)
        name = app.declaring.free_name(file, root)
        verdict = app.declaring.propose_stage(name, source, parent, root, fixed=True).verdict
    else:
        verdict = app.declaring.validate(file, stage, root)
    show_result(verdict.document() if as_json else verdict_table(verdict, everything), as_json)
    if failing is not None:
        note(f"{failing}: {verdict.write_failing(failing):,} names")
    if not verdict.passed:
        raise typer.Exit(1)


File = Annotated[
    Path, typer.Argument(metavar="LABELLED.h5ad", help="What `canal annotate` wrote; .zarr, too.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random samples.")]
GeneMap = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Aliases = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Orthologs = Annotated[Path | None, typer.Option(help="The table the file was labelled with, if any.")]
Chunk = Annotated[int, typer.Option(min=1, help="Cells held in memory at a time.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Labeller = Annotated[
    str | None,
    typer.Option(
        "--model",
        autocompletion=complete_model,
        help="The model that labelled the file, as for canal annotate; by default looked for by its key.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key-added", metavar="NAME", help="Which labels, where the file holds several."),
]


def novel(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The labelling sheet (.csv), to be filled in.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column with batches; by default batch, donor, sample or the like.")
    ] = None,
    min_cells: Annotated[int, typer.Option(min=1, help="Smaller groups are left out.")] = 10,
    resolution: Annotated[float, typer.Option(min=0.0, help="Higher: more and smaller groups.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Genes shown of a group.")] = 10,
    seed: Seed = 0,
    model: Labeller = None,
    key: Key = None,
    gene_map: GeneMap = None,
    aliases: Aliases = None,
    orthologs: Orthologs = None,
    chunk_cells: Chunk = 2000,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto is a GPU where there is one.")
    ] = "auto",
    overwrite: Overwrite = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Group the novel cells of a labelled file, for a person to name.

    Writes a sheet with a row for each group: fill in its cell type.
    """
    naming = app.discovering.Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
    options = app.discovering.GroupingOptions(
        batch,
        min_cells,
        resolution,
        seed,
        top,
        naming,
        app.discovering.ComputeOptions(chunk_cells, device),
        key,
    )
    labelled = app.discovering.LabelledFile(file, model, root)
    groups = app.discovering.novel(labelled, output, options, overwrite, note).to_json()
    show_result(groups if as_json else novel_table(groups), as_json)
    if output is not None:
        where = (
            "" if app.models.project_here(root) else ", in a project that holds the version (`canal import`)"
        )
        note(
            f"wrote {output}: fill in the column cell_type of the groups that you know, then "
            f"`canal stage add NAME --from-novel {output}`{where}"
        )


def explain(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A CSV file of types and genes.")
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Most cells sampled for a type.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Most genes shown for a type.")] = 20,
    seed: Seed = 0,
    model: Labeller = None,
    key: Key = None,
    gene_map: GeneMap = None,
    aliases: Aliases = None,
    orthologs: Orthologs = None,
    chunk_cells: Chunk = 2000,
    overwrite: Overwrite = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show the marker genes of each cell type in a labelled file.

    By gradient times input, averaged over the cells of a type.
    """
    naming = app.discovering.Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
    options = app.discovering.ExplainOptions(cells, top, seed, naming, chunk_cells, key)
    labelled = app.discovering.LabelledFile(file, model, root)
    explanations = [
        one.to_json() for one in app.discovering.explain(labelled, output, options, overwrite, note)
    ]
    show_result(explanations if as_json else explanation_table(explanations), as_json)
    if output is not None:
        note(f"wrote {output}")


def markers(
    version: Annotated[str | None, typer.Argument(help=MODEL, autocompletion=complete_model)] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A CSV file of types and genes.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most genes shown for a type.")] = 20,
    overwrite: Overwrite = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show the marker genes of each cell type in a version itself.

    By the weights of network and sums; no cells are needed.
    """
    document = app.discovering.markers(version, output, top, overwrite, note, root)
    show_result(document if as_json else marker_table(document), as_json)
    if output is not None:
        note(f"wrote {output}")


def who(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What `canal annotate` wrote: .h5ad, .zarr, .parquet or .csv."),
    ],
    key: Key = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show which version labelled a file, when and how.

    With the version's present status in the registry.
    """
    document = app.annotating.who(file, root, key)
    show_result(document if as_json else who_group(document), as_json)


def serve(
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; by default the champion, else the newest.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where on that machine.")] = 5001,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")] = 1,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds an answer may take.")] = 60,
    patience: Annotated[int, typer.Option(min=1, help="Seconds in which a request must be complete.")] = 60,
    max_mb: Annotated[int, typer.Option(min=1, help="Megabytes a request may have.")] = 64,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a bearer token that requests need.", dir_okay=False)
    ] = None,
    root: Root = None,
) -> None:
    """Serve the labels of `canal annotate` over HTTP.

    The version is audited first.
    """
    how = app.serving.ServeOptions(host, port, workers, timeout, patience, max_mb, token_file)
    app.serving.serve(open_project(root), version, how)
