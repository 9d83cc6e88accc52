"""`canal run`: check params.yaml, run `dvc repro`, register new versions, and say what to commit.

``python -m canal.app.running dvc`` runs `dvc repro` alone, which prints only errors.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from canal.app.at_work import note_run, run_holder, run_lock
from canal.app.creating import complete_project, require_used
from canal.app.planning import (
    StagePlan,
    require_mergeable,
    stage_fates,
    uncommitted,
)
from canal.app.project import Project, git
from canal.config.layout import Layout
from canal.core.errors import CanalError, HistoryError, tell
from canal.core.progress import AROUND, doing, span, told_together, watch
from canal.runtime.startup import INTERRUPTED, begin
from canal.runtime.together import processes_asked

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
_PATIENCE_S = 3.0
"""How long a run waits for a `canal plan` to end."""
_IN_GROUP_S = 0.5
"""How long a run that was interrupted alone waits before it interrupts what it has started."""
_AT_WORK = 75
"""Exit code of `reproduce` where another run is at work (EX_TEMPFAIL of sysexits.h)."""


def main(root: Path | None = None, as_json: bool = False) -> int:
    """Run the pipeline of a project, by default the one in this folder; return the exit code.

    What happened is printed, as JSON if ``as_json``; the steps' own output then goes to the error stream.
    """
    begin()
    _heed_signals()
    if root is not None:
        os.chdir(root)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    began = time.monotonic()
    try:
        planned = check_before_run()
        complete_project(Path.cwd())
        with told_together(Layout(Path.cwd()).last_line):
            watch(2 * AROUND)  # later than DVC's process, which is later than those of the steps
            own = ("canal.app.running", "dvc", str(os.getpid()))
            reproduced = ("canal.runtime.warm", "python", "-m", *own)
            stopped = run_module("running DVC", *reproduced, quiet=as_json)
            if stopped == _AT_WORK:
                tell(_another(run_holder(Path.cwd())))
                return 1
            synced = ("canal.cli", "registry", "sync")
            code = run_module("starting to register", *synced, quiet=as_json) or stopped
    except CanalError as error:
        tell(f"canal: {error}")
        return 1
    except KeyboardInterrupt:
        tell("canal: interrupted; `canal run` continues after the steps that are done")
        return INTERRUPTED
    if stopped and code == stopped:
        tell(_STOPPED)
    if code == 0:
        found = outcome(planned, time.monotonic() - began)
        lines = [json.dumps(found, indent=1, sort_keys=True)] if as_json else happened(found)
        for line in (*lines, *(() if as_json else to_commit(Path.cwd()))):
            sys.stdout.write(f"{line}\n")
    return code


def _another(holder: str) -> str:
    """Return the refusal of a second run in a folder; ``holder`` is what `run_holder` says of the first."""
    if not holder:
        return "canal: another `canal run` is at work in this folder: wait for it, or end it"
    process = holder.split()[1].rstrip(",")
    return (
        f"canal: another `canal run` is at work in this folder, {holder}: wait for it, or end it with "
        f"`kill {process}`"
    )


def check_before_run() -> list[StagePlan]:
    """Return what is to be learned; raise for what would be refused: DVC deletes outs before it runs a step.

    Raises
    ------
    ConfigError, HistoryError
        As the first step concerned would; if CANAL_PROCESSES is no number, the project is read-only, or has
        unresolved merge conflicts, or a pipeline of another canal.
    """
    processes_asked()
    project = Project.open()
    require_mergeable(project.layout.root)
    require_used(project.layout.root)
    _ = project.config.root_stage
    planned = stage_fates(project)
    for one in planned:
        if one.fate == "refuse":
            raise HistoryError(one.why)
    if warning := uncommitted(project.layout.root, planned):
        tell(warning)
    return planned


def outcome(planned: Sequence[StagePlan], seconds: float) -> dict[str, Any]:
    """Return which stages a run has learned and kept, with their versions, and what is to be committed."""
    project = Project.open()
    found: dict[str, Any] = {"seconds": round(seconds, 1), "to_commit": changed_files(project.layout.root)}
    for what, fates in (("learned", ("learn", "register")), ("kept", ("keep",))):
        versions = {one.stage: project.learned(one.stage) for one in planned if one.fate in fates}
        found[what] = [{"stage": name, "version": one.number} for name, one in versions.items() if one]
    return found


def happened(found: Mapping[str, Any]) -> list[str]:
    """Return lines that say what a run has learned and kept; see `outcome`."""
    lines = ["", f"What happened, in {span(found['seconds'])}:"]
    for what in ("learned", "kept"):
        names = ", ".join(f"{one['stage']} (version {one['version']})" for one in found[what])
        lines += [f"  {what:<8} {names}"] if names else []
    return lines


def reproduce(caller: int) -> int:
    """Run `dvc repro`, one at a time in a folder, and return its exit code.

    ``caller`` is the process that a person called, which a second run names.
    Of DVC's own output errors and the names of its steps are shown. The lock is held here, for this process
    survives a kill of the one that a person called.
    """
    watch(AROUND)
    from dvc.cli import main as dvc
    from dvc.logger import set_loggers_level
    from dvc.ui import ui

    try:
        with (
            run_lock(Path.cwd(), _PATIENCE_S),
            set_loggers_level(logging.ERROR),
            doing("DVC: looking for steps whose inputs have changed") as now,
        ):
            mend_locks(Path.cwd())
            note_run(Path.cwd(), caller)
            stages = list(Project.open().config.stages)

            def tell_step(record: logging.LogRecord) -> bool:
                """Name the step that DVC begins in one line of ours, in place of DVC's."""
                if (
                    record.levelno == logging.INFO
                    and isinstance(record.args, tuple)
                    and len(record.args) == 1
                ):
                    step = f"step {record.args[0]}{_which(str(record.args[0]), stages)}"
                    tell(step)
                    now(step)
                return record.levelno > logging.INFO

            ui.enable = lambda: None
            logging.getLogger("dvc.cli").addFilter(_not_interrupted)
            logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)  # its bars leave rests of lines
            steps = logging.getLogger("dvc.stage.run")
            steps.setLevel(logging.INFO)
            steps.addFilter(tell_step)
            return int(dvc(["repro"]))
    except Timeout:
        return _AT_WORK


def _which(step: str, stages: Sequence[str]) -> str:
    """Return of which stage of how many a step is, as a clause; empty for steps of none."""
    what, _, stage = step.partition("@")
    if what == "prepare":
        return ""  # it is of a source
    return f" (stage {stages.index(stage) + 1} of {len(stages)})" if stage in stages else ""


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
    if shutil.which("git") is None:
        return []
    done = git(root, "status", "--porcelain", "--", *_NEW)
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


class _Ended(KeyboardInterrupt):  # noqa: N818 - it is no error
    """SIGTERM has come, of which the processes that this one has started know nothing."""


def _heed_signals() -> None:
    """Let SIGINT and SIGTERM end the run in order, also where it was started to ignore the first.

    A shell's script starts with ``&`` what ignores SIGINT, and all that it starts in turn would, too.
    """

    def end(*_: object) -> None:
        raise _Ended

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, end)


def run_module(what: str, module: str, *arguments: str, quiet: bool = False) -> int:
    """Run a module of canal and return its exit code; on Ctrl-C, wait for the process, then raise.

    ``what`` is told while the process tells nothing itself. If ``quiet``, its output goes to the error
    stream.
    """
    output = sys.stderr.fileno() if quiet else None
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=output)
    try:
        with doing(what):
            code = process.wait()
    except KeyboardInterrupt as error:
        forward = isinstance(error, _Ended) or not _in_foreground()
        while process.poll() is None:
            with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                process.wait(_IN_GROUP_S if forward else None)
            if forward:
                forward = False
                _interrupt_all(process.pid)
        raise
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether Ctrl-C in a terminal reaches this process: then the processes that it started had it, too."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _interrupt_all(process: int) -> None:
    """Interrupt a process and all that it has started, as a terminal would.

    DVC and the fork server leave Ctrl-C to the step, which is their child, so it is not enough to tell them.
    """
    import psutil  # type: ignore[import-untyped]  # of a project; `canal.learn` is there without

    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process)
        for one in (*first.children(recursive=True), first):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGINT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["dvc"]:
        sys.exit(reproduce(int(sys.argv[2]) if sys.argv[2:] else os.getppid()))
    sys.exit(main())
