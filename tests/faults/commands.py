"""A command of canal as work for a forked worker: `tests.faults.forked`."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from tests.faults.forked import Work


def command(*arguments: str, env: dict[str, str] | None = None) -> Work:
    """Return work that runs a command of canal; its result is the exit code and what was printed.

    A refusal (`CanalError`) is raised, as is anything that would be a traceback.
    """

    def work() -> dict[str, Any]:
        from canal.cli import app

        os.environ.update(env or {})
        tempfile.tempdir = None  # TMPDIR of ``env``
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = app([*arguments], standalone_mode=False)
        return {"code": code or 0, "said": said.getvalue()}

    return work
