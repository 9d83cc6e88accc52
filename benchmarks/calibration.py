"""How far may a stated confidence be believed? The error over the test cells of all stages, and of each.

    python benchmarks/calibration.py                                # this project, its newest stage
    python benchmarks/calibration.py --root /tmp/immune --json

Needs a finished `make run`, or a stream project of `stream.py`, and changes nothing in it. The temperature is
fitted anew, as a stage fits it when it is learned: on validation cells and probe sets alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from canal.app.learning import examination, held_out_cells
from canal.app.project import Project
from canal.memory.prediction import calibration, fit_temperature
from canal.model.annotator import Annotator

POOLED = "all stages"
AIM = 0.05


def measured(project: Project, stage: str) -> dict[str, Any]:
    """Return the calibration error of a stage's model, with and without temperature, pooled and by stage."""
    torch.set_num_threads(project.config.threads)
    annotator = Annotator.load(project.layout.model(stage) / "model")
    exam = examination(project, stage)
    known = held_out_cells(project, stage, exam).validation
    logits = annotator.predict(known.expression).logits
    temperature = fit_temperature(logits, known.targets(annotator.labels))
    tests = exam.measured
    answers = {name: annotator.predict(cells.expression).logits for name, cells in tests.items()}
    truth = {name: np.array(cells.cell_types, dtype=object) for name, cells in tests.items()}
    for parts in (answers, truth):
        parts[POOLED] = np.concatenate(list(parts.values()))
    return {
        "stage": stage,
        "n_known": len(known),
        "temperature": temperature,
        "errors": {
            name: {
                "with": errors(annotator, logits, truth[name], temperature, project.config.seed),
                "without": errors(annotator, logits, truth[name], 1.0, project.config.seed),
            }
            for name, logits in answers.items()
        },
    }


def errors(
    annotator: Annotator, logits: np.ndarray, truth: np.ndarray, temperature: float, seed: int
) -> dict[str, float]:
    """Return ECE, its 95 % interval, accuracy and number of cells."""
    probabilities = annotator.with_temperature(temperature).probabilities(logits).astype(np.float64)
    right = np.array(annotator.labels, dtype=object)[probabilities.argmax(axis=1)] == truth
    found = calibration(probabilities.max(axis=1), right, np.random.default_rng(seed))
    wanted = {name: float(found[name]) for name in ("n", "ece", "low", "high")}
    return wanted | {"accuracy": float(right.mean())}


def table(name: str, found: dict[str, Any]) -> Table:
    """Return one project's errors as a table."""
    title = f"{name}, model of {found['stage']}: calibration error (ECE); T = {found['temperature']}"
    shown = Table(title=f"{title} from {found['n_known']:,} cells")
    for column in ("test cells of", "cells", "accuracy", "ECE", "95 % interval", "without T"):
        shown.add_column(column, justify="left" if column == "test cells of" else "right")
    for stage, both in found["errors"].items():
        one, interval = both["with"], "{low:.3f} to {high:.3f}".format(**both["with"])
        figures = (f"{one['n']:,.0f}", f"{one['accuracy']:.3f}", f"{one['ece']:.3f}", interval)
        shown.add_row(stage, *figures, f"{both['without']['ece']:.3f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each project and print its errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", nargs="+", type=Path, default=[Path()], help="project folders")
    parser.add_argument("--stage", help="whose model; by default the newest stage's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    wishes = parser.parse_args(arguments)
    found = {}
    for root in wishes.root:
        project = Project.open(root)
        found[root.resolve().name] = measured(project, wishes.stage or list(project.config.stages)[-1])
    console = Console()
    if wishes.json:
        print(json.dumps(found, indent=1))  # noqa: T201
        return
    for name, one in found.items():
        console.print(table(name, one))
        pooled = one["errors"][POOLED]["with"]
        verdict = "within" if pooled["ece"] <= AIM else "above"
        console.print(f"pooled: {pooled['ece']:.3f}, {verdict} the aim of {AIM}")


if __name__ == "__main__":
    main()
