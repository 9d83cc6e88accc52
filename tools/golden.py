"""Digests of all that a finished project holds and says: written before a large change, compared after it.

    python tools/golden.py write FILE [--root PROJECT]
    python tools/golden.py compare FILE [--root PROJECT]

A change of the house alone (modules moved, merged, renamed) leaves every one of them as it was: models,
banks, probe sets, splits, panel, verdicts, measures, a labelled file, and what commands print as JSON.
Digests of weights hold for machines with the same vector instructions. The project stays as it is.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILES = (
    *("panel.json", "splits/*", "verdicts/*/*", "labels/*", "tuned/*"),
    *("models/*/model/**/*", "models/*/bank/*", "models/*/probe/*", "models/*/sums/*"),
    *("models/*/history.json", "metrics/*/evaluation.json", "metrics/*/predictions.csv"),
)
COMMANDS = (
    ("versions",),
    ("show", "{newest}"),
    ("lineage", "{newest}"),
    ("lineage", "--data", "{stage}"),
    ("diff", "1", "{newest}"),
    ("impact", "{stage}"),
    ("ledger",),
    ("audit", "{newest}"),
)
OF_THE_MOMENT = ("seconds", "artifacts", "created", "time", "at", "root", "path", "counts")
"""Keys of JSON documents that hold times, paths, or how much an audit had to look at."""


def main() -> None:
    """Write or compare; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="a finished project")
    arguments = parser.parse_args()
    found = dict(golden(arguments.root.resolve()))
    if arguments.what == "write":
        arguments.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sys.stdout.write(f"{len(found)} digests\n")
        return
    before: dict[str, str] = json.loads(arguments.file.read_text(encoding="utf-8"))
    wrong = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    for name in wrong:
        sys.stdout.write(f"{name}: {before.get(name, 'not there')} before, {found.get(name, 'gone')} now\n")
    sys.stdout.write(f"{len(before.keys() & found.keys()) - len(wrong)} of {len(before)} digests are equal\n")
    sys.exit(bool(wrong))


def golden(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what is looked at, and its SHA-256."""
    paths = {path for pattern in FILES for path in root.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        yield path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
    versions = json.loads(_canal(root, "versions", "--json"))
    names = {"newest": str(versions[-1]["version"]), "stage": versions[0]["stage"]}
    for command in COMMANDS:
        words = [word.format(**names) for word in command]
        said = _steady(json.loads(_canal(root, *words, "--json")))
        yield f"canal {' '.join(command)}", _digest(json.dumps(said, sort_keys=True))
    with tempfile.TemporaryDirectory() as scratch:
        labelled = Path(scratch) / "labelled.csv"
        first = sorted((root / "prepared").glob("*/cells.h5ad"))[0]
        with _as_before(root / "annotations.jsonl"):
            _canal(root, "annotate", str(first), "-o", str(labelled))
        with labelled.open(newline="", encoding="utf-8") as stream:
            yield f"labels of {first.parent.name}", _digest(json.dumps(list(csv.reader(stream))))


@contextmanager
def _as_before(path: Path) -> Iterator[None]:
    """Let a file be written to, and put back what it held."""
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


def _canal(root: Path, *words: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "canal.cli", *words]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if not done.stdout and done.returncode:
        raise SystemExit(f"canal {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _steady(document: Any) -> Any:
    """Return a document without what differs from one run, or one folder, to the next."""
    if isinstance(document, dict):
        kept = {name: value for name, value in document.items() if name not in OF_THE_MOMENT}
        return {name: _steady(value) for name, value in kept.items()}
    return [_steady(one) for one in document] if isinstance(document, list) else document


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
