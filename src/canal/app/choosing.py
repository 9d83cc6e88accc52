"""`canal tune`: run the Optuna study that chooses lambda and L of a stage, in parallel processes."""

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from canal.app.declaring import tuning_of
from canal.app.project import Project
from canal.app.tasks import stage_task, training_hooks
from canal.core.digests import file_digest, json_digest
from canal.core.errors import CanalError, tell
from canal.core.progress import percent
from canal.quality.verdict import require_passing
from canal.registry.manifest.stage_request import request_digest
from canal.registry.manifest.version_folder import read_key
from canal.registry.versions.history import require_available
from canal.report.terminal import learning_progress
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

_TRIAL_INPUTS = ("model/", "bank/", "probe/")
"""Folders of a parent's model that the trials of its child depend on."""


def choose(project: Project, stage: str, watching: "Watching", jobs: int | None = None) -> Document:
    """Run a stage's study to its end and return the document of ``tuned/<stage>.json``.

    Trials that an earlier call finished are not run again.

    Parameters
    ----------
    watching
        Returns, for the open study, a context manager that reports its trials.
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
    attempts = prepare_attempts(project, stage)
    study = Study.open(plan(project, stage, attempts))
    with watching(study) as watch:
        with _helpers(project.layout.root, stage, jobs - 1, deadline):
            study.work(attempts, watch, deadline, shared=jobs > 1)
        study.work(attempts, watch, deadline, shared=jobs > 1)  # trials of helpers that were killed
    device = attempts.hooks.device
    doubts = [] if device == "cpu" else [f"trained on {device}, where bits do not repeat"]
    return study_document(study, _facts(attempts), doubts)


def prepare_attempts(project: Project, stage: str) -> Attempts:
    """Return the trials' task of a stage: its training and validation cells, bank and probes; no test cells.

    Raises
    ------
    HistoryError, GateError
        If the stage's cells are missing, or have not passed the gate.
    """
    from canal.tuning.attempts import Attempts

    config, layout = project.config, project.layout
    require_available(config, stage)
    require_passing(layout.verdict(stage), project.prepared_digest(stage), stage)
    task, parent_state = stage_task(project, stage, bank_size=0)
    # Trials are short; `tuning.jobs` are their processes.
    hooks = replace(training_hooks(project), on_notice=_report_once(stage), processes=1)
    tuning = tuning_of(project, stage)
    return Attempts(task, parent_state.bank, config.learning(stage), tuning, config.bank.capacity, hooks)


def _report_once(stage: str) -> Callable[[str], None]:
    """Return a function that prints a notice only once, since every trial may repeat it."""
    reported: set[str] = set()

    def report_once(notice: str) -> None:
        if notice not in reported:
            reported.add(notice)
            tell(f"{stage}: {notice}")

    return report_once


def plan(project: Project, stage: str, attempts: Attempts) -> Plan:
    """Return the plan of a stage's study, from params.yaml and the stage's files."""
    config, layout, tuning = project.config, project.layout, attempts.tuning
    n_old = sum(int((project.split(name)["set"] == "train").sum()) for name in config.ancestors(stage))
    space = Space.of(tuning, attempts.own, config.bank.capacity, n_old, len(attempts.task.old_labels))
    return Plan(stage, study_digest(project, stage), space, tuning, layout.studies, layout.root)


def study_digest(project: Project, stage: str) -> str:
    """Return a SHA-256 over all inputs of a study and the versions of its libraries.

    The parent counts by the files that trials read, not by its key, which changes with each line of code: a
    study's trials are reused until one of their inputs changes.
    """
    layout = project.layout
    files = read_key(layout.model(project.config.stages[stage].parent))["files"]
    return json_digest(
        {
            "request": request_digest(project.config, stage),
            "prepared": project.prepared_digest(stage),
            "split": file_digest(layout.split(stage)),
            "panel": file_digest(layout.panel),
            "parent": {path: digest for path, digest in files.items() if path.startswith(_TRIAL_INPUTS)},
            "made with": {name: version(name) for name in ("optuna", "torch")},
        }
    )


def _facts(attempts: Attempts) -> Document:
    """Return the facts of a study: numbers of cells that its trials were validated on, and of the bank."""
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
    """Run ``n`` more processes on a stage's study during the block, and wait for them at its end."""
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and open stores
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    arguments = (root, stage, n + 1, left)
    processes = [context.Process(target=_help, args=arguments, daemon=True) for _ in range(n)]
    with _without_interrupts():  # of a Ctrl-C the first process tells, and ends the others
        for process in processes:
            process.start()
    try:
        yield
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C during the block; processes that are started in it ignore it for good."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help(root: Path, stage: str, jobs: int, seconds: float | None) -> None:
    """Run trials of a study in a helper process, which ends when the process that started it does."""
    import torch

    begin()
    deadline = None if seconds is None else time.monotonic() + seconds
    parent = multiprocessing.parent_process()

    def check_parent(_: object, __: int) -> None:
        if parent is not None and not parent.is_alive():
            sys.exit("the study's first process is gone")

    try:
        project = Project.open(root)
        torch.set_num_threads(max(1, project.config.threads // jobs))
        attempts = prepare_attempts(project, stage)
        study = Study.open(plan(project, stage, attempts))
        study.work(attempts, Watch(check_parent, lambda: None), deadline, shared=True)
    except CanalError as error:
        tell(f"{stage}: a helper process ended early: {error}")
        sys.exit(1)


@contextmanager
def watch_trials(
    study: Study, log: Callable[[dict[int, Document]], None] = lambda _: None
) -> Iterator[Watch]:
    """Show a study's trials and the best so far; ``log`` is called with all finished trials after each."""
    stage, tuning = study.plan.stage, study.plan.tuning
    reported: set[int] = set()
    with learning_progress(f"{stage}: tuning", tuning.n_trials) as (bar, task):

        def on_epoch(settings: Mapping[str, float], epoch: int) -> None:
            line = f"{stage}: {_settings(settings)}, epoch {epoch} of at most {tuning.epochs}{_best(study)}"
            bar.update(task, description=line)

        def on_trial() -> None:
            trials = trial_documents(study)
            log(trials)
            bar.update(task, completed=len(trials), description=f"{stage}: tuning{_best(study)}")
            for number, trial in trials.items():
                if number not in reported and not bar.console.is_terminal:
                    done = f"{len(reported) + 1} of at most {tuning.n_trials} done"
                    what = f"trial {trial['number']}, {_settings(trial['settings'])}: {_outcome(trial)}"
                    tell(f"{stage}: {what}; {done}{_best(study)}")
                reported.add(number)

        on_trial()
        yield Watch(on_epoch, on_trial)
        on_trial()


def _settings(settings: Mapping[str, float]) -> str:
    return f"λ {settings['distillation']:g}, L {settings['bank_size']}"


def _outcome(trial: Document) -> str:
    if trial["state"] == "failed":
        return f"failed: {trial['reason']}"
    scores = f"accuracy {percent(trial['accuracy'])}, retention {percent(trial['retention'])}"
    return f"{scores} after epoch {len(trial['curve'])}, pruned" if trial["state"] == "pruned" else scores


def _best(study: Study) -> str:
    """Return the best trial so far, as the end of a line."""
    done = [one for one in trial_documents(study).values() if one["state"] == "complete"]
    if not done:
        return ""
    best = max(done, key=lambda one: one["value"])
    return f"; best {best['value']:.3f} ({_settings(best['settings'])})"
