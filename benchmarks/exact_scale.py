"""One more stage of many cells by the exact memory: seconds and memory; and megabytes of sums a stage.

    python benchmarks/exact_scale.py                               # 25,000 to 200,000 cells, 300 genes
    python benchmarks/exact_scale.py --cells 100000 --file-genes 20000
    python benchmarks/exact_scale.py --sizes                       # the table of megabytes alone

Synthetic counts lie as `canal prepare` leaves them. Each size is a process of its own: it reads the file a
block at a time, adds up, puts the sums beside those of an earlier stage, and solves; then, as a stage does,
it sets confidence and novelty on validation cells, a fifth as many. All cells are added up here; a real stage
holds two fifths of them back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_matrix

from canal.config.sections import Memory, Novelty
from canal.continual.cells import LabelledCells
from canal.continual.exact_learner import ExactLearner, LabelledLevels, uncalibrated
from canal.core.digests import canonical_json
from canal.data.prepared import PreparedCells
from canal.io.writer import H5adWriter
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums
from canal.memory.sums import Adder, Sums

MOST_SECONDS, MOST_GIB = 60.0, 2.0
"""Of a stage of 100,000 cells."""

TYPES = tuple(f"type {number:02}" for number in range(12))
COUNTS_A_CELL = 3000
DISTINCT_CELLS = 20_000
"""Drawn again and again: what cells hold does not change what adding them up costs."""

GENES, N_TYPES, BATCHES = (100, 300, 1000), (10, 50), (1, 10, 50)
_BLOCK = 2000


@dataclass(frozen=True)
class Cost:
    """What a stage of so many cells took.

    Attributes
    ----------
    n_cells, n_nonzero : int
        Cells, and counts above 0 in their file.
    adding, solving, calibrating : float
        Seconds to read and add up, to solve, and to set confidence and novelty on validation cells.
    cpu : float
        Seconds of processor time for all of it: what a machine with other work does not lengthen.
    gib : float
        The largest memory of the process, what Python and its libraries take, too.
    gib_before : float
        That of the process before it read a cell.
    """

    n_cells: int
    n_nonzero: int
    adding: float
    solving: float
    calibrating: float
    cpu: float
    gib: float
    gib_before: float


def write_cells(path: Path, n_cells: int, n_genes: int, seed: int) -> None:
    """Write a prepared file of synthetic counts, types in turns."""
    pool, random = _pool(n_genes, seed), np.random.default_rng([seed, n_cells])
    names = np.array(TYPES, dtype=object)[np.arange(n_cells) % len(TYPES)]
    with H5adWriter(path, n_genes) as writer:
        for start in range(0, n_cells, _BLOCK):
            own = np.arange(start, min(start + _BLOCK, n_cells)) % len(TYPES)
            rows = own + len(TYPES) * random.integers(pool.shape[0] // len(TYPES), size=len(own))
            writer.append(csr_matrix(pool[rows]))
        ids = np.array([f"{path.stem}:{number}" for number in range(n_cells)], dtype=object)
        obs = pd.DataFrame({"cell_type": names, "cell_type_original": names})
        obs["batch"], obs["source"] = "one", "synthetic"
        obs = obs.astype("category")
        obs.insert(0, "cell_id", ids)
        obs["cell_digest"] = ids
        obs.index = pd.Index(ids, dtype=object)
        about = {"format": 1, "source": "synthetic", "values": "counts", "repairs": {}}
        var = pd.DataFrame(index=pd.Index([f"GENE{number}" for number in range(n_genes)], dtype=object))
        writer.finish(obs, var, {"canal": canonical_json(about)})


def _pool(n_genes: int, seed: int) -> csr_matrix:
    """Return distinct cells, types in turns, a type's genes up and down by half a natural logarithm."""
    random = np.random.default_rng(seed)
    usual = random.normal(0.0, 1.5, size=n_genes)
    shares = np.exp(usual + random.normal(0.0, 0.5, size=(len(TYPES), n_genes)))
    shares *= COUNTS_A_CELL / shares.sum(axis=1, keepdims=True)
    n_cells = DISTINCT_CELLS // len(TYPES) * len(TYPES)
    blocks = []
    for start in range(0, n_cells, _BLOCK):
        own = np.arange(start, min(start + _BLOCK, n_cells)) % len(TYPES)
        depth = random.lognormal(0.0, 0.4, size=(len(own), 1))
        blocks.append(csr_matrix(random.poisson(shares[own] * depth).astype(np.float32)))
    from scipy.sparse import vstack

    return csr_matrix(vstack(blocks, format="csr"))


def learn(path: Path, before: Path, n_genes: int) -> Cost:
    """Add up a file's cells, beside those of an earlier stage, solve, calibrate; return what that took."""
    import sklearn.metrics  # noqa: F401 - what a stage's process has loaded
    import torch  # noqa: F401

    gib_before = _gib()
    basis = Basis(tuple(f"GENE{number}" for number in range(n_genes)), {})
    known = StageSums(basis).plus("first", _added(PreparedCells(before), basis))
    cells = PreparedCells(path)
    began, busy = time.perf_counter(), time.process_time()
    sums = known.plus("more", _added(cells, basis))
    added = time.perf_counter()
    uncalibrated(sums, sums.types, basis.genes, Memory())
    solving = time.perf_counter() - added
    chosen = list(cells.obs.index[::5])
    validation = LabelledCells(
        tuple(chosen),
        cells.expression(chosen, basis.genes),
        tuple(cells.obs["cell_type"].iloc[::5]),
        ("more",) * len(chosen),
        ("synthetic",) * len(chosen),
        ("one",) * len(chosen),
    )
    read = time.perf_counter()
    levels = LabelledLevels.of_cells(validation, sums)
    ExactLearner(sums, Memory(), Novelty()).annotator(sums.types, basis.genes, levels)
    return Cost(
        n_cells=len(cells.obs),
        n_nonzero=_nonzero(path),
        adding=added - began,
        solving=solving,
        calibrating=time.perf_counter() - read,
        cpu=time.process_time() - busy,
        gib=_gib(),
        gib_before=gib_before,
    )


def _added(cells: PreparedCells, basis: Basis) -> Sums:
    """Return the sums of all cells of a file, read as a stage reads them."""
    adder, types = Adder(basis), dict(zip(cells.obs.index, cells.obs["cell_type"], strict=True))
    for ids, expression in cells.chunks(list(types), basis.genes):
        adder.add(expression, [types[one] for one in ids])
    return adder.sums()


def _gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _nonzero(path: Path) -> int:
    import h5py

    with h5py.File(path) as file:
        return int(file["X/data"].shape[0])


def megabytes(n_genes: int, n_rows: int) -> float:
    """Return the size of sums of so many rows, a type or a batch and type each: 8 bytes a whole number."""
    return n_rows * (1 + n_genes + n_genes * (n_genes + 1) // 2) * 8 / 1e6


def written(n_genes: int, n_types: int, folder: Path) -> float:
    """Return the megabytes of the file of real sums of a few cells of each type."""
    random = np.random.default_rng([n_genes, n_types])
    adder = Adder(Basis(tuple(f"GENE{number}" for number in range(n_genes)), {}))
    names = [f"type {number % n_types:02}" for number in range(3 * n_types)]
    adder.add(random.gamma(1.0, 1.0, size=(len(names), n_genes)).astype(np.float32), names)
    path = folder / "sums.safetensors"
    adder.sums().save(path)
    return path.stat().st_size / 1e6


def sizes_table(most_mb: float) -> Table:
    """Return megabytes a stage by genes, types and batches; one batch is checked by a file."""
    shown = Table(
        title="sums of a stage, MB: by type, and by batch and type where every batch has every type"
    )
    for heading in ("genes", "types", "by type", "file", *(f"{n} batches" for n in BATCHES[1:])):
        shown.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        for n_genes in GENES:
            for n_types in N_TYPES:
                file, told = written(n_genes, n_types, Path(scratch)), megabytes(n_genes, n_types)
                if not 0 <= file - told < 0.01:
                    raise SystemExit(f"{n_genes} genes, {n_types} types: {told} MB told, {file} MB written")
                batches = [megabytes(n_genes, n_types * n) for n in BATCHES[1:]]
                marked = [f"{mb:,.1f}{' *' if mb > most_mb else ''}" for mb in batches]
                shown.add_row(str(n_genes), str(n_types), f"{told:,.2f}", f"{file:,.2f}", *marked)
    shown.caption = f"* above memory.batch_mb = {most_mb:g}: kept by type alone"
    return shown


def costs_table(costs: Sequence[Cost], n_genes: int) -> Table:
    """Return seconds and memory, a row a size."""
    shown = Table(title=f"one more stage, {n_genes} genes, {len(TYPES)} types")
    headings = (
        "cells",
        "counts > 0",
        "adding, s",
        "solving, s",
        "rule, s",
        "s in all",
        "CPU s",
        "GiB",
        "before cells",
    )
    for heading in (*headings, "CPU µs a cell"):
        shown.add_column(heading, justify="right")
    for one in costs:
        seconds = one.adding + one.solving + one.calibrating
        shown.add_row(
            f"{one.n_cells:,}",
            f"{one.n_nonzero:,}",
            f"{one.adding:.1f}",
            f"{one.solving:.2f}",
            f"{one.calibrating:.1f}",
            f"{seconds:.1f}",
            f"{one.cpu:.1f}",
            f"{one.gib:.2f}",
            f"{one.gib_before:.2f}",
            f"{1e6 * one.cpu / one.n_cells:.0f}",
        )
    return shown


def measured(sizes: Sequence[int], n_genes: int, file_genes: int) -> list[Cost]:
    """Return what stages of these sizes took, each in a process of its own."""
    costs = []
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before.h5ad"
        write_cells(before, _BLOCK, file_genes, seed=1)
        for size in sizes:
            path = Path(scratch) / f"cells-{size}.h5ad"
            sys.stderr.write(f"writing {size:,} cells\n")
            write_cells(path, size, file_genes, seed=0)
            command = [sys.executable, __file__, "--learn", str(path), str(before), "--genes", str(n_genes)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            costs.append(Cost(**json.loads(done.stdout)))
            path.unlink()
    return costs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--genes", type=int, default=300, help="of the panel")
    parser.add_argument("--file-genes", type=int, default=2000, help="of the file")
    parser.add_argument("--sizes", action="store_true", help="the table of megabytes alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--learn", type=Path, nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.learn:
        sys.stdout.write(json.dumps(asdict(learn(wanted.learn[0], wanted.learn[1], wanted.genes))))
        return
    console = Console(width=130, stderr=wanted.json)
    console.print(sizes_table(Memory().batch_mb))
    if wanted.sizes:
        return
    costs = measured(wanted.cells, wanted.genes, wanted.file_genes)
    console.print(costs_table(costs, wanted.genes))
    for one in costs:
        if one.n_cells == 100_000:
            seconds = one.adding + one.solving + one.calibrating
            kept = seconds <= MOST_SECONDS and one.gib <= MOST_GIB
            console.print(
                f"100,000 cells: {'within' if kept else 'NOT within'} {MOST_SECONDS:g} s, {MOST_GIB:g} GiB"
            )
    if wanted.json:
        sys.stdout.write(json.dumps([asdict(one) for one in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
