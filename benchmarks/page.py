"""Seconds and bytes of the page of each version of a finished project, from the start of the process.

    python benchmarks/page.py --root PROJECT [--most SECONDS] [--json]

A page is written twice: the first time with nothing kept beside the project (the layout of the map and the
drawing library are made), then again. Into the project goes nothing but what is kept in `.canal/`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from canal.app.project import Project


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
        for path in (*project.layout.layouts.glob("*.npy"), *project.layout.private.glob("vega-*.js")):
            path.unlink()
        with TemporaryDirectory(prefix="canal-page-") as scratch:
            first, again = (written(version.number, arguments.root, Path(scratch)) for _ in range(2))
            size = (Path(scratch) / "index.html").stat().st_size
        rows.append(
            {"version": version.number, "stage": version.stage, "first_s": first, "s": again, "bytes": size}
        )
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'version':>7}  {'stage':<16} {'first, s':>8} {'again, s':>8} {'MB':>6}")
        for row in rows:
            print(
                f"{row['version']:>7}  {row['stage']:<16} {row['first_s']:>8.1f} {row['s']:>8.1f} "
                f"{row['bytes'] / 1e6:>6.2f}"
            )
    if arguments.most is not None and any(row["s"] > arguments.most for row in rows):
        sys.exit(1)


def written(number: int, root: Path, into: Path) -> float:
    """Write the page of a version in a process of its own; return its seconds."""
    command = [sys.executable, "-m", "canal", "report", str(number), "-o", str(into), "--root", str(root)]
    began = time.monotonic()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
