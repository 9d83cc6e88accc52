"""How cost grows: seconds against cells, genes and threads; and how near the machine's limit.

    python benchmarks/scaling.py -o docs/images        # writes scaling.png, prints the tables

Annotation and one warm epoch at the small preset are measured; 100,000 cells are extrapolated from the
largest number measured and labelled so. The slope is that of log(seconds) over log(size): 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import reference
import torch
from engine import OLD, annotator_of, cells_of, engine_epochs, peak, task_of, timed
from rich.console import Console
from rich.table import Table

from canal.model.annotator import Annotator

EXTRAPOLATED = 100_000

Curve = list[tuple[int, float]]


def by_cells(sizes: Iterable[int], threads: int) -> Curve:
    """Return seconds to annotate each number of cells at 300 genes."""
    torch.set_num_threads(threads)
    annotator = annotator_of("small", 300)
    annotator.predict(cells_of(8, 300, OLD, 1, "warm").expression)
    queries = ((n, cells_of(n, 300, OLD, 1, "query").expression) for n in sizes)
    return [(n, timed(lambda cells=cells: annotator.predict(cells))) for n, cells in queries]


def by_genes(sizes: Iterable[int], n: int, threads: int) -> tuple[Curve, Curve, list[float]]:
    """Return seconds of annotation and of a warm epoch of ``n`` cells by genes, and GFLOP/s of the former."""
    annotation, epochs, speeds = [], [], []
    for genes in sizes:
        torch.set_num_threads(threads)
        annotator, cells = annotator_of("small", genes), cells_of(n, genes, OLD, 1, "query").expression
        annotator.predict(cells[:8])
        seconds = fastest(annotator, cells)
        annotation.append((genes, seconds))
        epochs.append((genes, engine_epochs(task_of(annotator, n), threads)[1]))
        speeds.append(reference.nominal_flops(annotator.network.backbone.config, genes) * n / seconds / 1e9)
    return annotation, epochs, speeds


def by_threads(n: int, genes: int) -> Curve:
    """Return seconds of annotation by number of threads."""
    annotator, cells = annotator_of("small", genes), cells_of(n, genes, OLD, 1, "query").expression
    curve = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        annotator.predict(cells[:8])
        curve.append((threads, fastest(annotator, cells)))
    return curve


def fastest(annotator: Annotator, cells: np.ndarray) -> float:
    """Return the least seconds of three annotations."""
    return min(timed(lambda: annotator.predict(cells)) for _ in range(3))


def slope(curve: Curve) -> float:
    """Return the exponent that fits best: seconds are proportional to size to that power."""
    sizes, seconds = np.log(np.array(curve)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def draw(curves: dict[str, Curve], speeds: dict[str, float], path: Path) -> None:
    """Draw the curves, and the achieved GFLOP/s against the measured peak."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(curves) + 1)
    for place, (name, curve) in zip(axes, curves.items(), strict=False):
        sizes, seconds = zip(*curve, strict=True)
        place.loglog(sizes, seconds, "o-", color="#2a6f97")
        place.set(title=f"{name}, slope {slope(curve):.2f}", xlabel=name.split(" by ")[1], ylabel="seconds")
    axes[-1].bar(list(speeds), list(speeds.values()), color="#89c2d9")
    axes[-1].set(title="GFLOP/s, nominal", ylabel="GFLOP/s")
    axes[-1].tick_params(axis="x", rotation=20)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--genes", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--n", type=int, default=200, help="cells of the measurements by genes and threads")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    cells = by_cells(arguments.cells, arguments.threads)
    genes, epochs, achieved = by_genes(arguments.genes, arguments.n, arguments.threads)
    threads = by_threads(arguments.n, arguments.genes[0])
    curves = {"annotation by cells": cells, "annotation by genes": genes, "warm epoch by genes": epochs}
    table = Table(title=f"small preset, {arguments.threads} threads, fp32")
    for name in ("measured", "size", "seconds"):
        table.add_column(name, justify="left" if name == "measured" else "right")
    for name, curve in {**curves, "annotation by threads": threads}.items():
        for size, seconds in curve:
            table.add_row(name, f"{size:,}", f"{seconds:.2f}")
    last, seconds = cells[-1]
    table.add_row(
        "annotation by cells (extrapolated)", f"{EXTRAPOLATED:,}", f"{seconds / last * EXTRAPOLATED:.0f}"
    )
    console = Console(width=110)
    console.print(table)
    top = peak(arguments.threads)
    speeds = {f"{size:,} genes": speed for size, speed in zip(arguments.genes, achieved, strict=True)}
    draw(curves, {**speeds, "matmul peak": top}, arguments.output / "scaling.png")
    shares = {name: f"{speed / top:.0%} of the peak" for name, speed in speeds.items()}
    slopes = {name: round(slope(curve), 3) for name, curve in curves.items()}
    sys.stdout.write(
        json.dumps({"slopes": slopes, "roofline": shares, "peak_gflops": round(top)}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
