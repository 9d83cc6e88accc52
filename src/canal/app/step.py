"""What each script of ``pipelines/`` does first and last: its argument, its errors in one line."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.core.errors import CanalError, ConfigError
from canal.core.files import system_refusal
from canal.core.messages import tell, visible
from canal.runtime.startup import INTERRUPTED, begin

if TYPE_CHECKING:
    from canal.app.project import Project
    from canal.continual.fit import Hooks
    from canal.registry.store.tracking import StepRun
    from canal.tuning.document import Document
    from canal.tuning.study import Study, Watch


_PATIENCE_S = 120


def argument(name: str, known: Collection[str]) -> str:
    """Return the value of the one option ``--name`` of this script.

    Raises
    ------
    ConfigError
        If it is not among ``known``, the names that params.yaml has.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{name}", required=True)
    value = str(getattr(parser.parse_args(), name))
    if value not in known:
        raise ConfigError(f"no {name} {value[:80]!r} in params.yaml; there are {', '.join(known) or 'none'}")
    return value


def say(line: str) -> None:
    """Tell the person who watches what a step is doing."""
    tell(line)


def run(step: Callable[[], None]) -> None:
    """Run a step; an error made for people ends it with one message and exit code 1.

    DVC has deleted the step's outs before it began: those of a step that did not come to its end are brought
    back as they were.
    """
    begin()
    try:
        step()
    except CanalError as error:
        say(f"canal: {error}")
        _bring_back()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _bring_back(quietly=True)
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        said = system_refusal(error)
        if said is None:
            _bring_back()
            raise
        say(f"canal: {said}")
        _bring_back()
        raise SystemExit(1) from None
    except BaseException:
        _bring_back()
        raise


def _bring_back(quietly: bool = False) -> None:
    """Restore the outs that this step had before, as dvc.lock and DVC's cache have them, where they do.

    Whatever happens here must not hide why the step ended.
    """
    with suppress(Exception):
        outs = [name for name in _outs_before(Path.cwd() / "dvc.lock") if not Path(name).exists()]
        if outs:
            command = [sys.executable, "-m", "dvc", "checkout", "--quiet", *outs]
            subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
        back = [name for name in outs if Path(name).exists()]
        if back and not quietly:
            say(f"canal: {', '.join(back)} as before")


def _outs_before(lock: Path) -> list[str]:
    """Return the outs of the step that this script is, as DVC's last run of it left them."""
    from ruamel.yaml import YAML

    if not lock.is_file():
        return []
    command = ["python", *sys.argv]
    steps = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"].values()
    mine = [one for one in steps if shlex.split(one["cmd"]) == command]
    return [str(out["path"]) for one in mine for out in one.get("outs", ())]


def project_step(
    project: "Project", entry_point: str, stage: str, learn: "Callable[[Project, StepRun], None]"
) -> None:
    """Run ``learn`` as an MLflow Project step.

    DVC starts the script outside MLflow: the script then has MLflow start it again as an entry point, below
    the stage's parent run. ``mlflow run . -e finetune -P stage=...`` gets there at once.
    """
    from canal.registry.store.tracking import handed_run, start_entry_point, step_run

    run_id = handed_run(project.store, entry_point, stage)
    if run_id is None:
        start_entry_point(project.store, project.config, entry_point, stage)
        return
    import torch

    torch.set_num_threads(project.config.threads)
    with step_run(project.store, project.config, stage, entry_point, run_id) as logged:
        learn(project, logged)


@contextmanager
def watch(project: "Project", logged: "StepRun", stage: str, max_epochs: int) -> Iterator["Hooks"]:
    """Show a training's epochs and log them; keep its checkpoints until the block ends well.

    They lie in ``.canal/`` under the stage's request, since DVC deletes a stage's outs before it reruns it:
    what was killed goes on where it was. Frozen features stay: the next stage needs those of the bank.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from canal.app.lessons import features_kept
    from canal.registry.manifest.pages import epoch_numbers
    from canal.registry.manifest.stage_request import request_digest

    scratch = project.layout.training(f"{stage}-{request_digest(project.config, stage)[:16]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage, total=max_epochs)

        def show(epoch: dict[str, Any]) -> None:
            numbers = {name: value for name, value in epoch_numbers(epoch) if name != "epoch"}
            logged.metrics(numbers, int(epoch["epoch"]))
            line = f"{stage}: epoch {epoch['epoch']}, " + ", ".join(
                f"{name} {numbers[name]:.4g}" for name in _SHOWN if name in numbers
            )
            bar.update(task, completed=epoch["epoch"], description=line)
            if not console.is_terminal:
                say(line)

        yield replace(
            features_kept(project),
            on_epoch=show,
            checkpoint_dir=scratch,
            on_notice=lambda notice: console.print(
                visible(f"{stage}: {notice}"), soft_wrap=True, markup=False
            ),
        )
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def watch_trials(
    study: "Study", log: Callable[[dict[int, "Document"]], None] = lambda _: None
) -> Iterator["Watch"]:
    """Show a study's trials and the best so far; ``log`` is called with all finished ones as they end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from canal.tuning.document import trial_documents
    from canal.tuning.study import Watch

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
                    say(f"{stage}: {what}: {_outcome(trial)}{_best(study)}")
                told.add(number)

        on_trial()
        yield Watch(on_epoch, on_trial)
        on_trial()


def _settings(settings: Mapping[str, float]) -> str:
    return f"λ {settings['distillation']:g}, L {settings['bank_size']}"


def _outcome(trial: "Document") -> str:
    if trial["state"] == "failed":
        return f"failed: {trial['reason']}"
    scores = f"accuracy {trial['accuracy']:.3f}, retention {trial['retention']:.3f}"
    return f"{scores} after epoch {len(trial['curve'])}, pruned" if trial["state"] == "pruned" else scores


def _best(study: "Study") -> str:
    """Return the best trial so far, as the end of a line."""
    from canal.tuning.document import trial_documents

    done = [one for one in trial_documents(study).values() if one["state"] == "complete"]
    if not done:
        return ""
    best = max(done, key=lambda one: one["value"])
    return f"; best {best['value']:.3f} ({_settings(best['settings'])})"


_SHOWN = ("loss", "held_out_loss", "validation_accuracy", "score")
