"""What continual learning is measured against: the same network trained on all stages at once.

Same backbone, panel, splits, seed and settings as the pipeline's; all training cells together, no bank and no
teacher. Prints the accuracy on each stage's test cells beside what the pipeline's last version reaches, and
that of logistic regression on the same expression. Needs a finished `make run`; `make bound` runs it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from canal.app.project import Project
from canal.continual.cells import LabelledCells
from canal.continual.fit import Hooks
from canal.continual.stage import Task
from canal.continual.trainer import learn_stage
from canal.core.files import read_json
from canal.model.backbone import Backbone


def joint_task(project: Project) -> Task:
    """Return one lesson that holds every stage's training and validation cells."""
    stages = list(project.config.stages)
    train = LabelledCells.concatenate([project.cells(stage, "train") for stage in stages])
    validation = LabelledCells.concatenate([project.cells(stage, "validation") for stage in stages])
    genes = tuple(project.panel)
    nothing = LabelledCells.empty(len(genes))
    backbone = Backbone.load(project.layout.model("backbone") / "model")
    return Task(
        "joint", backbone, genes, train.types, train, validation, nothing, nothing, project.config.seed
    )


def main() -> None:
    """Train jointly, and print the table."""
    project = Project.open()
    torch.set_num_threads(project.config.threads)
    stages = list(project.config.stages)
    tests = {stage: project.cells(stage, "test") for stage in stages}
    task = joint_task(project)
    with TemporaryDirectory() as scratch:
        hooks = Hooks(cache_dir=Path(scratch))
        annotator = learn_stage(task, project.config.continual, hooks).annotator
    reserve = [project.cells(stage, "reserve") for stage in stages]
    everything = LabelledCells.concatenate([task.train, *reserve])
    joint = {
        stage: _share(annotator.predict(cells.expression).labels, list(cells.cell_types))
        for stage, cells in tests.items()
    }
    last = read_json(project.layout.metrics(stages[-1]) / "evaluation.json")["row"]
    _print(
        {
            "canal, stage by stage": last,
            "same network, jointly": joint,
            "logistic regression, jointly": logistic(task.train, tests),
            "… with the cells in reserve": logistic(everything, tests),
        },
        stages,
    )


def logistic(train: LabelledCells, tests: dict[str, LabelledCells]) -> dict[str, float]:
    """Return the accuracy of logistic regression on each stage's test cells."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    linear.fit(train.expression, train.cell_types)
    return {
        stage: _share(linear.predict(cells.expression).tolist(), list(cells.cell_types))
        for stage, cells in tests.items()
    }


def _share(found: list[str], truth: list[str]) -> float:
    return sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)


def _print(rows: dict[str, dict[str, float]], stages: list[str]) -> None:
    table = Table(title="accuracy on each stage's test cells")
    table.add_column("trained")
    for stage in stages:
        table.add_column(stage, justify="right")
    table.add_column("mean", justify="right")
    for name, row in rows.items():
        values = [*(row[stage] for stage in stages), sum(row.values()) / len(row)]
        table.add_row(name, *(f"{value:.3f}" for value in values))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
