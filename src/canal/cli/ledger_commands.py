"""ledger, ledger anchor, keys new, show, add: who decided what, a witness of it elsewhere, who may sign."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canal.cli.parsing import AsJson, KeyFile, Root, note, show_result

if TYPE_CHECKING:
    from canal.app.project import Project


def add_to(app: typer.Typer) -> None:
    """Add the group `ledger` to the command line."""
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
    from canal.registry.promotion.moves import catch_up as bring
    from canal.registry.promotion.moves import ledger_of
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
    from canal.registry.ledger.signing import open_key

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
    from canal.registry.promotion.moves import ledger_of

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


# keys new, show, add: who may sign what goes into the ledger.

PrivateFile = Annotated[Path, typer.Argument(metavar="FILE", help="Private key made by canal keys new.")]


def add_keys_to(app: typer.Typer) -> None:
    """Add the group `keys` to the command line."""
    keys = typer.Typer(no_args_is_help=True, help="Keys that sign the ledger, and whose they are.")
    example = "Example: canal keys"
    keys.command(epilog=f'{example} new --name "A. Person" >> keyring.txt')(new)
    keys.command(epilog=f"{example} show ~/.config/canal/key.pem")(show)
    keys.command(epilog=f'{example} add keyring.txt "CI ed25519 BASE64" --roles register')(add)
    app.add_typer(keys, name="keys")


def new(
    name: Annotated[str, typer.Option("--name", help="Whose key it is; as --by will say it.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to make; by default ~/.config/canal/key.pem."),
    ] = None,
) -> None:
    """Make a private key, and print the line that a keyring needs."""
    from canal.registry.ledger.signing import default_key_file, new_key

    path = output or default_key_file()
    show_line(new_key(path, name).line)
    note(f"wrote {path}, which only you can read; the line above is for the keyring (canal keys add)")


def show(file: PrivateFile, as_json: AsJson = False) -> None:
    """Print the public line of a private key."""
    from canal.core.errors import SigningError
    from canal.registry.ledger.signing import open_key

    key = open_key(file)
    if not key.name:
        raise SigningError(
            f"{file} does not say whose key it is: give it a first line `# canal signing key of A. Person`"
        )
    public = key.public
    if as_json:
        show_result({"name": public.name, "key": public.line, "fingerprint": public.fingerprint}, as_json)
        return
    show_line(public.line)


def add(
    keyring: Annotated[Path, typer.Argument(metavar="KEYRING", help="Text file; made where there is none.")],
    line: Annotated[str, typer.Argument(metavar="LINE", help="Public line that canal keys show prints.")],
    roles: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE,ROLE",
            help="What it may sign: register, promote, rollback, retire, rebuild, anchor; by default all.",
        ),
    ] = None,
) -> None:
    """Add a public key to a keyring: whose signatures canal audit --require-signed accepts, and for what."""
    from canal.registry.ledger.signing import add_to_keyring

    key = add_to_keyring(keyring, line, roles)
    allowed = "everything" if key.roles is None else ", ".join(sorted(key.roles))
    note(f"{keyring} holds the key of {key.name}, fingerprint {key.fingerprint[:16]}..., for {allowed}")


def show_line(line: str) -> None:
    """Print a line as it is: it is to be copied, so it is never folded or coloured."""
    typer.echo(line)
