"""The command line: a module for each group of commands."""

from canal.cli.root import command_line as app
from canal.cli.root import main

__all__ = ["app", "main"]
