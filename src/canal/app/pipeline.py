"""`make run`: check params.yaml, run `dvc repro`, register new versions, and list the files to commit.

``python -m canal.app.pipeline`` does all of this; with the argument ``dvc`` it runs `dvc repro` alone, which
prints only errors. Scripts in ``pipelines/`` use `run`, `argument` and `project_step`.
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from ruamel.yaml import YAML

from canal.app.project import Project
from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.config.yaml_file import check_merged, save, with_memory
from canal.core.errors import CanalError, ConfigError, tell
from canal.core.files import system_refusal
from canal.registry.store.tracking import StepRun, handed_run, start_entry_point, step_run
from canal.runtime.startup import INTERRUPTED, begin

_NEW = {
    "params.yaml": "what was asked for: sources, stages, parameters",
    "data.dvc": "the raw files, by digest",
    "dvc.lock": "which bytes were made from which: `dvc pull` restores by it",
    "ledger.jsonl": "who registered what: `canal audit` compares it with git's copy",
}
"""Files of a run that belong into git, and why."""

_WRITING_S = 0.5
_STOPPED = "canal: the run failed: see the error above, before the table"


def main() -> int:
    """Run the pipeline of the project in this folder; return the exit code."""
    begin()
    try:
        check_before_run()
        complete_project(Path.cwd())
        stopped = run_module("canal.runtime.warm", "python", "-m", "canal.app.pipeline", "dvc")
        code = run_module("canal.cli", "registry", "sync") or stopped
    except CanalError as error:
        tell(f"canal: {error}")
        return 1
    except KeyboardInterrupt:
        tell("canal: interrupted; `make run` continues after the steps that are done")
        return INTERRUPTED
    if stopped and code == stopped:
        tell(_STOPPED)
    for line in to_commit(Path.cwd()) if code == 0 else ():
        sys.stdout.write(f"{line}\n")
    return code


def check_before_run() -> None:
    """Raise for a change of learned stages before DVC runs, since DVC deletes outs before it runs a step.

    Raises
    ------
    ConfigError, HistoryError
        As the first step concerned would; or if the project is read-only, or has unresolved merge conflicts.
    """
    project = Project.open()
    root = project.layout.root
    if not os.access(root, os.W_OK):
        raise ConfigError(f"{root} is read-only for this user, and `make run` writes there: copy the project")
    for path in (root / name for name in ("dvc.lock", "data.dvc", "dvc.yaml")):
        if path.is_file():
            check_merged(path.read_bytes(), path.name)
    for stage in (BACKBONE, *project.config.stages):
        project.learned(stage)


def complete_project(root: Path) -> None:
    """Add what DVC asks for and an older project lacks: a section ``memory``, a folder ``gate``."""
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    if (text := with_memory(before)) != before:
        save(path, text, before)
        tell(f"added an empty section `memory` to {path.name}, which DVC compares; nothing else changes")
    Layout(root).own_rules.mkdir(exist_ok=True)


def reproduce() -> int:
    """Run `dvc repro` and return its exit code; of DVC's own output only errors are shown."""
    from dvc.cli import main as dvc
    from dvc.logger import set_loggers_level
    from dvc.ui import ui

    mend_locks(Path.cwd())
    ui.enable = lambda: None
    logging.getLogger("dvc.cli").addFilter(_not_interrupted)
    with set_loggers_level(logging.ERROR):
        return int(dvc(["repro"]))


def mend_locks(root: Path) -> None:
    """Remove DVC's file of read and write locks where a kill or Ctrl-C truncated it.

    DVC would fail on it for ever; a missing file is the same as an empty one. A file that DVC is writing at
    this moment is complete after a short wait.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    for pause in (_WRITING_S, 0):
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(pause)
        else:
            return
    path.unlink(missing_ok=True)


def _not_interrupted(record: logging.LogRecord) -> bool:
    """Whether a log record of DVC reports something other than Ctrl-C."""
    text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    while error is not None:
        text, error = f"{text} {error}", error.__cause__
    return "interrupted by the user" not in text and f"exited with {INTERRUPTED}" not in text


def to_commit(root: Path) -> list[str]:
    """Return lines that list new or changed files to commit; none outside a git repository."""
    git = shutil.which("git")
    if git is None:
        return []
    command = [git, "status", "--porcelain", "--", *_NEW]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    changed = {line[3:].strip('"').rpartition("/")[2] for line in done.stdout.splitlines()}
    names = [name for name in _NEW if name in changed and (root / name).is_file()]
    if done.returncode or not names:
        return []
    width = max(len(name) for name in names)
    return [
        "",
        "New or changed, and not in git yet: once committed, other clones restore and verify the versions",
        *(f"  {name:<{width}}  {_NEW[name]}" for name in names),
        f'  git add {" ".join(names)} && git commit -m "Learn what params.yaml asks for"',
    ]


def run_module(module: str, *arguments: str) -> int:
    """Run a module of canal and return its exit code; on Ctrl-C, wait for the process, then raise."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal sends it to the process, too, which ends in its own time
        while process.poll() is None:
            with suppress(KeyboardInterrupt):
                process.wait()
        raise
    return code if code >= 0 else 128 - code


# The frame of a pipeline step: its argument, its errors, and its MLflow run.

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
        raise ConfigError(f"no {name} {value[:80]!r} in params.yaml; there are {', '.join(known) or 'none'}")
    return value


def run(step: Callable[[], None]) -> None:
    """Run a step; a `CanalError` ends it with one message and exit code 1.

    DVC deletes a step's outs before it runs the step: after a failure the previous outs are restored.
    """
    begin()
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
        start_entry_point(project.store, project.config, entry_point, stage)
        return
    import torch

    torch.set_num_threads(project.config.threads)
    with step_run(project.store, project.config, stage, entry_point, run_id) as logged:
        learn(project, logged)


if __name__ == "__main__":
    sys.exit(reproduce() if sys.argv[1:] == ["dvc"] else main())
