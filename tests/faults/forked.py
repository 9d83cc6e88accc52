"""Workers forked from a process that has imported everything, so that a kill costs no start-up.

The parent never computes anything with torch and never opens a store: threads and connections do not
survive a fork.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from canal.runtime.startup import begin
from tests.support.children import fork_children

REFUSED, CRASHED = 3, 70
"""Exit codes of a worker that met a `CanalError`, and of one that met anything else."""

Work = Callable[[], Any]

_MODULES = (
    "torch._dynamo",  # imported by the first optimiser otherwise
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracing.provider",
    "alembic.command",
    "anndata",
    "jsonschema",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "rich.progress",
    "scipy.stats",
    "sklearn.metrics",
    "canal.app.annotating",
    "canal.app.choosing",
    "canal.continual.evaluation",
    "canal.continual.held_out_heads",
    "canal.continual.trainer",
    "canal.app.tasks",
    "canal.app.promoting",
    "canal.registry.audit.full_audit",
    "canal.report.collect",
    "canal.report.figures",
    "canal.app.pipeline",
)


def import_everything() -> None:
    """Import what the workers need, before the first fork."""
    begin()
    fork_children()
    for name in _MODULES:
        import_module(name)
    list_packages()
    gc.freeze()  # a worker that looks for garbage there copies all that it shares, which takes it a second


def list_packages() -> None:
    """Let MLflow look through what is installed, as it does once in a process that saves a model."""
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches(["mlflow"])


class Worker:
    """A forked process that does one piece of work; what it returns is read as JSON."""

    def __init__(self, work: Work, cwd: Path) -> None:
        with NamedTemporaryFile(prefix="canal-worker-", delete=False) as answer:
            self.answer = Path(answer.name)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_perform(work, cwd, self.answer))

    def kill_after(self, seconds: float) -> bool:
        """Kill the worker with SIGKILL unless it ends before; return whether it was killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def said(self) -> str:
        """What the worker wrote down: its result as JSON, or the error it met."""
        return self.answer.read_text(encoding="utf-8")


def done(work: Work, cwd: Path) -> Any:
    """Do a piece of work in a worker and return its result.

    Raises
    ------
    AssertionError
        If the worker did not end well.
    """
    worker = Worker(work, cwd)
    code = worker.wait()
    assert code == 0, f"a worker ended with {code}: {worker.said}"
    return json.loads(worker.said)


def _perform(work: Work, cwd: Path, answer: Path) -> int:
    from canal.core.errors import CanalError

    os.chdir(cwd)
    os.setpgid(0, 0)
    try:
        answer.write_text(json.dumps(work()), encoding="utf-8")
    except CanalError as error:
        answer.write_text(str(error), encoding="utf-8")
        return REFUSED
    except BaseException:  # noqa: BLE001 - a worker tells its parent whatever it was
        answer.write_text(traceback.format_exc(), encoding="utf-8")
        return CRASHED
    return 0
