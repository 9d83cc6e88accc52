"""`make run`: refuse before anything is touched, let DVC run what is due, register it, say what git lacks.

``python -m canal.app.pipeline`` is all of it; with the word ``dvc`` it is `dvc repro` with its errors alone.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from canal.core.errors import CanalError, ConfigError
from canal.core.messages import tell
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
    from canal.app.project import Project
    from canal.config.sections import BACKBONE
    from canal.config.yaml_file import check_merged

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
    from canal.config.edit import save, with_memory

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
