"""What bounds the engine: where one thread's time goes, by kind of operation (torch's profiler).

    python benchmarks/bounds.py                     # everything, some minutes
    python benchmarks/bounds.py small --json

Matrix products have a floor, the machine's measured peak. What is beside them (exponentials, norms, copies)
runs at the speed of the cache and of the memory; what torch does not see is Python's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from engine import OLD, annotator_of, cells_of, peak, task_of
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from canal.config.sections import Continual
from canal.continual.fit import Hooks
from canal.continual.trainer import learn_stage

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "exp, GELU": ("exp", "exp_", "exp2", "exp2_", "gelu", "gelu_backward", "erf", "tanh"),
    "norms": ("native_layer_norm", "native_layer_norm_backward", "var_mean", "rsqrt"),
    "rows looked up": ("index", "index_select", "embedding", "gather", "take_along_dim"),
}
REST, OUTSIDE = "other arithmetic, copies", "outside of torch"


@dataclass(frozen=True)
class Profile:
    """What was measured, and its time: in all, by kind of operation, and of matrix products beside the peak.

    Attributes
    ----------
    milliseconds : float
        Of one cell, by one thread.
    shares : dict
        Of the time, by kind; their sum is 1.
    products : float
        GFLOP/s within matrix products, as a share of the peak of a large one.
    """

    what: str
    milliseconds: float
    shares: dict[str, float]
    products: float


def profiled(what: str, n_cells: int, begin: Callable[[Callable[[], None]], None]) -> Profile:
    """Profile from the moment at which ``begin`` calls what it is given until it returns."""
    best = peak(1)
    recorder = profile(activities=[ProfilerActivity.CPU], with_flops=True)
    began = []

    def start() -> None:
        if not began:
            recorder.start()
            began.append(time.perf_counter())

    begin(start)
    seconds = time.perf_counter() - began[0]
    recorder.stop()
    spent: dict[str, float] = defaultdict(float)
    flops = 0.0
    for event in recorder.key_averages():
        if event.key.startswith("aten::"):
            kind = kind_of(event.key.removeprefix("aten::"))
            spent[kind] += event.self_cpu_time_total / 1e6
            flops += event.flops if kind == "matrix products" else 0
    spent[OUTSIDE] = max(0.0, seconds - sum(spent.values()))
    shares = {kind: spent[kind] / seconds for kind in (*KINDS, REST, OUTSIDE)}
    products = flops / spent["matrix products"] / 1e9 / best
    return Profile(what, seconds / n_cells * 1e3, shares, products)


def kind_of(operation: str) -> str:
    """Return the kind of one of torch's operations."""
    return next((kind for kind, names in KINDS.items() if operation in names), REST)


def annotation(preset: str, genes: int, n: int) -> Profile:
    """Profile annotation."""
    annotator = annotator_of(preset, genes)
    expression = cells_of(n, genes, OLD, 5, "query").expression
    annotator.predict(expression[:2])

    def predict(start: Callable[[], None]) -> None:
        start()
        annotator.predict(expression)

    return profiled(f"annotation, {preset}, {genes:,} genes", n, predict)


def epoch(preset: str, genes: int, n: int) -> Profile:
    """Profile a warm epoch of a second stage."""
    task = task_of(annotator_of(preset, genes), n)

    def learn(start: Callable[[], None]) -> None:
        with TemporaryDirectory() as folder:
            hooks = Hooks(lambda _: start(), cache_dir=Path(folder))
            learn_stage(task, Continual(max_epochs=2, patience=99), hooks)

    return profiled(f"warm epoch, {preset}, {genes:,} genes", n, learn)


PARTS: dict[str, Callable[[], Profile]] = {
    "epoch": lambda: epoch("scbert", 1000, 28),
    "annotate": lambda: annotation("scbert", 1000, 8),
    "small-epoch": lambda: epoch("small", 300, 420),
    "small": lambda: annotation("small", 300, 200),
    "small-wide": lambda: annotation("small", 1000, 100),
}


def main() -> None:
    """Profile the parts asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], help="by default all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for part in arguments.parts or PARTS:
        found.append(PARTS[part]())
        sys.stderr.write(f"profiled {part}\n")
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(each) for each in found], indent=1) + "\n")
        return
    table = Table(title="share of one thread's time, %")
    for name in ("profiled", "ms a cell", *KINDS, REST, OUTSIDE, "products, % of peak"):
        table.add_column(name, justify="left" if name == "profiled" else "right")
    for each in found:
        shares = (f"{share * 100:.0f}" for share in each.shares.values())
        table.add_row(each.what, f"{each.milliseconds:.1f}", *shares, f"{each.products * 100:.0f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
