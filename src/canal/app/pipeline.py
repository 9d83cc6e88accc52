"""The frame of the scripts in ``pipelines/``: a step's argument, its errors, and its MLflow run."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from ruamel.yaml import YAML

from canal.app.project import Project
from canal.core.errors import CanalError, ConfigError, tell, there_are
from canal.core.files import system_refusal
from canal.core.progress import doing, watch
from canal.registry.store.tracking import StepRun, handed_run, start_entry_point, step_run
from canal.runtime.startup import INTERRUPTED, begin
from canal.runtime.together import follows

_PATIENCE_S = 120


def argument(name: str, known: Collection[str]) -> str:
    """Return the value of the one option ``--name`` of this script.

    Raises
    ------
    ConfigError
        If the value is not among ``known``, the names in params.yaml.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{name}", required=True)
    value = str(getattr(parser.parse_args(), name))
    if value not in known:
        raise ConfigError(f"no {name} {value[:80]!r} in params.yaml{there_are(value, known)}")
    return value


def run(step: Callable[[], None]) -> None:
    """Run a step; a `CanalError` ends it with one message and exit code 1.

    DVC deletes a step's outs before it runs the step: after a failure the previous outs are restored.
    """
    begin()
    watch()
    try:
        step()
    except CanalError as error:
        tell(f"canal: {error}")
        _restore_outs()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _restore_outs(quietly=True)
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        message = system_refusal(error)
        if message is None:
            _restore_outs()
            raise
        tell(f"canal: {message}")
        _restore_outs()
        raise SystemExit(1) from None
    except BaseException:
        _restore_outs()
        raise


def _restore_outs(quietly: bool = False) -> None:
    """Restore the step's previous outs from DVC's cache, as dvc.lock names them, where possible.

    Errors are suppressed: they must not hide why the step failed.
    """
    with suppress(Exception):
        outs = [name for name in _previous_outs(Path.cwd() / "dvc.lock") if not Path(name).exists()]
        if outs:
            command = [sys.executable, "-m", "dvc", "checkout", "--quiet", *outs]
            subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
        restored = [name for name in outs if Path(name).exists()]
        if restored and not quietly:
            tell(f"canal: restored the previous {', '.join(restored)}")


def _previous_outs(lock: Path) -> list[str]:
    """Return the outs of this script's step after its last run, from dvc.lock."""
    if not lock.is_file():
        return []
    command = ["python", *sys.argv]
    steps = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"].values()
    mine = [one for one in steps if shlex.split(one["cmd"]) == command]
    return [str(out["path"]) for one in mine for out in one.get("outs", ())]


def project_step(
    project: Project, entry_point: str, stage: str, learn: Callable[[Project, StepRun], None]
) -> None:
    """Run ``learn`` as an MLflow Project step.

    DVC starts the script outside MLflow: the script then has MLflow start it again as an entry point, below
    the stage's parent run. ``mlflow run . -e finetune -P stage=...`` starts the entry point directly.
    """
    run_id = handed_run(project.store, entry_point, stage)
    if run_id is None:
        with doing(""):  # the entry point tells what it does
            start_entry_point(project.store, project.config, entry_point, stage)
        return
    step = entry_point if entry_point == "pretrain" else f"{entry_point}@{stage}"  # as DVC names it
    with doing(f"step {step}"):
        import torch

        torch.set_num_threads(project.config.threads)
        with step_run(project.store, project.config, stage, entry_point, run_id) as logged:
            learn(project, logged)


def followed(project: Project, stage: str) -> bool:
    """Learn with the first of torchrun's processes where this is another one of them; return whether it is.

    The first one alone is an MLflow Project step, and writes what is learned.
    """
    if not follows():
        return False
    from canal.app.learning import follow

    follow(project, stage)
    return True
