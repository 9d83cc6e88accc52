"""The longest silence of each command: seconds between two lines on the error stream, or without any.

    python benchmarks/silences.py --root PROJECT [--cells N] [--only WORD ...] [--longest SECONDS]

With ``--learn`` alone the learning of a new demo project is measured, `canal init` and `canal run`: minutes.

The commands run one after the other in a copy of a finished project, so that the project itself stays as it
is; those that decide or write come last. `canal annotate` and what reads its file get N of the project's
prepared cells, with repetition where it has fewer. A silence counts from the start of the process, and to its
end; what a command prints to the output stream ends none, since scripts read that.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np

from canal.app.project import Project

BY = ("--by", "A. Person", "--why", "measured")
LONGEST_S = 2.5
"""Seconds: a line comes after 1.5 s without one, and a busy machine is late."""


@dataclass(frozen=True)
class Measured:
    """What one command took, its longest silence and what it said before it, and its exit code."""

    command: str
    seconds: float
    silence: float
    after: str
    code: int


def main() -> None:
    """Measure, print a table, and exit with code 1 if a silence is longer than allowed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="commands with such a word")
    parser.add_argument("--longest", type=float, default=LONGEST_S)
    parser.add_argument("--learn", action="store_true", help="measure init and run of a new demo")
    parser.add_argument("--show", action="store_true", help="print what the commands say, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="canal-silences-") as scratch:
        folder = Path(scratch) / "project"
        if arguments.learn:
            folder.mkdir()
            chosen = [("init", ".", "--demo"), ("run",)]
        else:
            shutil.copytree(arguments.root, folder, symlinks=True)
            project = Project.open(folder)
            write_cells(project, arguments.cells, folder / "query.h5ad")
            chosen = [
                one
                for one in commands(project)
                if not arguments.only or any(word in " ".join(one) for word in arguments.only)
            ]
        found = []
        for one in chosen:
            found.append(measure(one, folder, arguments.show))
            if not arguments.json:
                sys.stdout.write(row(found[-1], arguments.longest))
                sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps([vars(one) for one in found], indent=1) + "\n")
    sys.exit(any(one.silence > arguments.longest for one in found))


def commands(project: Project) -> Iterator[tuple[str, ...]]:
    """Yield the commands, those that only read first."""
    stage = project.config.last_stage
    source = project.config.stages[stage].source
    part = (source, "--cells", str(leaving(project, stage)), *BY)
    yield ("versions",)
    yield ("show", "candidate")
    yield ("plan",)
    yield ("registry", "sync")
    yield ("lineage", "candidate")
    yield ("lineage", "--data", source)
    yield ("impact", source)
    yield ("diff", "1", "candidate", "query.h5ad")
    yield ("compare", "candidate", "--with", "1")
    yield ("annotate", "query.h5ad", "-o", "labelled.h5ad", "--model", "candidate")
    yield ("annotate", "query.h5ad", "-o", "fast.csv", "--model", "candidate", "--effort", "fast")
    yield ("who", "labelled.h5ad")
    yield ("novel", "labelled.h5ad", "-o", "novel.csv")
    yield ("explain", "labelled.h5ad", "-o", "genes.csv", "--top", "5")
    yield ("markers", "candidate", "-o", "markers.csv")
    yield ("validate", "query.h5ad", "--stage", stage)
    yield ("stage", "add", "more", "--file", "query.h5ad", "--values", "counts", "--label", "cell_type")
    yield ("stage", "map", "query.h5ad", "--label", "cell_type", "-o", "sheet.csv")
    yield ("report",)
    yield ("audit", "--all")
    yield ("audit", "--all", "--recompute")
    yield ("export", "candidate", "-o", "bundle.zip")
    yield ("models", "add", "./bundle.zip", "--name", "kept")
    yield ("models", "show", "kept")
    yield ("share", "candidate", "-o", "shared.canal")
    yield ("serve", "candidate", "--port", "5017")
    yield ("promote", "candidate", *BY, "--override", "*")
    yield ("unlearn", *part, "--dry-run")
    yield ("unlearn", *part)
    yield ("erase", *part, "--dry-run")
    yield ("registry", "rebuild", *BY)


def leaving(project: Project, stage: str) -> Path:
    """Write a file with the names of 20 training cells of a stage, as `canal unlearn` takes them."""
    lines = project.layout.split(stage).read_text(encoding="utf-8").splitlines()
    names = [line.partition(",")[0].partition(":")[2] for line in lines if line.endswith(",train")]
    path = project.layout.root / "leaving.txt"
    path.write_text("".join(f"{name}\n" for name in names[:20]), encoding="utf-8")
    return path


def write_cells(project: Project, n: int, path: Path) -> None:
    """Write ``n`` of the project's prepared cells, with repetition where it has fewer."""
    every = [project.prepared(stage) for stage in project.config.stages if project.available(stage)]
    whole = max((anndata.read_h5ad(one.path) for one in every), key=lambda one: one.n_obs)
    chosen = np.random.default_rng(0).choice(whole.n_obs, n, replace=n > whole.n_obs)
    cells = whole[np.sort(chosen)].copy()
    cells.obs_names = [f"cell-{number}" for number in range(n)]
    cells.write_h5ad(path)


def measure(words: Sequence[str], folder: Path, show: bool) -> Measured:
    """Run a command in a folder; a server is ended once it answers, and a registry is lost to be rebuilt."""
    if words[:2] == ("registry", "rebuild"):
        (folder / "mlflow.db").unlink(missing_ok=True)
    kept = {**os.environ, "CANAL_MODELS": str(folder / "shelf"), "COLUMNS": "110"}
    began = last = time.monotonic()
    silence, after, said = 0.0, "", "the start"
    process = subprocess.Popen(
        [sys.executable, "-m", "canal", *words],
        cwd=folder, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    limit = threading.Timer(3600, process.kill)
    limit.start()
    for line in process.stderr or ():
        now = time.monotonic()
        silence, after = max((silence, after), (now - last, said))
        last, said = now, line.strip()
        if show:
            sys.stdout.write(f"{now - began:8.1f}  {line}")
        if words[0] == "serve" and "http" in line:
            process.send_signal(signal.SIGINT)
    code = process.wait()
    limit.cancel()
    silence, after = max((silence, after), (time.monotonic() - last, said))
    return Measured(" ".join(words), round(time.monotonic() - began, 1), round(silence, 1), after, code)


def row(one: Measured, longest: float) -> str:
    """Return a command's line of the table, with what it said before it was silent for too long."""
    mark = "  <- " + one.after[:60] if one.silence > longest else ""
    failed = f"  (exit {one.code})" if one.code else ""
    return f"{one.command[:60]:<60} {one.seconds:8.1f} s {one.silence:6.1f} s{failed}{mark}\n"


if __name__ == "__main__":
    main()
