"""Commands about the shelf, the models that label cells with no project around: canal models."""

from typing import Annotated

import typer

from canal import app
from canal.cli.parsing import AsJson, complete_shelved, examples, note, show_result
from canal.report.exchange_tables import model_group, models_table


def add_to(to: typer.Typer) -> None:
    """Add the group `models` to the command line."""
    models = typer.Typer(
        no_args_is_help=True,
        help="Models that label cells in any folder: add, list, show, remove.",
    )
    models.command(
        epilog=examples(
            "canal models add lung-atlas.zip",
            "canal models add https://lab.org/lung.zip --sha256 9f2c...",
        )
    )(add)
    models.command("list", epilog=examples("canal models list --json | jq '.[].name'"))(list_)
    models.command(epilog=examples("canal models show lung-atlas", "canal models show lung-atlas.zip"))(show)
    models.command(epilog=examples("canal models remove lung-atlas"))(remove)
    to.add_typer(models, name="models")


def add(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE.zip", help="A file of canal export, or its http(s) or s3 address."),
    ],
    name: Annotated[str | None, typer.Option(help="By default the file's, without .zip.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The file's digest; needed for an address.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove a model's file and keep it, to label cells in any folder.

    `canal annotate --model NAME` then labels with it.
    """
    document = app.shelf.add_model(source, name, sha256, note)
    if as_json:
        show_result(document, as_json)
        return
    show_result(model_group(document), as_json)
    fast = " --effort fast" if document["needs_torch"] and not app.shelf.network_installed() else ""
    note(f"proven and kept; next: canal annotate IN -o OUT --model {document['name']}{fast}")


def list_(as_json: AsJson = False) -> None:
    """List the models on the shelf: their types, genes and accuracy."""
    documents = app.shelf.list_models()
    show_result(documents if as_json else models_table(documents), as_json)


def show(
    model: Annotated[
        str,
        typer.Argument(
            help="A name on the shelf, or a file of `canal export`.", autocompletion=complete_shelved
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show a model: its types, accuracy, licences, how it was made.

    Its files are checked first.
    """
    document = app.shelf.show_model(model)
    show_result(document if as_json else model_group(document), as_json)


def remove(
    name: Annotated[str, typer.Argument(help="A name on the shelf.", autocompletion=complete_shelved)],
    as_json: AsJson = False,
) -> None:
    """Take a model from the shelf; files it was added from stay."""
    app.shelf.remove_model(name)
    if as_json:
        show_result({"removed": name}, as_json)
    note(f"{name} is no longer on the shelf")
