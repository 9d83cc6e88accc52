"""What the installed wheel weighs and how fast it labels: no extra, no project, no source tree around.

    python benchmarks/installed.py [--root PROJECT] [--version V] [--cells N]

A wheel is built and installed, not editable, with its core's packages from the index into a new virtual
environment. A version of a finished project is exported without cells; N of the project's own cells are
labelled from that file in an empty folder, a new process each time. Beside it stands the start-up that no
labelling can do without: the same Python importing numpy, pandas, scipy, h5py and anndata.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata
import numpy as np

from canal.app.project import Project
from canal.app.versions import ExportOptions, export_version

REPOSITORY = Path(__file__).resolve().parents[1]
LARGEST_MB, LONGEST_S = 450, 10
IMPORTS = "import numpy, pandas, scipy.sparse, h5py, anndata"


def main() -> None:
    """Install, label, and print both beside their bounds; exit code 1 if one is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--version", default="candidate")
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="canal-installed-") as scratch:
        folder = Path(scratch)
        python, seconds = install(folder)
        bundle = folder / "model.zip"
        project = Project.open(arguments.root)
        export_version(project, arguments.version, bundle, ExportOptions(without_cells=True))
        write_cells(project, arguments.cells, folder / "cells.h5ad")
        found = {
            "MB": size_mb(folder / "venv"),
            "seconds to install": seconds,
            "cells": arguments.cells,
            "bundle MB": round(bundle.stat().st_size / 1e6, 1),
            "importing alone, s": median(arguments.runs, [python, "-c", IMPORTS], folder),
        }
        for effort in ("fast", "full"):
            command = [python.parent / "canal", "annotate", "cells.h5ad", "-o", "labels.h5ad", "--overwrite"]
            words = [*command, "--model", "./model.zip", "--effort", effort]
            found[f"{effort}, s"] = median(arguments.runs, words, folder)
        kept = [python.parent / "canal", "models", "add", "./model.zip", "--name", "kept"]
        run(kept, folder)
        words = [*command, "--model", "kept", "--effort", "fast"]
        found["from the shelf, fast, s"] = median(arguments.runs, words, folder)
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else table(found))
    sys.exit(found["MB"] > LARGEST_MB or (found["fast, s"] or 0) > LONGEST_S)


def install(folder: Path) -> tuple[Path, float]:
    """Build the wheel and install it with its core from the index; return its Python, and the seconds."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, source / name)
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", source], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    began = time.monotonic()
    run([sys.executable, "-m", "venv", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    constraints = ["-c", REPOSITORY / "constraints.txt"]
    run([python, "-m", "pip", "install", "--quiet", *constraints, wheel], folder)
    return python, round(time.monotonic() - began, 1)


def write_cells(project: Project, n: int, path: Path) -> None:
    """Write ``n`` of the project's prepared cells, with repetition where it has fewer."""
    every = [project.prepared(stage) for stage in project.config.stages if project.available(stage)]
    whole = max((anndata.read_h5ad(one.path) for one in every), key=lambda one: one.n_obs)
    chosen = np.random.default_rng(0).choice(whole.n_obs, n, replace=n > whole.n_obs)
    cells = whole[np.sort(chosen)].copy()
    cells.obs_names_make_unique()
    cells.write_h5ad(path)


def size_mb(folder: Path) -> int:
    """Return the disk that a folder takes, as `du` counts it, in MB of 2**20 bytes."""
    blocks = {(one.lstat().st_ino, one.lstat().st_blocks) for one in folder.rglob("*")}
    return round(sum(count for _, count in blocks) * 512 / 2**20)


def median(runs: int, command: Sequence[object], folder: Path) -> float | None:
    """Return the median seconds of a command; None where it refuses for want of PyTorch."""
    seconds = []
    for _ in range(runs):
        began = time.monotonic()
        done = run(command, folder, check=False)
        if "canal-cells[network]" in done.stderr:
            return None
        done.check_returncode()
        seconds.append(time.monotonic() - began)
    return round(statistics.median(seconds), 2)


def run(command: Sequence[object], folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without this source tree's variables and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept |= {"HOME": str(folder), "CANAL_MODELS": str(folder / "shelf")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done


def table(found: dict[str, float | None]) -> str:
    """Return the figures, one a line, bounds beside those that have one."""
    bounds = {"MB": f"at most {LARGEST_MB}", "fast, s": f"at most {LONGEST_S}"}
    lines = [
        f"{name:<26}{'needs PyTorch' if value is None else f'{value:,}':>14}  {bounds.get(name, '')}".rstrip()
        for name, value in found.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
