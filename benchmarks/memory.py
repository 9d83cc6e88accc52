"""Memory of a stage of 100,000 cells at scBERT size, and of annotating any number: anonymous RSS, sampled.

    python benchmarks/memory.py --cells 100000 --genes 1000 --steps 200

Generates zero-inflated cells, runs ``--steps`` steps of a first stage over a full-length index with a small
cache, then annotates, and prints the largest RssAnon of each: files that the cache maps do not count, as the
kernel can drop them at any time. What a whole stage's cache would need on disk is extrapolated, and says so.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from engine import OLD, annotator_of, backbone_of, cells_of

from canal.config.sections import Cache, Continual
from canal.continual.cells import LabelledCells
from canal.continual.fit import Fit, Hooks
from canal.continual.stage import Task
from canal.continual.trainer import learn_stage


class EnoughError(Exception):
    """Raised when the steps asked for were made."""


def anonymous_gib() -> float:
    """Return this process's anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    raise SystemExit("this kernel does not tell RssAnon; the benchmark needs Linux")


def peak_of(work: Callable[[], None]) -> tuple[float, float]:
    """Return the largest anonymous memory while ``work`` runs, and its seconds."""
    largest, done = [anonymous_gib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            largest.append(anonymous_gib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(largest), time.perf_counter() - began


def first_stage(preset: str, genes: int, n: int) -> Task:
    """Return a first stage of ``n`` cells; a teacher would add 256 bytes a cell."""
    backbone, nothing = backbone_of(preset, genes), LabelledCells.empty(genes)
    train, validation = cells_of(n, genes, OLD, 1, "big"), cells_of(4, genes, OLD, 2, "judge")
    return Task("big", backbone, backbone.vocabulary, OLD, train, validation, nothing, nothing, seed=0)


def train(task: Task, steps: int, folder: Path, max_gb: float) -> None:
    """Make ``steps`` steps of the stage."""
    made, step = [0], Fit.step

    def counted(self: Fit, value: float, learning_rate: float) -> None:
        step(self, value, learning_rate)
        made[0] += 1
        sys.stderr.write(f"\rstep {made[0]} of {steps}")
        if made[0] >= steps:
            raise EnoughError

    Fit.step = counted  # type: ignore[method-assign]
    try:
        learn_stage(task, Continual(max_epochs=1), hooks_of(folder, max_gb))
    except EnoughError:
        sys.stderr.write("\n")
    finally:
        Fit.step = step  # type: ignore[method-assign]


def hooks_of(folder: Path, max_gb: float) -> Hooks:
    """Return hooks with a capped cache."""
    return Hooks(cache_dir=folder, cache=Cache(max_gb=max_gb), on_notice=sys.stderr.write)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--preset", default="scbert")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cache-gb", type=float, default=0.1)
    parser.add_argument("--annotate", type=int, default=200, help="cells annotated")
    arguments = parser.parse_args()
    task = first_stage(arguments.preset, arguments.genes, arguments.cells)
    with TemporaryDirectory() as scratch:
        stage, seconds = peak_of(lambda: train(task, arguments.steps, Path(scratch), arguments.cache_gb))
    query = cells_of(arguments.annotate, arguments.genes, OLD, 7, "query").expression
    annotator = annotator_of(arguments.preset, arguments.genes)
    annotation, _ = peak_of(lambda: annotator.predict(query) and None)
    width = task.parent.network.config.dim
    disk = arguments.cells * (arguments.genes + 1) * width * 4 / 1e9
    sys.stdout.write(
        f"{torch.get_num_threads()} threads, preset {arguments.preset}, {arguments.cells:,} cells, "
        f"{arguments.genes:,} genes\n"
        f"stage, {arguments.steps} steps: largest RssAnon {stage:.2f} GiB, {seconds:.0f} s\n"
        f"annotation of {arguments.annotate:,} cells, the stage still in memory: {annotation:.2f} GiB\n"
        f"extrapolated: a whole cache needs {disk:.1f} GB on disk in float32, {disk / 2:.1f} GB in bfloat16\n"
    )


if __name__ == "__main__":
    main()
