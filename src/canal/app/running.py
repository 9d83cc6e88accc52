"""`canal run`: check params.yaml, run `dvc repro`, register new versions, and say what to commit.

``python -m canal.app.running dvc`` runs `dvc repro` alone, which prints only errors.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from canal.app.creating import complete_project, require_used
from canal.app.planning import StagePlan, require_mergeable, stage_fates
from canal.app.project import Project
from canal.core.errors import CanalError, HistoryError, tell
from canal.runtime.startup import INTERRUPTED, begin

_NEW = {
    "canal.json": "which canal the project uses",
    "params.yaml": "what was asked for: sources, stages, parameters",
    "data.dvc": "the raw files, by digest",
    "dvc.lock": "which bytes were made from which: `dvc pull` restores by it",
    "ledger.jsonl": "who registered what: `canal audit` compares it with git's copy",
}
"""Files of a run that belong into git, and why."""

_WRITING_S = 0.5
_STOPPED = "canal: the run failed: see the error above, before the table"


def main(root: Path | None = None) -> int:
    """Run the pipeline of a project, by default the one in this folder; return the exit code."""
    begin()
    if root is not None:
        os.chdir(root)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    began = time.monotonic()
    try:
        planned = check_before_run()
        complete_project(Path.cwd())
        stopped = run_module("canal.runtime.warm", "python", "-m", "canal.app.running", "dvc")
        code = run_module("canal.cli", "registry", "sync") or stopped
    except CanalError as error:
        tell(f"canal: {error}")
        return 1
    except KeyboardInterrupt:
        tell("canal: interrupted; `canal run` continues after the steps that are done")
        return INTERRUPTED
    if stopped and code == stopped:
        tell(_STOPPED)
    if code == 0:
        for line in (*happened(planned, time.monotonic() - began), *to_commit(Path.cwd())):
            sys.stdout.write(f"{line}\n")
    return code


def check_before_run() -> list[StagePlan]:
    """Return what is to be learned; raise for what would be refused: DVC deletes outs before it runs a step.

    Raises
    ------
    ConfigError, HistoryError
        As the first step concerned would; if the project is read-only, has unresolved merge conflicts, or a
        pipeline of another canal.
    """
    project = Project.open()
    require_mergeable(project.layout.root)
    require_used(project.layout.root)
    _ = project.config.root_stage
    planned = stage_fates(project)
    for one in planned:
        if one.fate == "refuse":
            raise HistoryError(one.why)
    return planned


def happened(planned: Sequence[StagePlan], seconds: float) -> list[str]:
    """Return lines that say which stages a run has learned, with their versions, and which it has kept."""
    project = Project.open()
    found = {one.stage: project.learned(one.stage) for one in planned}
    lines = ["", f"What happened, in {seconds:.0f} s:"]
    for what, fate in (("learned", "learn"), ("kept", "keep")):
        names = [
            f"{one.stage} (version {version.number})"
            for one in planned
            if one.fate == fate and (version := found[one.stage]) is not None
        ]
        if names:
            lines.append(f"  {what:<8} {', '.join(names)}")
    return lines


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


def changed_files(root: Path) -> list[str]:
    """Return the files of a run that git does not hold as they are; none outside a git repository."""
    git = shutil.which("git")
    if git is None:
        return []
    command = [git, "status", "--porcelain", "--", *_NEW]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    changed = {line[3:].strip('"').rpartition("/")[2] for line in done.stdout.splitlines()}
    names = [name for name in _NEW if name in changed and (root / name).is_file()]
    return [] if done.returncode else names


def to_commit(root: Path) -> list[str]:
    """Return lines that list new or changed files to commit; none outside a git repository."""
    names = changed_files(root)
    if not names:
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


if __name__ == "__main__":
    sys.exit(reproduce() if sys.argv[1:] == ["dvc"] else main())
