"""audit, export, import, registry rebuild: what proves a version, and what carries it elsewhere."""

import typer


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
