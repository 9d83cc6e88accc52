"""The exact memory on streams, over split seeds, beside SLDA, random features and logistic regression.

    python benchmarks/exact.py                                # first and embedded, 20 seeds
    python benchmarks/exact.py --data ~/cells                 # immune and pancreas, too
    python benchmarks/exact.py --streams embedded --learners exact slda --seeds 3
    python benchmarks/exact.py --data ~/cells --streams immune --orders
    python benchmarks/exact.py --data ~/cells --parts
    python benchmarks/exact.py --streams embedded --root .    # and a finished project's own figures

Sources are fetched, prepared, split and their genes chosen by canal's own code, for each seed anew. A learner
learns the stages in their order and is measured on the test cells of all so far; then each study is left out
in turn, and the others answer for its test cells of types that they know. Logistic regression learns all
training cells at once, those in reserve, too, and so do all others here. What was measured is kept in
``--into`` and not measured again, as long as cells, parameters and the learner's code are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import exact_orders
import exact_parts
import numpy as np
import stream
from exact_figures import Figures, differences, interval, mean, measured
from exact_learners import LEARNERS
from exact_streams import NEED_DATA, STREAMS, Stream
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from canal.continual import evaluation as measures
from canal.core.digests import json_digest
from canal.core.files import read_json, write_json

COLUMNS = {
    "average": "A_T",
    "types": "mean over types",
    "macro_f1": "macro-F1",
    "macro_f1_pooled": "pooled",
    "forgetting": "forgetting",
    "left_out": "study left out",
    "left_out_types": "mean over types",
    "ece": "ECE",
    "nll": "NLL",
}
JOINT = "logistic"


def over_seeds(
    name: str, line: Stream, learners: Sequence[str], seeds: Sequence[int], into: Path
) -> dict[str, list[Figures]]:
    """Return the figures of each learner, seed by seed; what is kept in ``into`` is not measured again."""
    found: dict[str, list[Figures]] = {one: [] for one in learners}
    for seed in seeds:
        drawn = line.drawn(seed)
        about = [drawn.digest(), drawn.config.probe.max_cells]
        for one in learners:
            path, asked = (
                into / name / f"{one}-{seed}.json",
                json_digest([about, LEARNERS[one].asked(drawn.config)]),
            )
            kept = read_json(path) if path.is_file() else {}
            if kept.get("asked") != asked:
                began = time.perf_counter()
                figures = measured(LEARNERS[one](drawn), drawn)
                kept = {"asked": asked, "seconds": time.perf_counter() - began, "figures": figures}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, kept)
                sys.stderr.write(
                    f"{name}, seed {seed}, {LEARNERS[one].name}: A_T {figures['average']:.4f}, "
                    f"{kept['seconds']:.1f} s\n"
                )
            found[one].append(kept["figures"])
    return found


def of_project(root: Path) -> Figures:
    """Return the figures of a finished project's last version, as it measured them itself."""
    import pandas as pd

    files = (root / "metrics").glob("*/evaluation.json")
    paths = sorted(files, key=lambda path: len(read_json(path)["stages"]))
    if not paths:
        raise SystemExit(f"{root} has no metrics/*/evaluation.json: finish `make run` there first")
    document, folder = read_json(paths[-1]), paths[-1].parent
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    truth, named = table["truth"].tolist(), table["predicted"].tolist()
    per_stage = document["per_stage"].values()
    return {
        "average": document["average_accuracy"],
        "forgetting": document["forgetting"],
        "types": measures.balanced_accuracy(truth, named),
        "macro_f1": float(np.mean([one["macro_f1"] for one in per_stage])),
        "macro_f1_pooled": measures.macro_f1(truth, named),
        "ece": (document["calibration"] or {}).get("ece"),
    }


def table(name: str, found: Mapping[str, Sequence[Figures]], projects: Mapping[str, Figures]) -> Table:
    """Return the means over seeds of a stream, a row a learner, and figures of projects below them."""
    n_seeds = len(next(iter(found.values())))
    shown = Table(title=f"{name}: test cells, mean of {n_seeds} split seeds (standard error of A_T)")
    for heading in ("learner", *COLUMNS.values()):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        values = [mean(figures, key) for key in COLUMNS]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        if n_seeds > 1:
            averages = np.array([each["average"] for each in figures], dtype=np.float64)
            error = averages.std(ddof=1) / np.sqrt(n_seeds)
            cells[0] += f" ({error:.4f})"
        shown.add_row(LEARNERS[one].name, *cells)
    for folder, own in projects.items():
        values = [own.get(key) for key in COLUMNS]
        shown.add_row(folder, *("-" if value is None else f"{value:.4f}" for value in values))
    return shown


def paired(name: str, found: Mapping[str, Sequence[Figures]]) -> Table:
    """Return what learners gain on joint logistic regression, in points, seed by seed alike."""
    shown = Table(title=f"{name}: less logistic regression of all cells at once, points [95 % interval]")
    keys = ("average", "types", "macro_f1", "left_out", "left_out_types", "ece", "nll")
    for heading in ("learner", *(COLUMNS[key] for key in keys)):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        if one != JOINT:
            apart = [differences(figures, found[JOINT], key) for key in keys]
            shown.add_row(LEARNERS[one].name, *map(interval, apart))
    return shown


def stages_table(name: str, found: Mapping[str, Sequence[Figures]]) -> Table:
    """Return the accuracy on each stage, learned and left out."""
    shown = Table(title=f"{name}: accuracy by stage: all learned / this one left out")
    stages = [key.removeprefix("on ") for key in next(iter(found.values()))[0] if key.startswith("on ")]
    for heading in ("learner", *stages):
        shown.add_column(heading, justify="left" if heading == "learner" else "right")
    for one, figures in found.items():
        pairs = [(mean(figures, f"on {stage}"), mean(figures, f"without {stage}")) for stage in stages]
        cells = [" / ".join("-" if each is None else f"{each:.3f}" for each in pair) for pair in pairs]
        shown.add_row(LEARNERS[one].name, *cells)
    return shown


def wishes(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--data", type=Path, help=f"folder with the files of {', '.join(NEED_DATA)}")
    parser.add_argument("--seeds", type=int, default=20, help="split seeds, 0 and up")
    parser.add_argument("--orders", action="store_true", help="all orders of stages, instead")
    parser.add_argument("--parts", action="store_true", help="what each number is worth, instead")
    parser.add_argument("--root", type=Path, nargs="*", default=[], help="finished projects, to stand beside")
    parser.add_argument("--into", type=Path, default=stream.REPOSITORY / ".canal" / "exact")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each stream and print."""
    wanted, found = wishes(arguments), dict[str, Any]()
    projects = {f"project {root.resolve().name}": of_project(root) for root in wanted.root}
    console = Console(width=170, stderr=wanted.json)
    for name in wanted.streams:
        if name in NEED_DATA and wanted.data is None:
            console.print(f"{name} is left out: its files are not in packages; --data names their folder")
            continue
        with threadpool_limits(1):
            line = Stream(name, wanted.data, wanted.into / "prepared", stream.REPOSITORY / ".canal")
            if wanted.orders:
                orders = exact_orders.measured(line, range(wanted.seeds))
                console.print(exact_orders.table(name, orders))
                found[name] = orders
                continue
            if wanted.parts:
                parts = exact_parts.over_seeds(line, range(wanted.seeds), wanted.into / "seeds")
                console.print(exact_parts.table(name, parts))
                found[name] = parts
                continue
            one = over_seeds(name, line, wanted.learners, range(wanted.seeds), wanted.into / "seeds")
        found[name] = one
        console.print(table(name, one, projects if len(wanted.streams) == 1 else {}))
        console.print(stages_table(name, one))
        if JOINT in one and len(one) > 1 and wanted.seeds > 1:
            console.print(paired(name, one))
    if wanted.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
