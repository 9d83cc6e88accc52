"""Python processes that canal starts, run in forks of the suite's warm Python: each would import for seconds.

They run the same code in a process of its own, with the same pipes; only its libraries are there already.
"""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from canal.runtime.warm import _READ_ON_IMPORT
from tests.support.warm import FOLDERS, STARTED_WITH

_OPENING = ["-P", "-m", "canal.registry.audit.opening"]
_RUN = 'import runpy; runpy.run_module("canal.registry.audit.opening", run_name="__main__", alter_sys=True)\n'
_USES_DVC = "from dvc.repo import Repo"


class _Warm(subprocess.Popen):
    """A process that is forked from the warm Python where it is one that imports large libraries."""

    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        code = _code(args)
        if code is not None:
            warm, scripts = os.environ[FOLDERS].split(os.pathsep)
            script = Path(scripts, f"{sha256(code.encode()).hexdigest()[:16]}.py")
            if not script.is_file():
                new = script.with_suffix(f".{os.getpid()}")
                new.write_text(code)
                new.replace(script)
            args = [str(Path(warm, "python")), str(script), *args[3 if args[1] == "-c" else 4 :]]
            options["env"] = _alike(options.get("env") or os.environ)
        super().__init__(args, *rest, **options)


def _code(args: Any) -> str | None:
    """Return what the process runs, if it is one of those that canal starts and that import for seconds."""
    if not isinstance(args, list) or args[:1] != [sys.executable] or len(args) < 3:
        return None
    if args[1:] == _OPENING:
        return _RUN
    return args[2] if args[1] == "-c" and _USES_DVC in args[2] else None


def _alike(wanted: Any) -> dict[str, str]:
    """Return an environment without what libraries read when they are imported, as the warm Python has it."""
    kept = {name: value for name, value in wanted.items() if not name.startswith(_READ_ON_IMPORT)}
    python = {name: value for name, value in wanted.items() if name == "PYTHONPATH"}
    started = json.loads(os.environ[STARTED_WITH])
    return (
        {name: value for name, value in started.items() if name.startswith(_READ_ON_IMPORT)} | kept | python
    )


def fork_children() -> None:
    """Run such processes of this one in forks, where the suite has a warm Python."""
    if FOLDERS in os.environ:
        subprocess.Popen = _Warm  # type: ignore[misc]
