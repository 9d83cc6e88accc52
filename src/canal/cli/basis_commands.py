"""basis export, adopt: what the sums of a lineage are sums of, shared between lineages."""

from pathlib import Path
from typing import Annotated

import typer

from canal.cli.parsing import AsJson, Commit, Root, note, show_result


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    group = typer.Typer(
        no_args_is_help=True, help="The genes that a lineage's sums are of, and their levels."
    )
    group.command(epilog="Example: canal basis export champion -o lab.json")(export)
    group.command(epilog="Example: canal basis adopt lab.json --commit")(adopt)
    app.add_typer(group, name="basis")


def export(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file .json, or a folder to write basis.json into.")
    ],
    root: Root = None,
) -> None:
    """Write the basis of a version, for another lineage that is to be comparable with this one."""
    from canal.app.adopting import export_basis
    from canal.app.project import Project

    path = export_basis(Project.open(root), version, output)
    note(f"wrote {path}; next, in the other project: canal basis adopt {path.name}")


def adopt(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="What canal basis export wrote.")],
    commit: Commit = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Let a project that has not begun add up its cells on another lineage's basis."""
    from canal.app.api import adopt_basis

    made = adopt_basis(path, commit, root)
    if as_json:
        show_result(made.to_json(), as_json)
        return
    what = "params.yaml names it" if made.changed else "nothing to do: params.yaml names it already"
    note(f"{made.path}: {made.genes} genes, chosen on cells of {', '.join(made.seen)}; {what}")
    note("next: make run" if commit else f"next: commit params.yaml and {made.path}, then make run")
