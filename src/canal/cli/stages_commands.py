"""Commands about training: stage, tune, sums, basis, backbone."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canal import app
from canal.cli.parsing import (
    AsJson,
    Batch,
    Commit,
    Drop,
    DryRun,
    Duplicates,
    Everything,
    FileValues,
    GeneColumn,
    KeyFile,
    Label,
    LabelMap,
    Layer,
    MinGenes,
    Parent,
    Root,
    declared_source,
    examples,
    note,
    open_project,
    show_result,
    signer,
)
from canal.core.errors import ConfigError
from canal.report.gate_tables import map_table, verdict_table
from canal.report.project_tables import added_lines
from canal.report.study_figures import front_rows, tuning_table

if TYPE_CHECKING:
    from canal.app.backfilling import Backfilled
    from canal.app.declaring import Addition

Table = Annotated[Path | None, typer.Option(help="With --from-novel: the table the file was labelled with.")]


def add_to(to: typer.Typer) -> None:
    """Add the groups `stage`, `tune`, `sums`, `basis` and `backbone` to the command line."""
    stage = typer.Typer(no_args_is_help=True, help="Add a stage, or learn one again on a new branch.")
    stage.command(
        epilog=examples(
            "canal stage add lung --file lung.h5ad --values counts --batch donor --commit",
            "canal stage add myeloid --from-novel novel.csv",
        )
    )(add)
    stage.command(
        "map",
        epilog=examples("canal stage map lung.h5ad --label cell_type --values counts -o map.csv"),
    )(map_labels)
    stage.command(epilog=examples("canal stage relearn tumour --commit"))(relearn)
    to.add_typer(stage, name="stage")
    tune = typer.Typer(no_args_is_help=True, help="The study that chooses lambda and L of a stage.")
    tune.command(epilog=examples("canal tune show kang-ctrl"))(show)
    tune.command(epilog=examples("canal tune run kang-ctrl --jobs 2"))(run)
    to.add_typer(tune, name="tune")
    sums = typer.Typer(no_args_is_help=True, help="The sums that versions keep of what they learned.")
    sums.command(epilog=examples("canal sums backfill tumour"))(backfill)
    to.add_typer(sums, name="sums")
    basis = typer.Typer(
        no_args_is_help=True, help="The genes that a lineage's sums are of, and their levels."
    )
    basis.command(epilog=examples("canal basis export champion -o lab.json"))(export)
    basis.command(epilog=examples("canal basis adopt lab.json --commit"))(adopt)
    to.add_typer(basis, name="basis")
    backbone = typer.Typer(no_args_is_help=True, help="The network that a lineage begins with.")
    backbone.command(
        "import",
        epilog=examples("canal backbone import panglao_pretrain.pth --genes panglao_10000.h5ad --commit"),
    )(backbone_import)
    to.add_typer(backbone, name="backbone")


def add(
    name: Annotated[str, typer.Argument(help="Name of the stage and of its source.")],
    file: Annotated[Path | None, typer.Option(help="The labelled h5ad file.")] = None,
    from_novel: Annotated[
        Path | None,
        typer.Option(metavar="SHEET.csv", help="A filled-in sheet of `canal novel`, in place of a file."),
    ] = None,
    values: FileValues = None,
    label: Label = None,
    label_map: LabelMap = None,
    drop: Drop = None,
    layer: Layer = None,
    batch: Batch = None,
    gene_column: GeneColumn = None,
    duplicates: Duplicates = None,
    gene_map: Table = None,
    aliases: Table = None,
    orthologs: Table = None,
    min_genes: MinGenes = None,
    parent: Parent = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Do not tune: take λ and L from params.yaml.")
    ] = False,
    grow: Annotated[
        int, typer.Option(min=0, help="Most genes added to the parent's panel; canal's docs/panel.md.")
    ] = 0,
    everything: Everything = False,
    dry_run: DryRun = False,
    commit: Commit = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Declare a new stage in params.yaml if its cells pass the gate.

    `canal run` then learns it.
    """
    of_file: dict[str, Any] = {
        "label": label, "label_map": label_map, "values": values, "layer": layer, "batch": batch,
        "gene_column": gene_column, "duplicates": duplicates, "drop": drop or None,
    }  # fmt: skip
    if from_novel is None:
        if gene_map or aliases or orthologs:
            raise ConfigError("--gene-map, --aliases and --orthologs go with --from-novel")
        place: dict[str, Any] = {"parent": parent, "root": root, "fixed": fixed, "grow": grow}
        addition = _of_file(name, file, of_file | {"min_genes": min_genes}, place)
    else:
        _refuse_options_of_a_file(of_file)
        naming = app.discovering.Naming(orthologs=orthologs, aliases=aliases, gene_map=gene_map)
        options = app.discovering.SheetOptions(from_novel, file, naming, parent, fixed, min_genes, grow)
        addition = app.discovering.propose_from_novel(name, options, root)
    passed, lines = addition.verdict.passed, added_lines(addition.before, addition.text)
    document = {
        "stage": name, "added": passed and not dry_run, "committed": passed and commit and not dry_run,
        "dry_run": dry_run, "changes": lines, "verdict": addition.verdict.document(),
    }  # fmt: skip
    if not as_json:
        show_result(verdict_table(addition.verdict, everything), as_json=False)
    elif dry_run or not passed:
        show_result(document, as_json)
    if dry_run:
        app.declaring.require_passed(addition)
        note(f"would add to params.yaml:\n{lines}")
        return
    app.declaring.add_stage(addition, commit, root)
    if as_json:
        show_result(document, as_json)
    added = f"added stage {name} to params.yaml"
    if commit:
        note(f"{added} and committed it (git revert HEAD takes it back); next: canal run")
    else:
        note(f'{added}; next: git commit -m "Add stage {name}" params.yaml, then canal run')


def map_labels(
    file: Annotated[Path, typer.Argument(help="The labelled h5ad file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The sheet (.csv), to be decided by a person.")
    ] = None,
    values: FileValues = None,
    label: Label = None,
    layer: Layer = None,
    batch: Batch = None,
    gene_column: GeneColumn = None,
    min_genes: MinGenes = None,
    ontology: Annotated[
        str | None,
        typer.Option(help="obs column with Cell Ontology ids; by default cell_type_ontology_term_id."),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="Stage whose model is asked; by default the last.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing sheet.")] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Propose a cell type for each label of a file.

    By the model's answers, Cell Ontology ids and names.
    """
    declared = {
        "label": label, "values": values, "layer": layer, "batch": batch, "gene_column": gene_column,
        "min_genes": min_genes,
    }  # fmt: skip
    options = app.harmonising.MapOptions(declared, ontology, parent)
    found = app.harmonising.map_labels(file, output, options, overwrite, note, root).to_json()
    show_result(found if as_json else map_table(found), as_json)
    if found["unlabelled"]:
        note(
            f"{found['unlabelled']:,} cells have no label; the gate refuses them: leave them out of the file"
        )
    if output is not None:
        n = found["ambiguous"]
        todo = f"decide the {n} ambiguous label{'s' if n > 1 else ''} and read the others" if n else "read it"
        of_file = {"file": file, "label": label, "values": values or "VALUES", "layer": layer, "batch": batch,
                   "gene-column": gene_column, "min-genes": min_genes, "map": output}  # fmt: skip
        given = [
            word for name, value in of_file.items() if value is not None for word in (f"--{name}", str(value))
        ]
        note(f"wrote {output}; next: {todo}, then\n  canal stage add NAME {shlex.join(given)}")


def relearn(
    name: Annotated[str, typer.Argument(help="Stage to learn again, or backbone.")],
    dry_run: DryRun = False,
    commit: Commit = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Start a new branch of the lineage from this stage on.

    Old versions stay as they are.
    """
    relearned = app.declaring.relearn(name, commit, root, dry_run)
    if as_json:
        committed = commit and not dry_run
        show_result({"stages": relearned, "dry_run": dry_run, "committed": committed}, as_json)
    would = "would start a" if dry_run else "a"
    note(f"{would} new branch for {', '.join(relearned)}; `canal run` learns them, old versions stay")


def _of_file(name: str, file: Path | None, options: dict[str, Any], place: dict[str, Any]) -> "Addition":
    if file is None or options["values"] is None:
        missing = "" if file is None else f"; --values, the units of {file}, is missing"
        raise ConfigError(
            "a stage needs --file FILE.h5ad --values counts (or log1p_10k, log2p_10k), or --from-novel "
            f"SHEET.csv: give one of the two{missing}"
        )
    source = declared_source(file, options, place["root"])
    return app.declaring.propose_stage(name, source, **place)


def _refuse_options_of_a_file(given: dict[str, Any]) -> None:
    if names := [name for name, value in given.items() if value is not None]:
        options = ", ".join(
            "--map" if name == "label_map" else f"--{name.replace('_', '-')}" for name in names
        )
        raise ConfigError(
            f"--from-novel reads the cells with the options that they were labelled with: leave out {options}"
        )


StageName = Annotated[str, typer.Argument(help="A stage with tune: true.")]


def show(stage: StageName, root: Root = None, as_json: AsJson = False) -> None:
    """Show the Pareto-optimal trials, the published point and the choice."""
    document = app.declaring.tuned_document(open_project(root), stage)
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
    """Run a stage's study ahead of `canal run`.

    The run reuses its trials; no stage is learned here.
    """
    document = app.choosing.choose(open_project(root), stage, app.choosing.watch_trials, jobs)
    result = {**document, "rows": front_rows(document)} if as_json else tuning_table(document)
    show_result(result, as_json)
    note("next: canal run, which reuses these trials and learns the stage")


def backfill(
    stage: Annotated[str, typer.Argument(help="A learned stage.")],
    dry_run: DryRun = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version of a stage with sums of its cells.

    Its network is kept, nothing is trained.
    """
    if dry_run:
        planned = app.backfilling.planned_backfill(open_project(root), stage)
        if as_json:
            show_result({"dry_run": True, "stages": planned}, as_json)
            return
        for name, what in planned.items():
            note(f"{name}: {what}")
        return
    signed = signer(sign)
    made = app.backfilling.backfill(open_project(root), stage, note, signed)
    if as_json:
        show_result(made.to_json(), as_json)
    else:
        _report(made)


def _report(made: "Backfilled") -> None:
    cells = ", ".join(f"{n:,} cells of {stage}" for stage, n in made.sums.items())
    note(f"version {made.after} ({made.stage}) is version {made.before} with sums of {cells}")
    if made.gone:
        note(f"no sums of {', '.join(made.gone)}: the cells are gone")
    if made.lacking:
        note(f"types that only the network knows: {', '.join(made.lacking)}")
    note("next: commit dvc.lock and ledger.jsonl; the next stage is learned on the version with sums")


def export(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file .json, or a folder to write basis.json into.")
    ],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's basis, for another lineage.

    Its sums are then compatible with this one's.
    """
    path = app.beginning.export_basis(open_project(root), version, output)
    if as_json:
        show_result({"file": str(path)}, as_json)
    note(f"wrote {path}; next, in the other project: canal basis adopt {path.name}")


def adopt(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file that canal basis export wrote.")],
    dry_run: DryRun = False,
    commit: Commit = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Adopt another lineage's basis, in a project without learned stages."""
    project = open_project(root)
    made = app.beginning.adopt_basis(project, path, dry_run)
    if dry_run and not as_json:
        what = "params.yaml would name it" if made.changed else "params.yaml names it already"
        note(f"{made.path}: {made.genes} genes, chosen on cells of {', '.join(made.seen)}; {what}")
        return
    if commit and not dry_run:
        project.commit(f"Adopt basis {made.digest[:12]}", made.path)
    if as_json:
        show_result({**made.to_json(), "dry_run": dry_run}, as_json)
        return
    what = "params.yaml names it" if made.changed else "nothing to do: params.yaml names it already"
    note(f"{made.path}: {made.genes} genes, chosen on cells of {', '.join(made.seen)}; {what}")
    note("next: canal run" if commit else f"next: commit params.yaml and {made.path}, then canal run")


def backbone_import(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT.pth", help="Weights of scBERT.")],
    genes: Annotated[Path, typer.Option(help="Gene symbols in the order of its rows: text, JSON or h5ad.")],
    gene2vec: Annotated[
        Path | None, typer.Option(help="Its gene vectors (.npy, .csv, .tsv), to prove that the genes fit.")
    ] = None,
    dry_run: DryRun = False,
    commit: Commit = False,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Start the lineage from published weights.

    They are checked, registered, and named in params.yaml.
    """
    signed, project = signer(sign), open_project(root)
    files = app.beginning.PublishedFiles(checkpoint, genes, gene2vec)
    if dry_run:
        found = app.beginning.read_backbone(files, project.config.backbone.preset)
        if as_json:
            show_result({**app.beginning.backbone_facts(files.name, found), "dry_run": True}, as_json)
            return
        note(
            f"{checkpoint.name} fits: {len(found.vocabulary)} genes, {found.config.depth} blocks of width "
            f"{found.config.dim}; it would be registered, and backbones/{files.name} named in params.yaml"
        )
        return
    imported = app.beginning.import_published(project, files, signed)
    if commit:
        project.commit(f"Import backbone {imported.folder.name}")
    backbone, version = imported.backbone, imported.version
    if as_json:
        facts = app.beginning.backbone_facts(imported.folder.name, backbone)
        of_version = {"version": version.number, "committed": commit, "conflict": imported.conflict}
        show_result({**facts, "dry_run": False, **of_version}, as_json)
    note(
        f"imported {checkpoint.name}: {len(backbone.vocabulary)} genes, {backbone.config.depth} blocks of "
        f"width {backbone.config.dim}; it is {version.model} {version.number}, and params.yaml names it"
        + (" (committed)" if commit else "")
    )
    note(f"but {imported.conflict}" if imported.conflict else "next: canal run")
