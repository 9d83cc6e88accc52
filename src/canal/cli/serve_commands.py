"""serve: a version over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from canal.cli.parsing import Root


def add_to(app: typer.Typer) -> None:
    """Add this module's command to the command line."""
    app.command(epilog="Example: canal serve champion --port 5001    canal serve 3 --token-file token")(serve)


def serve(
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; by default the champion, else the newest.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where on that machine.")] = 5001,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model of its own.")] = 1,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds an answer may take.")] = 60,
    patience: Annotated[int, typer.Option(min=1, help="Seconds in which a request must have come.")] = 60,
    max_mb: Annotated[int, typer.Option(min=1, help="Megabytes a request may have.")] = 64,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that requests must bear.", dir_okay=False)
    ] = None,
    root: Root = None,
) -> None:
    """Answer cells over HTTP with the labels of `canal annotate`, after an audit of the version."""
    from canal.app.project import Project
    from canal.app.serving import Serving
    from canal.app.serving import serve as serve_version

    how = Serving(host, port, workers, timeout, patience, max_mb, token_file)
    serve_version(Project.open(root), version, how)
