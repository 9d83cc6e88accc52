"""What each script of ``pipelines/`` does first and last: its argument, its errors in one line."""

import argparse
import sys
from collections.abc import Callable

from canal.errors import CanalError


def argument(name: str) -> str:
    """Return the value of the one option ``--name`` of this script."""
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{name}", required=True)
    return str(getattr(parser.parse_args(), name))


def say(line: str) -> None:
    """Tell the person who watches what a step is doing."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run(step: Callable[[], None]) -> None:
    """Run a step; an error made for people ends it with one message and exit code 1."""
    try:
        step()
    except CanalError as error:
        say(f"canal: {error}")
        raise SystemExit(1) from None
