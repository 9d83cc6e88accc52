"""Sums of many synthetic cells, part by part, by this process and by Dask: seconds, memory, equal bytes.

    python benchmarks/exact_sums.py                                        # 100,000, 300,000 and 1,000,000
    python benchmarks/exact_sums.py --cells 10000000 --workers 2           # ten million on two cores

A part is 50,000 cells of 300 genes and 12 types, made by the process that adds it up (20,000 distinct ones,
drawn again and again), so that no file of 16 GB is written: what is measured is adding and putting together,
not reading (`make bench-exact-scale` reads). Each size and engine is a process of its own; memory is the
most that it and its workers had at once, looked at every tenth of a second.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from functools import cache

import numpy as np
import psutil
from exact_scale import TYPES, _pool
from scipy.sparse import csr_matrix

from canal.app.engines import SPREAD, add_up_parts
from canal.app.tasks import PART_CELLS
from canal.memory.levels import Basis
from canal.memory.sums import Sums, add_up

GENES = 300
BASIS = Basis(tuple(f"GENE{number}" for number in range(GENES)), {})
_BLOCK = 2000


@cache
def distinct() -> csr_matrix:
    """Return the cells that parts are drawn from, as log2(1 + counts per 10,000)."""
    pool = _pool(GENES, 0)
    counts = pool.multiply(1e4 / pool.sum(axis=1)).tocsr()
    counts.data = np.log2(1 + counts.data)
    return csr_matrix(counts, dtype=np.float32)


def part(rows: tuple[int, int]) -> Sums:
    """Return the sums of cells of these numbers; a number decides its cell."""
    pool, kinds = distinct(), len(TYPES)

    def blocks():
        for start in range(*rows, _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, rows[1]))
            own = numbers % kinds
            drawn = np.random.default_rng(start).integers(pool.shape[0] // kinds, size=len(own))
            yield pool[own + kinds * drawn].toarray(), [TYPES[one] for one in own]

    return add_up(BASIS, blocks())


def measure(n_cells: int) -> None:
    """Add up, and print what it took."""
    most, stop, here = [0], threading.Event(), psutil.Process()

    def look() -> None:
        while not stop.wait(0.1):
            held = 0
            for one in (here, *here.children(recursive=True)):
                try:
                    held += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            most[0] = max(most[0], held)

    threading.Thread(target=look, daemon=True).start()
    parts = [(at, min(at + PART_CELLS, n_cells)) for at in range(0, n_cells, PART_CELLS)]
    began = time.perf_counter()
    sums = add_up_parts(BASIS, parts, part)
    seconds = time.perf_counter() - began
    stop.set()
    spent = os.times()
    found = {
        "seconds": seconds,
        "cpu": spent.user + spent.system + spent.children_user + spent.children_system,
    }
    print(json.dumps({**found, "gib": most[0] / 2**30, "cells": sums.n_cells, "digest": sums.digest}))


def main() -> None:
    """Measure each size by each engine; digests of a size must be equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1], help="also by so many workers of Dask")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print(f"{'cells':>12} {'by':<14} {'s':>8} {'CPU s':>8} {'GiB':>6} {'cells/s':>10}  digest")
    for n_cells in arguments.cells:
        digests = set()
        for workers in (0, *arguments.workers):
            env = os.environ | {SPREAD: str(workers) if workers else ""}
            command = [sys.executable, __file__, "--measure", str(n_cells)]
            one = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
            digests.add(one["digest"])
            by = f"Dask, {workers}" if workers else "one process"
            print(
                f"{n_cells:>12,} {by:<14} {one['seconds']:>8.1f} {one['cpu']:>8.1f} {one['gib']:>6.2f} "
                f"{n_cells / one['seconds']:>10,.0f}  {one['digest'][:12]}",
                flush=True,
            )
        if len(digests) != 1:
            raise SystemExit(f"{n_cells:,} cells: engines disagree")


if __name__ == "__main__":
    main()
