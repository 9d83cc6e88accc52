"""`make run`: refuse before anything is touched, let DVC run what is due, register it, say what git lacks.

``python -m canal.app.pipeline`` is all of it; with the word ``dvc`` it is `dvc repro` with its errors alone.
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
"""What of a run belongs into git, and why."""

_WRITING_S = 0.5
_STOPPED = "canal: the run did not get through: what stopped it is said above, before the table"


def main() -> int:
    """Run the pipeline of the project in this folder; return the exit code."""
    begin()
    try:
        refuse_early()
        complete_params(Path.cwd() / "params.yaml")
        stopped = _run("canal.runtime.warm", "python", "-m", "canal.app.pipeline", "dvc")
        code = _run("canal.cli", "registry", "sync") or stopped
    except CanalError as error:
        tell(f"canal: {error}")
        return 1
    except KeyboardInterrupt:
        tell("canal: interrupted; `make run` goes on from what was done")
        return INTERRUPTED
    if stopped and code == stopped:
        tell(_STOPPED)
    for line in to_commit(Path.cwd()) if code == 0 else ():
        sys.stdout.write(f"{line}\n")
    return code


def refuse_early() -> None:
    """Refuse a change of what was learned while everything still lies where it lay: DVC deletes outs first.

    Raises
    ------
    ConfigError, HistoryError
        What the first step concerned would say; or the project may only be read, or is amid a merge.
    """
    project = Project.open()
    root = project.layout.root
    if not os.access(root, os.W_OK):
        raise ConfigError(f"{root} may only be read by this user: `make run` writes there; copy the project")
    for path in (root / name for name in ("dvc.lock", "data.dvc", "dvc.yaml")):
        if path.is_file():
            check_merged(path.read_bytes(), path.name)
    for stage in (BACKBONE, *project.config.stages):
        project.learned(stage)


def complete_params(path: Path) -> None:
    """Give params.yaml the section ``memory`` where it comes from before there was one: DVC compares it."""
    before = path.read_text(encoding="utf-8")
    if (text := with_memory(before)) != before:
        save(path, text)
        tell(f"{path.name} got an empty section memory, which DVC looks for; nothing changes by it")


def reproduce() -> int:
    """Run `dvc repro` and return its exit code: steps speak for themselves, DVC where it fails."""
    from dvc.cli import main as dvc
    from dvc.logger import set_loggers_level
    from dvc.ui import ui

    mend_locks(Path.cwd())
    ui.enable = lambda: None
    logging.getLogger("dvc.cli").addFilter(_not_interrupted)
    with set_loggers_level(logging.ERROR):
        return int(dvc(["repro"]))


def mend_locks(root: Path) -> None:
    """Remove DVC's list of who reads and writes what where a kill or Ctrl-C cut it short.

    DVC would refuse it for ever. It says nothing any more, no less than the empty one that DVC then makes.
    One that DVC is writing at this moment is whole soon.
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
    """Whether DVC reports something else than Ctrl-C, of which the person knows."""
    said, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    while error is not None:
        said, error = f"{said} {error}", error.__cause__
    return "interrupted by the user" not in said and f"exited with {INTERRUPTED}" not in said


def to_commit(root: Path) -> list[str]:
    """Return what a person is told of files that git does not have as they are; nothing outside of git."""
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
        "New or changed, and not in git yet: with it, another clone restores and proves what was learned",
        *(f"  {name:<{width}}  {_NEW[name]}" for name in names),
        f'  git add {" ".join(names)} && git commit -m "Learn what params.yaml asks for"',
    ]


def _run(module: str, *arguments: str) -> int:
    """Run a module of canal and return its exit code; an interruption is waited for, then raised."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal sends it to the process, too, which ends in its own time
        while process.poll() is None:
            with suppress(KeyboardInterrupt):
                process.wait()
        raise
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(reproduce() if sys.argv[1:] == ["dvc"] else main())


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


def run(step: Callable[[], None]) -> None:
    """Run a step; an error made for people ends it with one message and exit code 1.

    DVC has deleted the step's outs before it began: those of a step that did not come to its end are brought
    back as they were.
    """
    begin()
    try:
        step()
    except CanalError as error:
        tell(f"canal: {error}")
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
        tell(f"canal: {said}")
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
            tell(f"canal: {', '.join(back)} as before")


def _outs_before(lock: Path) -> list[str]:
    """Return the outs of the step that this script is, as DVC's last run of it left them."""
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
    the stage's parent run. ``mlflow run . -e finetune -P stage=...`` gets there at once.
    """
    run_id = handed_run(project.store, entry_point, stage)
    if run_id is None:
        start_entry_point(project.store, project.config, entry_point, stage)
        return
    import torch

    torch.set_num_threads(project.config.threads)
    with step_run(project.store, project.config, stage, entry_point, run_id) as logged:
        learn(project, logged)
