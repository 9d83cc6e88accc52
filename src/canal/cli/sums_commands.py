"""sums backfill, basis export, adopt: the exact memory of versions, and the genes that it is of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canal.cli.parsing import AsJson, Commit, KeyFile, Root, note, show_result, signer

if TYPE_CHECKING:
    from canal.app.backfilling import Backfilled


def add_to(app: typer.Typer) -> None:
    """Add the group `sums` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="The sums that versions keep of what they learned.")
    group.command(epilog="Example: canal sums backfill tumour")(backfill)
    app.add_typer(group, name="sums")


def backfill(
    stage: Annotated[str, typer.Argument(help="A learned stage.")],
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Register a version of a stage with sums of its cells and its network as it is; nothing is relearned."""
    from canal.app.backfilling import backfill as fill
    from canal.app.project import Project

    signed = signer(sign)
    made = fill(Project.open(root), stage, note, signed)
    if as_json:
        show_result(made.to_json(), as_json)
    else:
        _tell(made)


def _tell(made: "Backfilled") -> None:
    cells = ", ".join(f"{n:,} cells of {stage}" for stage, n in made.sums.items())
    note(f"version {made.after} ({made.stage}) is version {made.before} with sums of {cells}")
    if made.gone:
        note(f"no sums of {', '.join(made.gone)}: the cells are gone")
    if made.lacking:
        note(f"types that only the network knows: {', '.join(made.lacking)}")
    note("next: commit dvc.lock and ledger.jsonl; the next stage is learned on the version with sums")


# basis export, adopt: what the sums of a lineage are sums of, shared between lineages.


def add_basis_to(app: typer.Typer) -> None:
    """Add the group `basis` to the command line."""
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
