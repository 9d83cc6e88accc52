"""Commands about a project as a whole: init, plan, run, status, watch, doctor, upgrade."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from canal import app
from canal.cli.parsing import (
    AsJson,
    Batch,
    Drop,
    DryRun,
    Duplicates,
    FileValues,
    GeneColumn,
    Label,
    LabelMap,
    Layer,
    MinGenes,
    Root,
    declared_source,
    examples,
    note,
    open_project,
    show_result,
)
from canal.core.errors import CanalError, ConfigError
from canal.report.drift_tables import plot, watch_group
from canal.report.gate_tables import verdict_table
from canal.report.project_tables import doctor_table, plan_table, status_group

Method = Literal["exact", "combined", "published"]


def add_to(to: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    to.command(
        epilog=examples(
            "canal init demo --demo",
            "canal init pancreas --first baron.h5ad --label cell_type --values counts",
            "canal init published --stream published-pancreas --data . --values counts",
        )
    )(init)
    to.command(epilog=examples("canal plan", "canal plan --json | jq '.stages[] | {stage, fate}'"))(plan)
    to.command(epilog=examples("canal run", "canal run --dry-run"))(run)
    to.command(epilog=examples("canal status", "canal status --json | jq '.needs[].command'"))(status)
    to.command(
        epilog=examples(
            "canal watch",
            "canal watch 2 --since 2026-01 --by file",
            "canal watch --json | jq '.alarms[].what'",
        )
    )(watch)
    to.command(epilog=examples("canal doctor", "canal doctor --json | jq '.[] | .found'"))(doctor)
    to.command(epilog=examples("canal upgrade --dry-run", "canal upgrade"))(upgrade)


def init(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The new project's folder.")],
    first: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The labelled h5ad file of the first stage.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Name of the first stage; by default the file's.")] = None,
    label: Label = None,
    values: FileValues = None,
    label_map: LabelMap = None,
    drop: Drop = None,
    layer: Layer = None,
    batch: Batch = None,
    gene_column: GeneColumn = None,
    duplicates: Duplicates = None,
    min_genes: MinGenes = None,
    species: Annotated[
        Literal["human", "mouse"] | None,
        typer.Option(help="Whose genes the lineage learns; by default human. No gene is translated."),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Who learns: sums in seconds (exact, the default), the network in minutes (published, of a "
            "stream the default), or both (combined)."
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Learn canal's embedded data: four stages of human immune cells.")
    ] = False,
    stream: Annotated[
        str | None, typer.Option(metavar="NAME", help="Learn a published experiment's stages (see --data).")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of a stream: where its files STAGE.h5ad lie.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Of a stream: other stages, in this order.")
    ] = None,
    sources: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Of a stream: what differs, a mapping for each stage.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="Of a stream: a type to hold out as novel.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Begin a project of your own, or canal's demonstration.

    A folder with git, DVC, parameters, pipeline and a CI workflow.
    """
    of_file: dict[str, Any] = {
        "label": label, "label_map": label_map, "values": values, "layer": layer, "batch": batch,
        "gene_column": gene_column, "duplicates": duplicates, "min_genes": min_genes, "drop": drop or None,
    }  # fmt: skip
    of_stream: dict[str, Any] = {"data": data, "order": order, "sources": sources, "held_out": held_out}
    _require_fitting(first, demo, stream, of_file, of_stream)
    _require_own(demo, stream, method, species)
    app.creating.require_room(folder)
    learner: Method = method or ("published" if stream else "exact")
    wish = app.creating.Wish(learner, demo=demo, species=species or "human")
    if first is not None:
        of_first = declared_source(first, of_file, folder)
        name = stage or app.creating.name_from(first.stem, "first")
        wish = replace(wish, first=app.creating.FirstStage(name, of_first))
    if stream is not None:
        wish = replace(wish, stream=_found_stream(stream, of_file, of_stream, folder))
    verdicts: list[Any] = []
    show = verdicts.append if as_json else lambda one: show_result(verdict_table(one), as_json=False)
    made = app.creating.create(folder, wish, show, dry_run)
    if as_json:
        committed = not dry_run and made.problem is None
        document = {
            "root": str(made.root), "files": list(made.files), "dry_run": dry_run, "committed": committed,
            "problem": made.problem, "verdicts": [one.document() for one in verdicts],
        }  # fmt: skip
        show_result(document, as_json)
    if dry_run:
        note(f"would make {made.root}, of {len(made.files)} files: {', '.join(made.files)}")
        return
    note(f"made {made.root}: {len(made.files)} files" + ("" if made.problem else ", committed to git"))
    if made.problem:
        note(f"but not committed: {made.problem}; before the first run: git commit --message Begin")
    begun = first or demo or stream
    begin = "canal plan, canal run" if begun else "canal stage add NAME --file FILE.h5ad --values counts"
    note(f"next: cd {shlex.quote(os.path.relpath(made.root))}; {begin}")


def _require_own(demo: bool, stream: str | None, method: str | None, species: str | None) -> None:
    """Refuse what a demonstration or a stream brings itself: they would not listen to it."""
    if demo and (method or species):
        given, what = ("--method", method) if method else ("--species", species)
        raise ConfigError(
            f"{given} {what}: the demonstration comes with its parameters, human genes and the method "
            f"combined: leave one of {given} and --demo out"
        )
    if stream is not None and species is not None:
        raise ConfigError(
            f"--species {species}: a stream names its species itself: leave one of --species and --stream out"
        )


def _require_fitting(
    first: Path | None,
    demo: bool,
    stream: str | None,
    of_file: dict[str, Any],
    of_stream: dict[str, Any],
) -> None:
    """Refuse options that say something of what was not asked for, before anything is looked at."""
    asked = {"--first FILE": first, "--demo": demo or None, "--stream NAME": stream}
    both = [name for name, value in asked.items() if value is not None]
    if len(both) > 1:
        raise ConfigError(f"{' and '.join(both)} ask for different projects: give one of the two")
    of_file = {"map" if name == "label_map" else name: value for name, value in of_file.items()}
    for given, missing, hint in (
        (of_file, first is None and stream is None, "of which file? --first FILE.h5ad names it"),
        (of_stream, stream is None, "of which stream? --stream NAME names it"),
    ):
        if missing and (said := [name for name, value in given.items() if value not in (None, [])]):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise ConfigError(f"{options}: {hint}")
    if stream and of_file["drop"]:
        raise ConfigError("--drop: of a stream, --map FILE says which labels are left out")
    if (first or stream) and of_file["values"] is None:
        what = first or f"the files of {stream}"
        raise ConfigError(f"--values, the units of {what}, is missing: counts, log1p_10k or log2p_10k")


def _found_stream(
    name: str, of_file: dict[str, Any], of_stream: dict[str, Any], folder: Path
) -> "app.streams.Stream":
    """Return a stream over the user's files, and tell what was found of each."""
    declared = {key: value for key, value in of_file.items() if key != "label_map"}
    options = app.streams.StreamOptions(
        of_stream["data"] or Path(),
        tuple(one.strip() for one in (of_stream["order"] or "").split(",") if one.strip()),
        declared,
        of_file["label_map"],
        of_stream["sources"],
        tuple(of_stream["held_out"] or ()),
    )
    found = app.streams.find_stream(name, options, folder)
    note(f"{name}: {found.about}")
    for one in found.sources:
        known = "as expected" if one.expected else "computed: no expected one is known; params.yaml keeps it"
        note(f"{one.stage}: {one.source['path']}, sha256 {one.source['sha256']} ({known})")
    for unseen, path in found.unseen.items():
        note(f"{unseen} is never learned; once a version serves: canal annotate {path} -o {unseen}.h5ad")
    if found.published:
        note(f"published: {found.published}")
    return found


def plan(root: Root = None, as_json: AsJson = False) -> None:
    """Show what `canal run` would learn, restore or refuse.

    With the steps of DVC that would run; nothing is touched.
    """
    _plan(root, as_json)


def run(dry_run: DryRun = False, root: Root = None, as_json: AsJson = False) -> None:
    """Learn and register the stages that params.yaml asks for.

    Runs gate, split, learning, evaluation and registration; says what to commit.
    """
    if dry_run:
        _plan(root, as_json)
        return
    raise typer.Exit(app.running.main(root, as_json))


def _plan(root: Path | None, as_json: bool) -> None:
    planned = app.planning.plan(open_project(root))
    show_result(planned.to_json() if as_json else plan_table(planned.to_json()), as_json)
    if planned.refused:
        for refusal in planned.refusals:
            note(f"canal: {refusal}")
        note("canal: a run would be refused: see above; nothing was touched")
        raise typer.Exit(1)
    for warning in planned.warnings:
        note(f"warning: {warning}")
    learned = sum(one.fate == "learn" for one in planned.stages)
    registered = sum(one.fate == "register" for one in planned.stages)
    if registered:
        note(f"next: canal run ({registered} to register)")
    elif not planned.steps:
        note("nothing to do: everything that params.yaml asks for is here")
    else:
        note(f"next: canal run ({len(planned.steps)} of {planned.n_steps} steps; {learned} to learn)")


def status(root: Root = None, as_json: AsJson = False) -> None:
    """Show which version serves, what is new and what waits for you.

    With the command that does it. Nothing is changed; `canal doctor` looks for what is broken.
    """
    if root is None and not app.project.is_project(Path.cwd()):
        found = app.status.no_project(Path.cwd())
    else:
        try:
            found = app.status.status(open_project(root))
        except CanalError as error:
            raise CanalError(f"{error}. `canal doctor` checks everything else") from error
    show_result(found if as_json else status_group(found), as_json)


def watch(
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; by default the champion, else the newest.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="The first month to show.")] = None,
    by: Annotated[
        Literal["month", "file"], typer.Option(help="What is judged as one: a month's cells, or a file's.")
    ] = "month",
    figure: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, too: .svg, .png or .pdf.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show whether new cells are still like the test cells.

    By the records of what a version labelled: Unassigned share, novelty, confidence, types, genes and depth,
    beside what was measured on its test cells. Exit code 3 where something left its range, 1 for an error.
    """
    document = app.watching.watch(open_project(root), version, since, by)
    show_result(document if as_json else watch_group(document), as_json)
    if figure is not None:
        note(f"wrote {plot(document, figure)}")
    if document["alarms"]:
        raise typer.Exit(app.watching.ALARM_CODE)


def doctor(root: Root = None, as_json: AsJson = False) -> None:
    """Check canal, its packages, the project and this machine.

    For when other commands fail, also outside of projects; nothing is changed. Exit code 1 if anything is
    broken.
    """
    checks = app.doctor.doctor(root or Path.cwd())
    show_result(checks if as_json else doctor_table(checks), as_json)
    broken = [one["name"] for one in checks if one["state"] == "broken"]
    if broken:
        note(f"canal: broken: {', '.join(broken)}")
        raise typer.Exit(1)


def upgrade(dry_run: DryRun = False, root: Root = None, as_json: AsJson = False) -> None:
    """Move a project to this canal's pipeline.

    What was learned is restored, never learned again.
    """
    moved = app.upgrading.upgrade(open_project(root), dry_run)
    if as_json:
        show_result(moved.to_json(), as_json)
        return
    would = "would be " if dry_run else ""
    for name, what in moved.files.items():
        note(f"{name}: {would}{what}")
    if not moved.files:
        note(f"nothing to do: the project has the pipeline of canal {moved.after}")
        return
    if moved.left:
        note(f"no longer used, and left as they are: {', '.join(moved.left)}")
    if not dry_run:
        note(f"the project uses canal {moved.after}; next: git diff, canal plan, canal run, then commit")
