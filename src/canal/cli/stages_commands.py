"""stage add, relearn, tune show, run: the lessons of a lineage, and the study that chooses their settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canal.cli.parsing import AsJson, Commit, Root, note, show_result
from canal.core.errors import ConfigError

if TYPE_CHECKING:
    from canal.app.api import Addition

Table = Annotated[Path | None, typer.Option(help="With --from-novel: the table the file was labelled with.")]


def add_to(app: typer.Typer) -> None:
    """Add the group `stage` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Add a stage, or learn one again on a new branch.")
    group.command(
        epilog="Example: canal stage add lung --file lung.h5ad --values counts --batch donor --commit    "
        "canal stage add myeloid --from-novel novel.csv"
    )(add)
    group.command(epilog="Example: canal stage relearn tumour --commit")(relearn)
    app.add_typer(group, name="stage")


def add(
    name: Annotated[str, typer.Argument(help="Name of the stage and of its source.")],
    file: Annotated[Path | None, typer.Option(help="The labelled h5ad file.")] = None,
    from_novel: Annotated[
        Path | None,
        typer.Option(metavar="SHEET.csv", help="A filled-in sheet of `canal novel`, in place of a file."),
    ] = None,
    values: Annotated[str | None, typer.Option(help="counts, log1p_10k or log2p_10k; with --file.")] = None,
    label: Annotated[
        str | None, typer.Option(help="obs column with cell types; by default cell_type.")
    ] = None,
    label_map: Annotated[
        Path | None, typer.Option("--map", help="CSV: published label, cell type (empty: drop it).")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="X, raw or a layer's name; by default X.")] = None,
    batch: Annotated[str | None, typer.Option(help="obs column with batches.")] = None,
    gene_column: Annotated[str | None, typer.Option(help="var column with gene symbols.")] = None,
    gene_map: Table = None,
    aliases: Table = None,
    orthologs: Table = None,
    min_genes: Annotated[int | None, typer.Option(min=0, help="Expressed genes a cell must have.")] = None,
    parent: Annotated[str | None, typer.Option(help="Stage to learn on; by default the last.")] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="λ and L from params.yaml, though it has a section tuning.")
    ] = False,
    grow: Annotated[
        int, typer.Option(min=0, help="Genes that it may add to its parent's panel; docs/panel.md.")
    ] = 0,
    commit: Commit = False,
    root: Root = None,
) -> None:
    """Declare a new stage in params.yaml if its cells pass the gate; `make run` then learns it."""
    from canal.app.api import add_stage
    from canal.quality.verdict import render

    of_file: dict[str, Any] = {
        "label": label, "label_map": label_map, "values": values, "layer": layer, "batch": batch,
        "gene_column": gene_column,
    }  # fmt: skip
    if from_novel is None:
        if gene_map or aliases or orthologs:
            raise ConfigError("--gene-map, --aliases and --orthologs go with --from-novel")
        place: dict[str, Any] = {"parent": parent, "root": root, "fixed": fixed, "grow": grow}
        addition = _of_file(name, file, of_file | {"min_genes": min_genes}, place)
    else:
        from canal.annotation.naming import Naming
        from canal.app.teaching import FromNovel, propose_from_novel

        _refuse_options_of_a_file(of_file)
        naming = Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
        wish = FromNovel(from_novel, file, naming, parent, fixed, min_genes, grow)
        addition = propose_from_novel(name, wish, root)
    show_result(render(addition.verdict), as_json=False)
    add_stage(addition, commit, root)
    note(f"added stage {name} to params.yaml" + (" and committed it" if commit else "") + "; next: make run")


def relearn(
    name: Annotated[str, typer.Argument(help="Stage to learn again, or backbone.")],
    commit: Commit = False,
    root: Root = None,
) -> None:
    """Start a new branch of the lineage from this stage on; old versions stay as they are."""
    from canal.app.api import relearn as branch

    touched = branch(name, commit, root)
    note(f"new branch for {', '.join(touched)}; `make run` learns them, old versions stay")


def _of_file(name: str, file: Path | None, wishes: dict[str, Any], place: dict[str, Any]) -> "Addition":
    from canal.app.api import propose_stage
    from canal.app.declare import declare, trimmed_labels

    if file is None or wishes["values"] is None:
        missing = "" if file is None else f"; --values, the units of {file}, is missing"
        raise ConfigError(
            "a stage is made from --file FILE.h5ad --values counts (or log1p_10k, log2p_10k), or from "
            f"--from-novel SHEET.csv: give one of both{missing}"
        )
    label_map = wishes.pop("label_map")
    declared = {**wishes, "label": wishes["label"] or "cell_type", "layer": wishes["layer"] or "X"}
    source = declare(file, declared, label_map, place["root"])
    given = source.get("label_map")
    if trimmed := trimmed_labels(file, declared["label"], given):
        source["label_map"] = (given or {}) | trimmed
    if blank := [label for label in trimmed if label != label.strip()]:
        examples = ", ".join(map(repr, blank[:5]))
        note(f"{len(blank)} labels have blanks at their ends ({examples}): label_map maps them without")
    return propose_stage(name, source, **place)


def _refuse_options_of_a_file(given: dict[str, Any]) -> None:
    if found := [name for name, value in given.items() if value is not None]:
        options = ", ".join(
            "--map" if name == "label_map" else f"--{name.replace('_', '-')}" for name in found
        )
        raise ConfigError(
            f"--from-novel reads the cells as they were read when they were labelled: leave out {options}"
        )


# tune show, tune run: the study that chooses lambda and L of a stage.

StageName = Annotated[str, typer.Argument(help="A stage that stands in finetune.tuned.")]


def add_tuning_to(app: typer.Typer) -> None:
    """Add the group `tune` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="The study that chooses lambda and L of a stage.")
    example = "Example: canal tune"
    group.command(epilog=f"{example} show kang-ctrl")(show)
    group.command(epilog=f"{example} run kang-ctrl --jobs 2")(run)
    app.add_typer(group, name="tune")


def show(stage: StageName, root: Root = None, as_json: AsJson = False) -> None:
    """Show the trials that no other one beats, the published point and what was chosen."""
    from canal.app.choosing import tuned_document
    from canal.app.project import Project
    from canal.report.study_figures import front_rows, tuning_table

    document = tuned_document(Project.open(root), stage)
    result = {**document, "rows": front_rows(document)} if as_json else tuning_table(document)
    show_result(result, as_json)


def run(
    stage: StageName,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the study; by default tuning.jobs.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Run a stage's study ahead of `make run`, which then finds its trials done; nothing is learned."""
    from canal.app.choosing import choose
    from canal.app.project import Project
    from canal.app.step import watch_trials
    from canal.report.study_figures import front_rows, tuning_table

    document = choose(Project.open(root), stage, watch_trials, jobs)
    result = {**document, "rows": front_rows(document)} if as_json else tuning_table(document)
    show_result(result, as_json)
    note("next: make run, which takes these trials and learns the stage")
