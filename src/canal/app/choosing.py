"""Lambda and L of a stage, chosen by a study: from a project's files to the tuning room and back."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from canal.app.declaring import tuning_of
from canal.app.project import Project
from canal.app.tasks import features_kept, lesson
from canal.core.digests import file_digest, json_digest
from canal.core.errors import CanalError, tell
from canal.quality.verdict import require_passing
from canal.registry.manifest.stage_request import request_digest
from canal.registry.manifest.version_folder import read_key
from canal.registry.versions.history import require_available
from canal.runtime.startup import begin
from canal.tuning.attempts import Attempts, Space, effective_cells
from canal.tuning.document import (
    Document,
    study_document,
    trial_documents,
)
from canal.tuning.study import Plan, Study, Watch

if TYPE_CHECKING:
    Watching = Callable[[Study], AbstractContextManager[Watch]]

_BEGINNING = ("model/", "bank/", "probe/")
"""Folders of a parent that its child's trials see."""


def choose(project: Project, stage: str, watching: "Watching", jobs: int | None = None) -> Document:
    """Run a stage's study to its end and return what ``tuned/<stage>.json`` says.

    Trials that an earlier call finished are not run again.

    Parameters
    ----------
    watching
        Makes, from the open study, the block in which its trials are watched.
    jobs
        Processes that share the study; by default ``tuning.jobs``.

    Raises
    ------
    TrainingError
        If no trial ran to its end.
    """
    tuning = tuning_of(project, stage)
    jobs = jobs or tuning.jobs
    deadline = None if tuning.max_minutes is None else time.monotonic() + 60 * tuning.max_minutes
    torch.set_num_threads(max(1, project.config.threads // jobs))
    attempts = ready(project, stage)
    study = Study.open(plan(project, stage, attempts))
    with watching(study) as watch:
        with _helpers(project.layout.root, stage, jobs - 1, deadline):
            study.work(attempts, watch, deadline, shared=jobs > 1)
        study.work(attempts, watch, deadline, shared=jobs > 1)  # what a helper left that was killed
    device = attempts.hooks.device
    doubts = [] if device == "cpu" else [f"trained on {device}, where bits do not repeat"]
    return study_document(study, _facts(attempts), doubts)


def ready(project: Project, stage: str) -> Attempts:
    """Return a stage ready to be attempted, from training and validation cells, bank and probes alone.

    Raises
    ------
    HistoryError, GateError
        If the stage's cells are not there, or have not passed the gate.
    """
    from canal.tuning.attempts import Attempts

    config, layout = project.config, project.layout
    require_available(config, stage)
    require_passing(layout.verdict(stage), project.prepared_digest(stage), stage)
    task, past = lesson(project, stage, bank_size=0)
    hooks = replace(features_kept(project), on_notice=_once(stage))
    tuning = tuning_of(project, stage)
    return Attempts(task, past.bank, config.learning(stage), tuning, config.bank.capacity, hooks)


def _once(stage: str) -> Callable[[str], None]:
    """Return what tells a notice the first time: every trial may have the same one."""
    told: set[str] = set()

    def tell_once(notice: str) -> None:
        if notice not in told:
            told.add(notice)
            tell(f"{stage}: {notice}")

    return tell_once


def plan(project: Project, stage: str, attempts: Attempts) -> Plan:
    """Return the study that params.yaml and the files of a stage ask for."""
    config, layout, tuning = project.config, project.layout, attempts.tuning
    n_old = sum(int((project.split(name)["set"] == "train").sum()) for name in config.ancestors(stage))
    space = Space.of(tuning, attempts.own, config.bank.capacity, n_old, len(attempts.task.old_labels))
    return Plan(stage, study_digest(project, stage), space, tuning, layout.studies, layout.root)


def study_digest(project: Project, stage: str) -> str:
    """Return a SHA-256 over all that decides what a study chooses, and the libraries that compute it.

    Of the parent that is what a trial begins with, not its key, which changes with each line of code: a
    study draws the same trials until something that they see has changed.
    """
    layout = project.layout
    files = read_key(layout.model(project.config.stages[stage].parent))["files"]
    return json_digest(
        {
            "request": request_digest(project.config, stage),
            "prepared": project.prepared_digest(stage),
            "split": file_digest(layout.split(stage)),
            "panel": file_digest(layout.panel),
            "parent": {path: digest for path, digest in files.items() if path.startswith(_BEGINNING)},
            "made with": {name: version(name) for name in ("optuna", "torch")},
        }
    )


def _facts(attempts: Attempts) -> Document:
    """Return what stands beside the trials: which cells judged them, and what L is a part of."""
    task, probe = attempts.task, attempts.task.probe
    validation = task.validation_cells(attempts.own.max_validation_cells)[task.stage]
    return {
        "n_validation": len(validation),
        "n_effective": round(effective_cells(validation.cell_types), 1),
        "n_probe": {name: probe.stages.count(name) for name in probe.stage_names},
        "n_bank": len(attempts.bank),
        "bank_capacity": attempts.capacity,
    }


@contextmanager
def _helpers(root: Path, stage: str, n: int, deadline: float | None) -> Iterator[None]:
    """Let ``n`` more processes work on a stage's study while the block lasts, and until they are done."""
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and open stores
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    arguments = (root, stage, n + 1, left)
    processes = [context.Process(target=_help, args=arguments, daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()


def _help(root: Path, stage: str, jobs: int, seconds: float | None) -> None:
    """Work on a study in a process of its own; ends with the process that began it."""
    begin()
    deadline = None if seconds is None else time.monotonic() + seconds
    beginner = multiprocessing.parent_process()

    def look(_: object, __: int) -> None:
        if beginner is not None and not beginner.is_alive():
            sys.exit("the study's first process is gone")

    try:
        project = Project.open(root)
        torch.set_num_threads(max(1, project.config.threads // jobs))
        attempts = ready(project, stage)
        study = Study.open(plan(project, stage, attempts))
        study.work(attempts, Watch(look, lambda: None), deadline, shared=True)
    except CanalError as error:
        tell(f"{stage}: a process that helps ended early: {error}")
        sys.exit(1)


@contextmanager
def watch_trials(
    study: Study, log: Callable[[dict[int, Document]], None] = lambda _: None
) -> Iterator[Watch]:
    """Show a study's trials and the best so far; ``log`` is called with all finished ones as they end."""
    stage, tuning = study.plan.stage, study.plan.tuning
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    told: set[int] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{stage}: tuning", total=tuning.n_trials)

        def on_epoch(settings: Mapping[str, float], epoch: int) -> None:
            line = f"{stage}: {_settings(settings)}, epoch {epoch} of {tuning.epochs}{_best(study)}"
            bar.update(task, description=line)

        def on_trial() -> None:
            trials = trial_documents(study)
            log(trials)
            bar.update(task, completed=len(trials), description=f"{stage}: tuning{_best(study)}")
            for number, trial in trials.items():
                if number not in told and not console.is_terminal:
                    what = f"trial {trial['number'] + 1} of {tuning.n_trials}, {_settings(trial['settings'])}"
                    tell(f"{stage}: {what}: {_outcome(trial)}{_best(study)}")
                told.add(number)

        on_trial()
        yield Watch(on_epoch, on_trial)
        on_trial()


def _settings(settings: Mapping[str, float]) -> str:
    return f"λ {settings['distillation']:g}, L {settings['bank_size']}"


def _outcome(trial: Document) -> str:
    if trial["state"] == "failed":
        return f"failed: {trial['reason']}"
    scores = f"accuracy {trial['accuracy']:.3f}, retention {trial['retention']:.3f}"
    return f"{scores} after epoch {len(trial['curve'])}, pruned" if trial["state"] == "pruned" else scores


def _best(study: Study) -> str:
    """Return the best trial so far, as the end of a line."""
    done = [one for one in trial_documents(study).values() if one["state"] == "complete"]
    if not done:
        return ""
    best = max(done, key=lambda one: one["value"])
    return f"; best {best['value']:.3f} ({_settings(best['settings'])})"
