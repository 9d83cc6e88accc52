"""What a study costs: 20 trials beside one full training of the same stage, in one run.

    python benchmarks/tuning.py                                  # kang-ctrl of this project
    python benchmarks/tuning.py --stage kang-ctrl --json

Needs a finished `make run`, of which it reads cells, splits and the parent's model, and changes nothing.
Frozen features are computed first, since both share them; they are told apart. The training is as long as
its early stopping makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from canal.app.choosing import plan, ready, watch_trials
from canal.app.project import Project
from canal.app.tasks import lesson
from canal.continual.trainer import learn_stage
from canal.tuning.document import TUNED_FILE, settings_of, study_document
from canal.tuning.study import Study

TARGET = 4.0


def measure(project: Project, stage: str, n_trials: int, scratch: Path) -> dict[str, Any]:
    """Return seconds of the features, of a full training with them and of a study with them."""
    torch.set_num_threads(project.config.threads)
    attempts = ready(project, stage)
    attempts = replace(
        attempts,
        hooks=replace(attempts.hooks, cache_dir=scratch / "features"),
        tuning=attempts.tuning.model_copy(
            update={"n_trials": n_trials, "max_minutes": None, "storage": None}
        ),
    )
    settings = settings_of(project.config, stage, project.layout.model(stage) / TUNED_FILE)
    task, _ = lesson(project, stage, settings.bank_size)
    began = time.perf_counter()
    whole = replace(task, replay=attempts.bank.cells)
    learn_stage(whole, settings.model_copy(update={"max_epochs": 1}), attempts.hooks)
    features = time.perf_counter() - began
    began = time.perf_counter()
    history = learn_stage(task, settings, attempts.hooks).history
    training = time.perf_counter() - began
    asked = replace(plan(project, stage, attempts), folder=scratch / "study")
    study = Study.open(replace(asked, tuning=attempts.tuning))
    began = time.perf_counter()
    with watch_trials(study) as watch:
        study.work(attempts, watch)
    seconds = time.perf_counter() - began
    found = study_document(study, {})
    return {
        "stage": stage,
        "threads": project.config.threads,
        "features and one epoch, s": features,
        "full training, s": training,
        "full training, epochs": len(history["epochs"]),
        "study, s": seconds,
        "study, trials": len(found["trials"]),
        "study, ended early": found["states"]["pruned"],
        "study, epochs": sum(len(one["curve"]) for one in found["trials"]),
        "ratio": seconds / training,
        "target": TARGET,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=None, help="project folder; by default this one")
    parser.add_argument("--stage", default="kang-ctrl", help="a stage that is tuned")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="canal-tuning-") as scratch:
        found = measure(Project.open(arguments.root), arguments.stage, arguments.trials, Path(scratch))
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    table = Table(title=f"a study of {arguments.trials} trials beside one full training of {arguments.stage}")
    table.add_column("measured")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
