"""Which `canal run` is at work in a project's folder: one at a time, and a second is told which."""

import os
import time
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from canal.config.layout import Layout
from canal.core.files import is_running, read_json, write_json
from canal.core.progress import span


def _lock_file(root: Path) -> Path:
    return Layout(root).private / "locks" / "run.lock"


def run_lock(root: Path, patience_s: float) -> FileLock:
    """Return the lock of `dvc` in a folder: a run holds it, and `canal plan` while it asks DVC."""
    path = _lock_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=patience_s)


def note_run(root: Path, caller: int) -> None:
    """Write down which process holds the lock of a run, which one a person called, and since when."""
    write_json(_holder_file(root), {"process": os.getpid(), "caller": caller, "since": time.time()})


def run_holder(root: Path) -> str:
    """Return which process holds the lock of a run and since when, as a clause; ``""`` if nobody says."""
    try:
        about = read_json(_holder_file(root))
        process, caller, since = int(about["process"]), int(about["caller"]), float(about["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    alive = [one for one in (caller, process) if is_running(one)]
    began = datetime.fromtimestamp(since).astimezone().strftime("%Y-%m-%d %H:%M")
    lasted = span(max(0.0, time.time() - since))
    return f"process {alive[0]}, since {began} ({lasted})" if alive else ""


def _holder_file(root: Path) -> Path:
    return _lock_file(root).with_suffix(".json")


def run_at_work(root: Path) -> bool:
    """Whether a `canal run` is at work in a folder; nothing is written, and a free lock is left free."""
    path = _lock_file(root)
    if not path.is_file():
        return False
    try:
        with run_lock(root, patience_s=0):
            return False
    except Timeout:
        return True
