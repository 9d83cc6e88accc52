"""promote, compare, rollback, retire: who serves."""

from pathlib import Path
from typing import Annotated

import typer

from canal.cli.parsing import AsJson, By, KeyFile, Root, Why, note, show_result, signer


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    example = "Example: canal"
    app.command(epilog=f'{example} promote candidate --by "A. Person" --why "lung atlas, reviewed"')(promote)
    app.command(epilog=f"{example} compare candidate --file lab.h5ad --stage lung")(compare)
    app.command(epilog=f'{example} rollback --by "A. Person" --why "T cells of donor 4 look wrong"')(rollback)
    app.command(epilog=f'{example} retire 2 --by "A. Person" --why "donor withdrew consent"')(retire)


def promote(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    by: By = "",
    why: Why = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only; change nothing.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(help="Let a rule (or a pattern of rules) pass though it fails; on record."),
    ] = None,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it passes the policy; exit code 1 when a rule fails."""
    from canal.app.project import Project
    from canal.app.promoting import Move, judge_version
    from canal.app.promoting import promote as move
    from canal.core.errors import PolicyError
    from canal.registry.ledger.ledger import plain_name, plain_reason
    from canal.registry.promotion.policy import failed
    from canal.report.registry_tables import rulings_table

    if not dry_run:
        plain_name(by, "the person (--by)")
        plain_reason(why)
    signed = signer(sign, by)
    project = Project.open(root)
    judgement = judge_version(project, version, override or ())
    document = judgement.to_json()
    if dry_run:
        show_result(document if as_json else rulings_table(document), as_json)
        if failed(judgement.rulings):
            raise typer.Exit(1)
        return
    if not as_json:
        show_result(rulings_table(document), as_json=False)
    try:
        entry = move(project, judgement, Move(by, why, signed))
    except PolicyError:
        if as_json:
            show_result(document, as_json)
        raise
    if as_json:
        show_result({**document, "entry": entry.document}, as_json)
    note(_told(f"version {judgement.version.number} ({judgement.version.stage}) is the champion", entry.seq))


def compare(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    against: Annotated[str, typer.Option("--with", help="The other version.")] = "champion",
    file: Annotated[Path | None, typer.Option(help="Score both on this labelled h5ad file, too.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="Whose declaration to read the file with; by default the last.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Score a version and the champion on the same cells: intervals, McNemar's test, types lost."""
    from canal.app.project import Project
    from canal.app.promoting import compare as score
    from canal.report.registry_tables import comparison_table

    document = score(Project.open(root), version, against, file, stage).to_json()
    show_result(document if as_json else comparison_table(document), as_json)


def rollback(
    by: By,
    why: Why,
    to: Annotated[
        str | None, typer.Option(help="Number or alias; by default the champion before this one.")
    ] = None,
    sign: KeyFile = None,
    root: Root = None,
) -> None:
    """Let the previous champion, or any ready version, serve again: one move, recorded."""
    from canal.app.project import Project
    from canal.app.promoting import Move
    from canal.app.promoting import rollback as move

    entry = move(Project.open(root), to, Move(by, why, signer(sign, by)))
    note(_told(f"version {entry.version} is the champion again", entry.seq))


def retire(
    version: Annotated[str, typer.Argument(help="Number or alias.")],
    by: By,
    why: Why,
    sign: KeyFile = None,
    root: Root = None,
) -> None:
    """Let a version never serve again; its artifacts are kept."""
    from canal.app.project import Project
    from canal.app.promoting import Move
    from canal.app.promoting import retire as move

    entry = move(Project.open(root), version, Move(by, why, signer(sign, by)))
    note(_told(f"version {entry.version} is retired", entry.seq))


def _told(what: str, seq: int) -> str:
    return f"{what}; entry {seq} of ledger.jsonl says who and why (commit it: git add ledger.jsonl)"
