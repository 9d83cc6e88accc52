"""How long the tests take that an earlier revision had, run as `make test` runs all.

Example: python benchmarks/suite.py 240b58f

A test is known by its file and function: what was renamed since is not counted.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

REPOSITORY = Path(__file__).resolve().parents[1]
_KEPT = "CANAL_TESTS_KEPT"
"""Variable with the tests that are kept, as JSON: names of functions by file."""


def main(revision: str = typer.Argument(help="A commit: tests that it has are run, others are not.")) -> None:
    """Run the tests that REVISION had already, as they are now, and print how long they take."""
    kept = tests_at(revision)
    ignored = [f"--ignore={file}" for file in tests_at("HEAD") if file not in kept]
    beside = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "suite", *ignored],
        cwd=REPOSITORY, env=os.environ | {_KEPT: json.dumps(kept), "PYTHONPATH": beside}, check=False,
    )  # fmt: skip
    print(f"tests of {revision}: {time.perf_counter() - start:.0f} s from start to end")
    raise typer.Exit(done.returncode)


def tests_at(revision: str) -> dict[str, list[str]]:
    """Return the test functions of each file of tests that a revision has."""
    listed = ["git", "grep", "-o", r"def test_[a-zA-Z0-9_]*", revision, "--", "tests"]
    done = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"there are no tests at {revision!r}: {done.stderr.strip() or 'is it a commit?'}")
    names: dict[str, list[str]] = {}
    for file, name in re.findall(r"^[^:\n]+:([^:\n]+):def (test_\w+)$", done.stdout, re.MULTILINE):
        names.setdefault(file, []).append(name)
    return names


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the revision, in each of pytest's processes."""
    kept = json.loads(os.environ[_KEPT])
    own: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        had = item.originalname in kept.get(item.nodeid.split("::")[0], ())
        (own if had else others).append(item)
    items[:] = own
    config.hook.pytest_deselected(items=others)


if __name__ == "__main__":
    typer.run(main)
