"""canal's engine beside the yardstick (`benchmarks/reference.py`): one process, order swapped, ratios.

    python benchmarks/engine.py                     # everything, 10 to 30 minutes on two cores
    python benchmarks/engine.py epoch --pairs 2     # one part, fewer repetitions

Cells are synthetic (70 % zeros); the time of an operation does not depend on its values. Every figure is a
ratio of two times taken in turns, with the smallest and the largest ratio of all turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import reference
import torch
from rich.console import Console
from rich.table import Table

from canal.config.sections import Continual
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.stage import Task
from canal.continual.trainer import learn_stage
from canal.model.annotator import Annotator
from canal.model.backbone import Backbone, new_performer
from canal.model.storage import PRESETS

OLD, NEW = ("B", "CD4 T", "CD8 T", "NK"), ("CD14 Mono", "DC")
EPOCHS_OF_A_STAGE = 20
WARM_EPOCHS = 2


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, both times, and their ratio."""

    what: str
    yardstick: str
    canal: str
    ratio: str
    target: str


def cells_of(n: int, genes: int, types: tuple[str, ...], seed: int, stage: str) -> LabelledCells:
    """Return synthetic cells: 70 % zeros, the rest spread over the levels; types in turns."""
    random = np.random.default_rng([seed, n, genes])
    levels = random.gamma(2.0, 1.2, size=(n, genes)) * (random.random((n, genes)) < 0.3)
    names = tuple(f"{stage}:{i}" for i in range(n))
    kinds = tuple(types[i % len(types)] for i in range(n))
    return LabelledCells(names, levels.astype(np.float32), kinds, (stage,) * n, (stage,) * n, ("b",) * n)


def backbone_of(preset: str, genes: int) -> Backbone:
    """Return a backbone of a preset's shape with random weights."""
    config, random = PRESETS[preset].backbone, torch.Generator().manual_seed(0)
    network = new_performer(config, torch.randn(genes, config.dim, generator=random), random)
    return Backbone(network.eval().requires_grad_(False), tuple(f"GENE{i}" for i in range(genes)))


def annotator_of(preset: str, genes: int) -> Annotator:
    """Return an annotator of a preset's shape with random weights."""
    backbone, random = backbone_of(preset, genes), torch.Generator().manual_seed(1)
    start = cells_of(16, genes, OLD, 9, "start").expression
    return Annotator.start(backbone, backbone.vocabulary, OLD, start, random)


def task_of(annotator: Annotator, n: int) -> Task:
    """Return a second stage of ``n`` cells, a third of them from the bank, with teacher and probe."""
    genes, old = len(annotator.genes), n // 3
    return Task(
        stage="second",
        parent=annotator,
        genes=annotator.genes,
        new_labels=NEW,
        train=cells_of(n - old, genes, NEW, 1, "second"),
        validation=cells_of(2, genes, NEW, 2, "judge"),
        replay=cells_of(old, genes, OLD, 3, "first"),
        probe=replace(cells_of(2, genes, OLD, 4, "probe"), stages=("first", "first")),
        seed=0,
    )


def engine_epochs(task: Task, threads: int) -> tuple[float, float]:
    """Return seconds to fill the cache, and of one warm epoch (its judging included)."""
    torch.set_num_threads(threads)
    marks = [time.perf_counter()]
    settings = Continual(max_epochs=1 + WARM_EPOCHS, patience=99)
    with TemporaryDirectory() as folder:
        hooks = Hooks(lambda _: marks.append(time.perf_counter()), cache_dir=Path(folder))
        learn_stage(task, settings, hooks)
    warm = (marks[-1] - marks[1]) / WARM_EPOCHS
    return max(0.0, marks[1] - marks[0] - warm), warm


def yardstick_epoch(task: Task, threads: int) -> float:
    """Return seconds of one epoch of the plain loop over the same cells."""
    torch.set_num_threads(threads)
    student = task.teacher.grown(NEW, torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    weights, teacher = reference.weights_of(student), reference.weights_of(task.teacher)  # type: ignore[arg-type]
    together = LabelledCells.concatenate([task.train, task.replay])
    optimizer = reference.optimizer_of(weights, 2e-4)
    cells = (together.expression, together.targets(task.labels))
    began = time.perf_counter()
    reference.train_epoch(weights, teacher, cells, optimizer, 0.1 * len(OLD) / len(task.labels))
    return time.perf_counter() - began


def epoch(preset: str, genes: int, n: int, pairs: int, threads: int) -> list[Row]:
    """Measure one warm epoch of a second stage, and a whole stage with a cold cache."""
    task = task_of(annotator_of(preset, genes), n)
    ours, theirs = in_turns(
        lambda: engine_epochs(task, threads), lambda: yardstick_epoch(task, threads), pairs
    )
    stage = [fill + EPOCHS_OF_A_STAGE * warm for fill, warm in ours]
    name = f"{preset}, {genes:,} genes, {n} cells"
    return [
        row(f"warm epoch, {name}", theirs, [warm for _, warm in ours], n, "8 x"),
        row(
            f"{EPOCHS_OF_A_STAGE} epochs with a cold cache, {name} (extrapolated from one)",
            [EPOCHS_OF_A_STAGE * each for each in theirs],
            stage,
            n * EPOCHS_OF_A_STAGE,
            "10 x in bf16",
        ),
    ]


def annotation(preset: str, genes: int, n: int, pairs: int, threads: int) -> list[Row]:
    """Measure annotation against the plain network one cell at a time, and against the machine's peak."""
    torch.set_num_threads(threads)
    annotator = annotator_of(preset, genes)
    weights = reference.weights_of(annotator)
    expression = cells_of(n, genes, OLD, 5, "query").expression
    annotator.predict(expression[:2])
    ours, theirs = in_turns(
        lambda: timed(lambda: annotator.predict(expression)),
        lambda: timed(lambda: reference.predict(expression, weights)),
        pairs,
    )
    gap = np.abs(annotator.predict(expression).logits - reference.predict(expression, weights)).max()
    speed = n / min(ours)
    share = reference.nominal_flops(annotator.network.backbone.config, genes) * speed / (peak(threads) * 1e9)
    name = f"{preset}, {genes:,} genes"
    return [
        row(f"annotation, {name}, {n} cells", theirs, ours, n, "3 x in bf16"),
        Row(f"  cells a second, {name}", f"{n / min(theirs):.1f}", f"{speed:.1f}", "", ""),
        Row(f"  share of the matmul peak, {name}", "", f"{share:.0%}", "", "55 % in bf16"),
        Row(f"  largest difference of a logit, {name}", "", f"{gap:.1e}", "", "1e-4"),
    ]


def tried(pairs: int, threads: int) -> list[Row]:
    """Measure one block of one cell at scBERT size in the ways that were tried; the engine's own is first.

    ``bfloat16`` pays where the processor has instructions for it and is a parameter; compiling and int8 did
    not pay on the machines measured, and are in no other file of canal.
    """
    torch.set_num_threads(1)
    annotator = annotator_of("scbert", 1000)
    weights, block = reference.weights_of(annotator), annotator.network.backbone.blocks[2]
    x = torch.randn(1, 1001, 200, generator=torch.Generator().manual_seed(1))

    def plain(values: torch.Tensor) -> torch.Tensor:
        return reference.block(values, weights, "backbone.blocks.2")

    def rounded(values: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return block(values).float()

    feed_forward = {"feed_forward": torch.ao.quantization.default_dynamic_qconfig}
    ways = {
        "engine": block,
        "yardstick's formula": plain,
        "yardstick's formula, compiled": torch.compile(plain),
        "engine, int8 feed-forward": torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(block), feed_forward
        ),
        "engine, bfloat16": rounded,
    }
    rows, engine = [], 0.0
    with torch.no_grad():
        exact = block(x)
        for name, way in ways.items():
            began = time.perf_counter()
            gap = float((way(x) - exact).abs().max())
            first = time.perf_counter() - began
            seconds = min(timed(lambda way=way: way(x)) for _ in range(2 * pairs))  # type: ignore[misc]
            engine = engine or seconds
            said = f"{seconds * 1e3:.0f} ms, first call {first:.1f} s, largest difference {gap:.0e}"
            rows.append(Row(f"one block, one thread: {name}", "", said, f"{engine / seconds:.2f} x", ""))
    torch.set_num_threads(threads)
    return rows


def peak(threads: int) -> float:
    """Return the best GFLOP/s of a square fp32 matrix product."""
    torch.set_num_threads(threads)
    a = torch.randn(1500, 1500)
    return 2 * 1500**3 / min(timed(lambda: a @ a) for _ in range(8)) / 1e9


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> tuple[list[Any], list[Any]]:
    """Run both ``pairs`` times, each pair in the other order."""
    found: tuple[list[Any], list[Any]] = ([], [])
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            found[which].append((ours, theirs)[which]())
    return found


def row(what: str, theirs: list[float], ours: list[float], n: int, target: str) -> Row:
    """Return the line of two lists of times of ``n`` cells, taken in pairs."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    middle = statistics.median(ratios)
    return Row(
        what,
        f"{min(theirs) / n * 1e3:.1f} ms a cell",
        f"{min(ours) / n * 1e3:.1f} ms a cell",
        f"{middle:.1f} x ({ratios[0]:.1f}-{ratios[-1]:.1f})",
        target,
    )


PARTS: dict[str, Callable[[int, int], list[Row]]] = {
    "epoch": lambda pairs, threads: epoch("scbert", 1000, 28, pairs, threads),
    "annotate": lambda pairs, threads: annotation("scbert", 1000, 16, pairs, threads),
    "small-epoch": lambda pairs, threads: epoch("small", 300, 420, pairs, threads),
    "small": lambda pairs, threads: annotation("small", 300, 400, pairs, threads),
    "tried": tried,
    "small-wide": lambda pairs, threads: annotation("small", 1000, 200, pairs, threads),
}


def main() -> None:
    """Measure the parts asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], help="by default all")
    parser.add_argument("--pairs", type=int, default=3, help="times that both are measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for part in arguments.parts or PARTS:
        rows += PARTS[part](arguments.pairs, arguments.threads)
        sys.stderr.write(f"measured {part}\n")
    if arguments.json:
        sys.stdout.write(json.dumps([vars(each) for each in rows], indent=1) + "\n")
        return
    table = Table(
        title=f"{arguments.threads} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"fp32 matmul peak {peak(arguments.threads):.0f} GFLOP/s"
    )
    for name in ("measured", "yardstick", "canal", "ratio: median (range)", "target"):
        table.add_column(name)
    for each in rows:
        table.add_row(*vars(each).values())
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
