"""The command line's entry point `main`, and the commands versions, show, diff, registry and report."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from canal import __version__, app
from canal.cli import (
    cells_commands,
    labelling_commands,
    ledger_commands,
    models_commands,
    project_commands,
    stages_commands,
    versions_commands,
)
from canal.cli.parsing import (
    AsJson,
    KeyFile,
    Root,
    examples,
    flowing,
    note,
    open_project,
    show_result,
    signer,
)
from canal.core.errors import CanalError, RegistryError, tell
from canal.core.files import system_refusal
from canal.core.packages import DISTRIBUTION, named_packages, other_canal
from canal.core.progress import watch
from canal.report.registry_tables import difference_group, rebuilt_table, rebuilt_view
from canal.report.terminal import lineage_report, version_panel, versions_table
from canal.runtime.startup import INTERRUPTED, begin, exit_code, leave

PANELS = {
    "Label cells": ("annotate", "collect", "novel", "explain", "markers", "who", "watch", "models", "serve"),
    "Learn": ("plan", "run", "validate", "stage", "tune", "backbone", "basis", "sums"),
    "Registry": (
        "versions",
        "show",
        "compare",
        "promote",
        "rollback",
        "retire",
        "diff",
        "report",
        "registry",
        "ui",
    ),
    "Prove": ("lineage", "impact", "audit", "ledger", "keys", "unlearn", "erase", "schema"),
    "Share": ("export", "import", "share", "merge"),
    "Project": ("status", "init", "doctor", "upgrade"),
}
"""The panels of `canal --help` -> their commands, the most used first."""


class InPanels(TyperGroup):
    """The commands of `canal`, in `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names, panel by panel."""
        for panel, names in PANELS.items():
            for name in names:
                self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        return [name for names in PANELS.values() for name in names]


_ABOUT = "An annotator of single-cell RNA-seq data that keeps learning, with every label provable."

command_line = typer.Typer(
    name="canal",
    help=_ABOUT,
    cls=InPanels,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
registry_app = typer.Typer(no_args_is_help=True, help="The MLflow registry that holds the versions.")
for module in (
    labelling_commands,
    cells_commands,
    models_commands,
    versions_commands,
    ledger_commands,
    stages_commands,
    project_commands,
):
    module.add_to(command_line)
command_line.add_typer(registry_app, name="registry")


def main() -> NoReturn:
    """Run the command line; a `CanalError` becomes one message and exit code 1."""
    begin()
    code = 0
    if "_CANAL_COMPLETE" not in os.environ:  # a shell that completes words wants no lines beside them
        watch()
        if (clash := other_canal()) is not None:
            tell(f"canal: {clash}")
    try:
        with named_packages(f"`{_command()}`"):
            command_line()
    except CanalError as error:
        tell(f"canal: {error}")
        code = 1
    except OSError as error:
        message = system_refusal(error)
        if message is None:
            raise
        tell(f"canal: {message}")
        code = 1
    except KeyboardInterrupt as error:
        code = _interrupted(error)
    except SystemExit as end:  # typer turns Ctrl-C into an exit without a word
        code = _interrupted(end) if end.code == INTERRUPTED else exit_code(end.code)
    leave(code)


def _interrupted(error: BaseException | None) -> int:
    """Tell in one line that Ctrl-C ended the command, and how to go on; `canal run` has told it itself."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    if error is not None:
        tell("; ".join(["canal: interrupted", *getattr(error, "__notes__", ())]))
    return INTERRUPTED


def _command() -> str:
    """Return canal's command in the words of this call, without arguments."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    group = words[:1] and words[0] in {group.name for group in command_line.registered_groups}
    return " ".join(["canal", *words[: 2 if group else 1]])


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{DISTRIBUTION} {__version__}")
        raise typer.Exit


@command_line.callback(help=_ABOUT)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show canal's version.")
    ] = False,
) -> None:
    """Declare the options of `canal` itself."""


@command_line.command(epilog=examples("canal versions", "canal versions --json | jq '.[].stage'"))
def versions(root: Root = None, as_json: AsJson = False) -> None:
    """List the registered versions with their aliases and metrics."""
    rows = app.versions.version_rows(open_project(root))
    show_result(rows if as_json else versions_table(rows), as_json)


@command_line.command(epilog=examples("canal show 3", "canal show candidate --json"))
def show(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: its provenance, cell types and metrics."""
    view = app.versions.version_view(open_project(root), version)
    show_result(view if as_json else version_panel(view), as_json)


@command_line.command(epilog=examples("canal diff 2 3", "canal diff 2 3 lab.h5ad --cells changed.csv"))
def diff(
    before: Annotated[str, typer.Argument(metavar="V1", help="Number or alias.")],
    after: Annotated[str, typer.Argument(metavar="V2", help="Number or alias.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.h5ad]", help="Cells that both are to label.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Write the file's cells whose label changes, as CSV.")
    ] = None,
    layer: Annotated[str, typer.Option(help="X, raw or a layer's name.")] = "X",
    values: Annotated[str, typer.Option(help="auto, counts, log1p_10k or log2p_10k.")] = "auto",
    gene_column: Annotated[str | None, typer.Option(help="var column with gene symbols.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show the differences between two versions.

    Of a file, also the cells whose label changes, by old and new type.
    """
    if cells is not None and file is None:
        raise RegistryError("--cells lists the cells of a file: name the file")
    options = None
    if file is not None:
        options = app.promoting.Options(layer=layer, values=values, gene_column=gene_column)
    difference = app.promoting.diff(open_project(root), before, after, file, options, note)
    if cells is not None and difference.cells is not None:
        difference.cells.write(cells)
        note(f"wrote {cells}: {len(difference.cells.table)} cells")
    document = difference.to_json()
    show_result(document if as_json else difference_group(document), as_json)


@registry_app.command("sync", epilog=examples("canal registry sync"))
def registry_sync(sign: KeyFile = None, root: Root = None, as_json: AsJson = False) -> None:
    """Register every finished stage that is not registered yet.

    Then the state of the lineage is shown.
    """
    signed = signer(sign)
    project = open_project(root)
    synced = app.versions.registry_sync(project, signed)
    if synced.moved:
        note(f"this project was moved or copied: updated {synced.moved} paths in mlflow.db to this folder")
    made = ", ".join(f"{version.model} {version.number} ({version.stage})" for version in synced.made)
    again = ", ".join(f"version {version.number} ({version.stage})" for version in synced.measured)
    if again:
        note(f"measured again, on record in the ledger: {again}")
    if made or not again:
        note(f"registered {made}" if made else "nothing to do: every finished stage is registered")
    rows, measured = app.versions.version_rows(project), app.versions.evaluations(project)
    if as_json:
        show_result({"versions": rows, "evaluations": measured}, as_json)
        return
    show_result(lineage_report(measured, rows), as_json=False)


@registry_app.command("ui", epilog=examples("canal registry ui", "canal registry ui --port 5050"))
def registry_ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 5000,
    root: Root = None,
) -> None:
    """Open MLflow's pages: runs, curves, models.

    Of the project's store, for this machine alone, until Ctrl-C ends them.
    """
    raise typer.Exit(app.versions.mlflow_pages(open_project(root), port))


@command_line.command(
    epilog=examples("canal ui", "canal ui --token-file token", "canal ui --mlflow http://127.0.0.1:5000")
)
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 5002,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token of the login; without it the board is for reading.", dir_okay=False
        ),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URL", help="Where MLflow's own pages are, to link to them.")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="Most megabytes of a file that is dropped.")] = 2000,
    sign: KeyFile = None,
    root: Root = None,
) -> None:
    """Open the board: the registry in a browser.

    Versions, data, ledger, gate and withdrawals; label a file; with a login promote, roll back, retire,
    take cells out and name novel groups. For this machine alone, until Ctrl-C ends it.
    """
    app.board.serve(root, app.board.BoardOptions(port, token_file, mlflow, max_mb, sign))


@registry_app.command(
    "rebuild",
    epilog=examples('canal registry rebuild --by "A. Person" --why "the disk of mlflow.db died"'),
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
    """Rebuild a lost MLflow store from models and ledger.

    Numbers, keys and aliases are the same again.
    """
    signed = signer(sign, by)
    view = rebuilt_view(
        app.versions.registry_rebuild(open_project(root), by, why, also or (), without or (), signed)
    )
    show_result(view if as_json else rebuilt_table(view), as_json)
    note("next: canal audit, then commit ledger.jsonl")


@command_line.command(
    epilog=examples("canal report", "canal report 3 --against champion", "canal report -o page --json")
)
def report(
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; by default the candidate, else the newest.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="V",
            help="Number, alias or parent; by default the champion, of it and without one its parent.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for index.html.")] = Path("report"),
    training: Annotated[
        bool, typer.Option("--training", help="Write training.html, too: how each stage was trained.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write the page that a person promotes a version by.

    One offline HTML file: what the version does better and worse than another, the policy's rules, every
    type, confusions, a map, genes, study and cost; beside it README.md, the model card.
    """
    page, document = app.reviewing.write_pages(open_project(root), output, version, against, training)
    if as_json:
        show_result({"page": str(page), **document}, as_json)
    note(f"wrote {page}")


flowing(command_line)

if __name__ == "__main__":
    main()
