"""How long `canal annotate` takes on a well-formed file, beside an earlier revision of this repository.

    python benchmarks/before.py b42cc87
    python benchmarks/before.py b42cc87 --cells 2000 --preset small --times 7

One file of counts is labelled by both in turn, each time in a process of its own; what is printed is the
ratio of seconds, pair by pair. With the preset tiny nearly all of it is reading, judging and writing.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from annotate import generate
from kinds import source_of

_LABEL = """
import sys, time
from pathlib import Path
import torch
from engine import annotator_of
from named import by_name
torch.set_num_threads(2)
annotator = annotator_of(sys.argv[3], 300)
annotate, options = by_name("annotate_h5ad"), by_name("Options")()
began = time.perf_counter()
annotate(annotator, Path(sys.argv[1]), Path(sys.argv[2]), options)
print(time.perf_counter() - began)
"""


def main() -> None:
    """Label by turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("revision", help="a commit of this repository")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    with (
        TemporaryDirectory() as folder,
        source_of(arguments.revision) as before,
        source_of("now") as now,
    ):
        source = Path(folder) / "cells.h5ad"
        generate(source, arguments.cells, 1500, "csr")
        ratios = []
        for number in range(arguments.times + 1):
            # The first pair warms the disk's cache; who begins changes, for whatever drifts meanwhile.
            order = (before, now) if number % 2 else (now, before)
            took = {one: seconds(one, source, arguments.preset) for one in order}
            if number:
                ratios.append(took[now] / took[before])
                print(f"before {took[before]:.2f} s, now {took[now]:.2f} s: {ratios[-1]:.3f}")
    middle = statistics.median(ratios)
    print(
        f"{arguments.cells:,} cells, preset {arguments.preset}: now takes {middle:.3f} times as long as "
        f"{arguments.revision} (median of {arguments.times}; {min(ratios):.3f} to {max(ratios):.3f})"
    )


def seconds(source: Path, file: Path, preset: str) -> float:
    """Return how long the code in a folder takes to label a file."""
    # Each revision makes its model with its own benchmarks/engine.py.
    places = [str(source), str(source.parent / "benchmarks"), str(Path(__file__).parent)]
    target = file.with_name("labelled.h5ad")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LABEL, str(file), str(target), preset],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the code in {source} failed: {done.stderr.strip()}")
    target.unlink()
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
