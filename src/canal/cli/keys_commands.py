"""keys new, show, add: who may sign what goes into the ledger."""

from pathlib import Path
from typing import Annotated

import typer

from canal.cli.parsing import AsJson, note, show_result

PrivateFile = Annotated[Path, typer.Argument(metavar="FILE", help="Private key made by canal keys new.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
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
    from canal.registry.signing import default_key_file, new_key

    path = output or default_key_file()
    show_line(new_key(path, name).line)
    note(f"wrote {path}, which only you can read; the line above is for the keyring (canal keys add)")


def show(file: PrivateFile, as_json: AsJson = False) -> None:
    """Print the public line of a private key."""
    from canal.core.errors import SigningError
    from canal.registry.signing import open_key

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
    from canal.registry.keyring import add_to_keyring

    key = add_to_keyring(keyring, line, roles)
    allowed = "everything" if key.roles is None else ", ".join(sorted(key.roles))
    note(f"{keyring} holds the key of {key.name}, fingerprint {key.fingerprint[:16]}..., for {allowed}")


def show_line(line: str) -> None:
    """Print a line as it is: it is to be copied, so it is never folded or coloured."""
    typer.echo(line)
