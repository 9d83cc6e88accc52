"""Seconds and bytes of the page of each version of a finished project, from the start of the process.

    python benchmarks/page.py --root PROJECT [--most SECONDS] [--json]

A page is written twice: the first time with nothing kept (the layout of the map and the drawing library are
made), then again. Into the project goes nothing but the layouts in `.canal/`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from canal.app.project import Project
from canal.report.beside import library_path


def main() -> None:
    """Measure every version, print a table, and exit with code 1 where one takes longer than allowed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--most", type=float, help="seconds that the second page of a version may take")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    project = Project.open(arguments.root)
    rows = []
    for version in (one for one in project.store.versions() if one.ready and not one.erased):
        for path in (*project.layout.layouts.glob("*.npy"), library_path()):
            path.unlink(missing_ok=True)
        with TemporaryDirectory(prefix="canal-page-") as scratch:
            (first, _), (again, cpu) = (
                written(version.number, arguments.root, Path(scratch)) for _ in range(2)
            )
            size = (Path(scratch) / "index.html").stat().st_size
        rows.append(
            {
                "version": version.number,
                "stage": version.stage,
                "first_s": first,
                "s": again,
                "cpu_s": cpu,
                "bytes": size,
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'version':>7}  {'stage':<16} {'first, s':>8} {'again, s':>8} {'CPU, s':>7} {'MB':>6}")
        for row in rows:
            print(
                f"{row['version']:>7}  {row['stage']:<16} {row['first_s']:>8.1f} {row['s']:>8.1f} "
                f"{row['cpu_s']:>7.1f} {row['bytes'] / 1e6:>6.2f}"
            )
    if arguments.most is not None and any(row["s"] > arguments.most for row in rows):
        sys.exit(1)


def written(number: int, root: Path, into: Path) -> tuple[float, float]:
    """Write the page of a version in a process of its own; return its seconds, and those of processors."""
    command = [sys.executable, "-m", "canal", "report", str(number), "-o", str(into), "--root", str(root)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
