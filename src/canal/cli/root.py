"""The command line: read arguments, call one function of the API, print what it says."""

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from canal.cli import (
    audit_commands,
    cells_commands,
    ledger_commands,
    lineage_commands,
    promotion_commands,
    serve_commands,
    stages_commands,
    sums_commands,
)
from canal.cli.parsing import AsJson, Commit, KeyFile, Root, note, show_result, signer
from canal.core.errors import CanalError
from canal.core.messages import tell
from canal.runtime.startup import INTERRUPTED, begin, exit_code, leave

app = typer.Typer(
    name="canal",
    help="An annotator of single-cell RNA-seq data that keeps learning, with every label provable.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
registry_app = typer.Typer(no_args_is_help=True, help="The MLflow registry that holds the versions.")
backbone_app = typer.Typer(no_args_is_help=True, help="The network that a lineage begins with.")
app.add_typer(backbone_app, name="backbone")
app.add_typer(registry_app, name="registry")
for add_to in (
    cells_commands.add_to,
    stages_commands.add_to,
    promotion_commands.add_to,
    ledger_commands.add_to,
    lineage_commands.add_to,
    audit_commands.add_to,
    ledger_commands.add_keys_to,
    stages_commands.add_tuning_to,
    sums_commands.add_to,
    sums_commands.add_basis_to,
    serve_commands.add_to,
):
    add_to(app)


def main() -> NoReturn:
    """Run the command line; an error made for people is one message and exit code 1."""
    begin()
    code = 0
    try:
        app()
    except CanalError as error:
        tell(f"canal: {error}")
        code = 1
    except OSError as error:
        from canal.core.files import system_refusal

        said = system_refusal(error)
        if said is None:
            raise
        tell(f"canal: {said}")
        code = 1
    except KeyboardInterrupt:
        tell("canal: interrupted")
        code = INTERRUPTED
    except SystemExit as end:
        code = exit_code(end.code)
    leave(code)


@app.command(epilog="Example: canal versions --json | jq '.[].stage'")
def versions(root: Root = None, as_json: AsJson = False) -> None:
    """List the registered versions with their aliases and figures."""
    from canal.app.project import Project
    from canal.app.views import version_rows
    from canal.report.terminal import versions_table

    rows = version_rows(Project.open(root))
    show_result(rows if as_json else versions_table(rows), as_json)


@app.command(epilog="Example: canal show 3    canal show candidate --json")
def show(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: where it comes from, what it learned, how it does."""
    from canal.app.project import Project
    from canal.app.views import version_view
    from canal.report.terminal import version_panel

    view = version_view(Project.open(root), version)
    show_result(view if as_json else version_panel(view), as_json)


@app.command(
    epilog="Example: canal annotate new.h5ad -o labelled.h5ad --layer counts    "
    "canal annotate filtered_feature_bc_matrix.h5 -o labels.csv"
)
def annotate(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Cells to label, never changed: h5ad, zarr, 10x, loom.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The labelled copy; .csv or .parquet: labels alone.")
    ],
    model: Annotated[str | None, typer.Option(help="Number or alias; by default the champion.")] = None,
    layer: Annotated[str, typer.Option(help="X, raw or a layer's name.")] = "X",
    use_raw: Annotated[bool, typer.Option("--use-raw", help="The same as --layer raw.")] = False,
    values: Annotated[str, typer.Option(help="auto, counts, log1p_10k or log2p_10k.")] = "auto",
    gene_column: Annotated[str | None, typer.Option(help="var column with gene symbols.")] = None,
    gene_map: Annotated[Path | None, typer.Option(help="Table: Ensembl id, symbol (tab).")] = None,
    aliases: Annotated[
        Path | None, typer.Option(help="Table: outdated symbol, today's (tab); or HGNC's own.")
    ] = None,
    species: Annotated[
        Literal["auto", "human", "mouse"], typer.Option(help="Whose genes; mouse needs --orthologs.")
    ] = "auto",
    orthologs: Annotated[Path | None, typer.Option(help="Table: mouse gene, human gene (tab).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Label although too few genes are there.")] = False,
    only_obs: Annotated[
        bool, typer.Option("--only-obs", help="Write the labels alone, as .csv or .parquet.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of every type, too.")
    ] = False,
    vote: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Majority vote by clusters: a column of obs, or leiden."),
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
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Label the cells of a file: type, confidence, novelty; a cell of no known type is "Unassigned"."""
    from canal.annotation.naming import Naming
    from canal.annotation.options import Options
    from canal.app.api import annotate_file, use_machine
    from canal.report.progress import cells_told

    if use_raw and layer != "X":
        raise CanalError(f"--use-raw is --layer raw, but --layer {layer} was given, too: leave one out")
    options = Options(
        layer="raw" if use_raw else layer,
        values=values,
        gene_column=gene_column,
        chunk_cells=chunk_cells,
        force=force,
        naming=Naming(species, orthologs, aliases, gene_map),
        overwrite=overwrite,
        only_obs=only_obs,
        probabilities=probabilities,
        vote=vote,
        resume=resume,
        device=device,
        dtype=dtype,
        effort=effort,
    )
    use_machine(threads, options, note)
    with cells_told() as on_cells:
        summary = annotate_file(source, output, options, model, note, root, on_cells)
    if as_json:
        show_result(summary.to_json(), as_json)
        return
    from canal.report.terminal import annotation_table

    show_result(annotation_table(summary.to_json()), as_json=False)


@app.command(epilog="Example: canal validate new.h5ad --stage tumour")
def validate(
    file: Annotated[Path, typer.Argument(help="An h5ad file.")],
    stage: Annotated[
        str | None, typer.Option(help="Whose declaration to read it with; by default the last.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Run the gate on any h5ad file; exit code 1 unless it passes."""
    from canal.app.api import validate as judge
    from canal.quality.verdict import render

    verdict = judge(file, stage, root)
    show_result(verdict.document() if as_json else render(verdict), as_json)
    if not verdict.passed:
        raise typer.Exit(1)


@backbone_app.command(
    "import",
    epilog="Example: canal backbone import panglao_pretrain.pth --genes panglao_10000.h5ad --commit",
)
def backbone_import(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT.pth", help="Weights of scBERT.")],
    genes: Annotated[Path, typer.Option(help="Gene symbols in the order of its rows: text, JSON or h5ad.")],
    gene2vec: Annotated[
        Path | None, typer.Option(help="Its gene vectors (.npy, .csv, .tsv), to prove that the genes fit.")
    ] = None,
    commit: Commit = False,
    sign: KeyFile = None,
    root: Root = None,
) -> None:
    """Begin the lineage with published weights: checked, registered, named in params.yaml."""
    from canal.app.api import import_backbone
    from canal.app.importing import PublishedFiles

    imported = import_backbone(PublishedFiles(checkpoint, genes, gene2vec), commit, root, signer(sign))
    backbone, version = imported.backbone, imported.version
    note(
        f"imported {checkpoint.name}: {len(backbone.vocabulary)} genes, {backbone.config.depth} blocks of "
        f"width {backbone.config.dim}; it is {version.model} {version.number}, and params.yaml names it"
        + (" (committed)" if commit else "")
    )
    note(f"but {imported.conflict}" if imported.conflict else "next: make run")


@registry_app.command("sync", epilog="Example: canal registry sync")
def registry_sync(sign: KeyFile = None, root: Root = None, as_json: AsJson = False) -> None:
    """Register every finished stage that the registry does not know, and show where the lineage stands."""
    from canal.app.api import registry_sync as sync
    from canal.app.project import Project
    from canal.app.views import evaluations, version_rows

    signed = signer(sign)
    project = Project.open(root)
    synced = sync(project, signed)
    if synced.moved:
        note(f"this project was moved or copied: {synced.moved} paths in mlflow.db name this folder now")
    made = ", ".join(f"{version.model} {version.number} ({version.stage})" for version in synced.made)
    note(f"registered {made}" if made else "nothing to do: every finished stage is registered")
    rows, measured = version_rows(project), evaluations(project)
    if as_json:
        show_result({"versions": rows, "evaluations": measured}, as_json)
        return
    from rich.console import Group
    from rich.text import Text

    from canal.report.terminal import next_commands, summary

    newest = rows[-1]["version"] if rows else "candidate"
    show_result(Group(summary(measured, rows), Text(), next_commands(newest)), as_json=False)


@registry_app.command(
    "rebuild", epilog='Example: canal registry rebuild --by "A. Person" --why "the disk of mlflow.db died"'
)
def registry_rebuild(
    by: Annotated[
        str | None, typer.Option(help="Who rebuilds it, kept on record; by default this user.")
    ] = None,
    why: Annotated[str | None, typer.Option(help="The reason, kept on record.")] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Look for models in this project folder, too (repeatable)."),
    ] = None,
    without: Annotated[
        list[int] | None,
        typer.Option(metavar="NUMBER", help="Give up a version whose model is gone (repeatable)."),
    ] = None,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a lost MLflow store again from models and ledger: same numbers, keys, aliases."""
    from canal.app.api import registry_rebuild as rebuild
    from canal.app.project import Project
    from canal.report.registry_tables import rebuilt_table, rebuilt_view

    signed = signer(sign, by)
    view = rebuilt_view(rebuild(Project.open(root), by, why, also or (), without or (), signed))
    show_result(view if as_json else rebuilt_table(view), as_json)
    note("next: canal audit, then commit ledger.jsonl")


@app.command(epilog="Example: canal report -o report")
def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for index.html.")] = Path("report"),
    root: Root = None,
) -> None:
    """Write one offline HTML page of the run with its figures."""
    from canal.app.project import Project
    from canal.app.views import version_rows
    from canal.report.collect import backbone_history, collect
    from canal.report.page import write_report

    project = Project.open(root)
    stages = collect(project.layout, list(project.config.stages), version_rows(project))
    if not stages:
        raise CanalError("nothing is measured yet; run `make run` first")
    title = project.config.registry.model
    note(f"wrote {write_report(stages, output / 'index.html', title, backbone_history(project.layout))}")


if __name__ == "__main__":
    main()
