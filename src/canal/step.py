"""What each script of ``pipelines/`` does first and last: its argument, its errors in one line."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canal.errors import CanalError
from canal.startup import begin

if TYPE_CHECKING:
    from canal.continual.fit import Hooks
    from canal.project import Project
    from canal.registry.tracking import StepRun


def argument(name: str) -> str:
    """Return the value of the one option ``--name`` of this script."""
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{name}", required=True)
    return str(getattr(parser.parse_args(), name))


def say(line: str) -> None:
    """Tell the person who watches what a step is doing."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run(step: Callable[[], None]) -> None:
    """Run a step; an error made for people ends it with one message and exit code 1."""
    begin()
    try:
        step()
    except CanalError as error:
        say(f"canal: {error}")
        raise SystemExit(1) from None


def project_step(
    project: "Project", entry_point: str, stage: str, learn: "Callable[[Project, StepRun], None]"
) -> None:
    """Run ``learn`` as an MLflow Project step.

    DVC starts the script outside MLflow: the script then has MLflow start it again as an entry point, below
    the stage's parent run. ``mlflow run . -e finetune -P stage=...`` gets there at once.
    """
    from canal.registry.tracking import inside_project_run, start_entry_point, step_run

    if not inside_project_run():
        start_entry_point(project.store, project.config, entry_point, stage)
        return
    import torch

    torch.set_num_threads(project.config.threads)
    with step_run(project.store, project.config, stage, entry_point) as logged:
        learn(project, logged)


@contextmanager
def watch(project: "Project", logged: "StepRun", stage: str, max_epochs: int) -> Iterator["Hooks"]:
    """Show a training's epochs and log them; keep its checkpoints until the block ends well.

    They lie in ``.canal/`` under the stage's request, since DVC deletes a stage's outs before it reruns it:
    what was killed goes on where it was. Frozen features stay: the next stage needs those of the bank.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from canal.continual.fit import Hooks
    from canal.model.compute import find_device
    from canal.registry.request import request_digest

    scratch = project.layout.training(f"{stage}-{request_digest(project.config, stage)[:16]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage, total=max_epochs)

        def show(epoch: dict[str, Any]) -> None:
            numbers = {name: value for name, value in _numbers(epoch) if name != "epoch"}
            logged.metrics(numbers, int(epoch["epoch"]))
            line = f"{stage}: epoch {epoch['epoch']}, " + ", ".join(
                f"{name} {numbers[name]:.4g}" for name in _SHOWN if name in numbers
            )
            bar.update(task, completed=epoch["epoch"], description=line)
            if not console.is_terminal:
                say(line)

        yield Hooks(
            on_epoch=show,
            checkpoint_dir=scratch,
            cache_dir=project.layout.features,
            device=find_device(project.config.compute.device),
            dtype=project.config.compute.dtype,
            cache=project.config.cache,
            on_notice=lambda notice: console.print(f"{stage}: {notice}", soft_wrap=True, markup=False),
        )
    shutil.rmtree(scratch, ignore_errors=True)


_SHOWN = ("loss", "held_out_loss", "validation_accuracy", "score")


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of an epoch's record with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{name}.")
        elif isinstance(value, int | float):
            yield f"{path}{name}", float(value)
