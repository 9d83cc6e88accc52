"""An MLflow Project backend that runs an entry point in a forked process, with MLflow and torch imported.

MLflow's own backend starts a new Python, whose imports take as long as a small stage needs to learn. Here a
spare process is forked right after the imports, before this one opens its store (a database's connections
must not be shared), and waits for the command that MLproject gives the entry point. pyproject.toml registers
the backend with MLflow; ``mlflow run .`` by hand uses MLflow's own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from mlflow.entities import RunStatus
from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.projects.utils import (
    fetch_and_validate_project,
    get_entry_point_command,
    get_or_create_run,
    get_run_env_vars,
    load_project,
)

from canal.runtime.startup import INTERRUPTED, run_script

NAME = "canal-forked"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
SPARE = "spare"
"""Key of ``backend_config`` below which the spare process is handed over."""


class Spare:
    """A forked copy of this process that waits for a script to run, and ends when this process ends.

    While it waits it imports the modules ``ahead``.
    """

    def __init__(self, ahead: Sequence[str] = ()) -> None:
        orders, self._sender = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until the copy would end by it
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._sender)
            _wait_and_run(orders, ahead)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(orders)
        self._code: int | None = None

    def run(self, folder: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run ``python SCRIPT ...`` in the copy, in a folder, with further environment variables."""
        order = {"folder": folder, "command": [*command], "environment": {**environment}}
        with os.fdopen(self._sender, "w", encoding="utf-8") as stream:
            json.dump(order, stream)

    def poll(self) -> int | None:
        """Return the exit code of the copy; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Wait for the copy and return its exit code, negative after a signal."""
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


class ForkedRun(SubmittedRun):
    """An entry point that a spare process runs."""

    def __init__(self, run_id: str, process: Spare) -> None:
        super().__init__()
        self._run_id = run_id
        self._process = process

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def wait(self) -> bool:
        """Wait for the end; True where the entry point succeeded."""
        return self._process.wait() == 0

    def get_status(self) -> str:
        """Return MLflow's name of the state it is in."""
        code = self._process.poll()
        status = RunStatus.RUNNING if code is None else RunStatus.FINISHED if code == 0 else RunStatus.FAILED
        return str(RunStatus.to_string(status))

    def cancel(self) -> None:
        """Send SIGTERM to the process, and wait for its end."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait()


class ForkedBackend(AbstractBackend):
    """Runs ``python SCRIPT ...``, as MLproject says, in the spare process of ``backend_config``."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, Any],
        version: str | None,
        backend_config: Mapping[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> ForkedRun:
        """Create the run and start the entry point.

        Raises
        ------
        ExecutionException
            If the entry point's command runs no Python script.
        """
        folder = fetch_and_validate_project(  # type: ignore[no-untyped-call]
            project_uri, version, entry_point, params
        )
        project = load_project(folder)  # type: ignore[no-untyped-call]
        (line,) = get_entry_point_command(project, entry_point, params, None)  # type: ignore[no-untyped-call]
        own, command = _split(line)
        if command[:1] != ["python"] or not "".join(command[1:2]).endswith(".py"):
            raise ExecutionException(f"{NAME} runs `python SCRIPT.py ...`, but MLproject says `{line}`")
        run_id = get_or_create_run(  # type: ignore[no-untyped-call]
            None, project_uri, experiment_id, folder, version, entry_point, params
        ).info.run_id
        spare: Spare = backend_config[SPARE]
        variables = own | get_run_env_vars(run_id, experiment_id)  # type: ignore[no-untyped-call]
        spare.run(folder, command[1:], variables)
        return ForkedRun(run_id, spare)


def _split(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a shell would set for a command, and its words."""
    words = shlex.split(line)
    first = next((i for i, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    return dict(word.split("=", 1) for word in words[:first]), words[first:]


def import_stores() -> None:
    """Import MLflow's database modules: once for both processes, if called before forking."""
    for name in ("model_registry", "tracking"):
        import_module(f"mlflow.store.{name}.sqlalchemy_store")


def _wait_and_run(orders: int, ahead: Sequence[str]) -> None:
    """Run the script of the one order, as a new Python would, and exit."""
    code = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a library that this process uses may have caught it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        for name in ahead:
            import_module(name)
        with os.fdopen(orders, encoding="utf-8") as stream:
            text = stream.read()
        if text:
            order = json.loads(text)
            os.environ.update(order["environment"])
            code = run_script(order["command"], order["folder"])
        else:
            code = 0
    except KeyboardInterrupt:  # whoever gave the order says so
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
