"""sums backfill: the exact memory of versions that were learned without one."""

from typing import TYPE_CHECKING, Annotated

import typer

from canal.cli.parsing import AsJson, KeyFile, Root, note, show_result, signer

if TYPE_CHECKING:
    from canal.app.backfilling import Backfilled


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
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
