"""The command line: a module for each group of commands."""

from canal.cli.root import app, main

__all__ = ["app", "main"]
