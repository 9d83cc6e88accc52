"""ledger, ledger anchor: who decided what, and a witness of it elsewhere."""

from typing import TYPE_CHECKING, Annotated

import typer

from canal.cli.parsing import AsJson, KeyFile, Root, note, show_result

if TYPE_CHECKING:
    from canal.app.project import Project


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    group = typer.Typer(invoke_without_command=True)
    group.callback(epilog="Example: canal ledger --json | jq '.[].why'    canal ledger --verify")(ledger)
    group.command(
        epilog='Example: canal ledger anchor --by "A. Person"    '
        "canal ledger anchor --sign ~/.config/canal/key.pem --json"
    )(anchor)
    app.add_typer(group, name="ledger")


def ledger(
    context: typer.Context,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check chain, rules, committed states and anchors only; exit code 1 unless all hold.",
        ),
    ] = False,
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Bring what the tracking server has and this folder has not.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show who registered, promoted, rolled back and retired what, when and why."""
    if context.invoked_subcommand is not None:
        return
    from canal.app.project import Project
    from canal.registry.moves import catch_up as bring
    from canal.registry.moves import ledger_of
    from canal.report.registry_tables import ledger_table

    project = Project.open(root)
    if catch_up:
        note(f"{len(bring(project.store))} entries brought from {project.store.shown}")
    if verify:
        _verify(project, as_json)
        return
    documents = [entry.document for entry in ledger_of(project.store).entries()]
    show_result(documents if as_json else ledger_table(documents), as_json)


def anchor(
    by: Annotated[
        str | None, typer.Option(help="Who anchors it; by default the key's name, or this user.")
    ] = None,
    sign: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Name the ledger's last hash in a git tag, to be pushed where nobody can change it.

    Signed by git where user.signingKey is configured, or with --sign; audit compares the ledger with it.
    """
    from canal.app.auditing import anchor_ledger
    from canal.app.project import Project
    from canal.registry.signing import open_key

    made = anchor_ledger(Project.open(root), by, None if sign is None else open_key(sign))
    if as_json:
        show_result(made.to_json(), as_json)
        return
    signed = made.to_json()["signed"]
    how = f"signed by {signed}" if signed else "not signed: it proves as much as the place where it is kept"
    note(f"{made.tag} names {made.entries} entries, the last with hash {made.document['hash']} ({how})")
    note(f"now push it to where it cannot be changed: git push origin {made.tag}")


def _verify(project: "Project", as_json: bool) -> None:
    from canal.app.auditing import verify_ledger
    from canal.registry.moves import ledger_of

    found, entries = verify_ledger(project), ledger_of(project.store).entries()
    head = entries[-1].hash if entries else None
    if as_json:
        document = {
            "entries": len(entries),
            "hash": head,
            "passed": not found.findings,
            "findings": [one.to_json() for one in found.findings],
            "notes": [one.to_json() for one in found.notes],
            "counts": dict(found.counts),
        }
        show_result(document, as_json)
    else:
        for one in found.findings:
            note(f"does not hold: {one}")
        for one in found.notes:
            note(f"note: {one}")
        held = "does not hold" if found.findings else "holds"
        anchored = f", {found.counts['anchors']} anchors" if found.counts["anchors"] else ""
        note(f"the ledger {held}: {len(entries)} entries{anchored}, the last has hash {head or 'none'}")
    if found.findings:
        raise typer.Exit(1)
