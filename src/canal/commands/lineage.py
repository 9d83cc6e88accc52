"""lineage, impact, diff, who: where a version comes from, and what came of what."""

import typer


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
