"""A fork server for pipeline steps: ``python -m canal.runtime.warm dvc repro`` imports large libraries once.

DVC starts a new Python for every step, and importing MLflow, torch and Great Expectations takes longer than
most steps of a small stage. The server imports them once, from the first step on, and forks for each step.
Only libraries are imported ahead, never canal: a step runs the code of the moment when it starts, which is
what DVC records. A ``python`` placed first on PATH (`canal.runtime.warm_python`) sends scripts to the server.

Forking is safe on Linux alone; elsewhere, and on Linux before 5.3, the command is run without a server.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from canal.runtime import warm_python
from canal.runtime.startup import QUIET, begin, leave, quiet_libraries, run_script

LIBRARIES = (
    "pandas",
    "anndata",
    "pydantic",
    "ruamel.yaml",
    "sklearn.feature_selection",
    "great_expectations.expectations",
    "great_expectations.render.renderer.site_builder",
    "mlflow.projects",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracing.processor.otel",
    "filelock",
    "git",
    "torch",
    "torch._dynamo",
    "safetensors.torch",
    "sklearn.metrics",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "optuna",
    "rich.progress",
)
"""Libraries in the order in which the pipeline's steps need them."""

_READ_ON_IMPORT = ("CUDA_", "GX_", "MKL_", "MLFLOW_", "OMP_", "PYTHON", "TORCH")
"""Prefixes of variables that libraries read on import: a script with other values gets its own Python."""

_STREAMS = ("stdin", "stdout", "stderr")
_PATIENCE = 10.0
_LONGEST = 1 << 22
_USAGE = (
    "usage: python -m canal.runtime.warm COMMAND [ARGUMENT ...]\n\n"
    "Example: python -m canal.runtime.warm dvc repro\n"
)


@dataclass(frozen=True)
class Order:
    """A request to run a script: its command line after ``python``, working folder and environment."""

    command: list[str]
    folder: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Script:
    """A fork that runs a script: its process id, a descriptor of its exit, and the waiting client."""

    pid: int
    ended: int
    client: socket.socket


def main(command: Sequence[str]) -> int:
    """Run a command, and its Python scripts in forks of this process; return its exit code."""
    if not command or command[0] in ("-h", "--help"):
        sys.stderr.write(_USAGE)
        return 0 if command else 2
    if shutil.which(command[0]) is None:
        sys.stderr.write(f"canal: command {command[0]!r} not found on PATH\n")
        return 127
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # process file descriptors are Linux's, since 5.3
        return subprocess.run(command, check=False).returncode
    begin()
    quiet_libraries()
    folder = Path(mkdtemp(prefix="canal-warm-"))  # a TemporaryDirectory would be deleted by each fork
    server = Server(folder)
    process = _start(command, folder)
    order = server.serve(process)
    if order is not None:
        leave(run_script(order.command, order.folder))
    shutil.rmtree(folder)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _start(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command with the ``python`` in ``folder`` first on PATH; SIGTERM is forwarded to it."""
    started: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(number: int, _: object) -> None:
        received.append(number)
        for process in started:
            process.terminate()

    # Installed before the command starts: an early signal must reach it, too.
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the command, too
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    process = subprocess.Popen(command, env=os.environ | {"PATH": path})
    started.append(process)
    if received:
        process.terminate()
    return process


class Server:
    """Listens at a socket in ``folder`` for scripts and forks for each; writes the ``python`` there."""

    def __init__(self, folder: Path) -> None:
        address = folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(address))
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._environment = {**os.environ}
        self._ahead: list[str] = []
        self._asked = False
        command = shlex.join((sys.executable, "-IS", warm_python.__file__, str(address)))
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        python.chmod(0o755)

    def serve(self, process: subprocess.Popen[bytes]) -> Order | None:
        """Serve until ``process`` exits, and return None; in a fork, return the order to run."""
        self._selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ)
        while process.poll() is None:
            events = self._selector.select(0 if self._ahead else None)
            for key, _ in events:
                if key.fileobj is self._listener:
                    if (order := self._accept()) is not None:
                        return order
                elif isinstance(key.data, Script):
                    self._check_script(key.data)
            if not events:
                with suppress(ImportError):  # left to the script that needs the library
                    importlib.import_module(self._ahead.pop(0))
        for script in {key.data for key in self._selector.get_map().values() if key.data}:
            os.kill(script.pid, signal.SIGKILL)
        return None

    def _accept(self) -> Order | None:
        """Accept an order and fork for it; in the fork, return the order."""
        client, _ = self._listener.accept()
        request = self._receive(client)
        if request is None:
            client.close()
            return None
        order, streams = request
        try:
            client.sendall(warm_python.YES)
        except OSError:  # the client was interrupted while it waited
            for stream in streams:
                os.close(stream)
            client.close()
            return None
        if not self._asked:
            self._asked, self._ahead = True, [*LIBRARIES]
        gc.freeze()  # objects shared with forks are not scanned for garbage there
        importlib.invalidate_caches()  # in the server: in a fork it would copy hundreds of memory pages
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        pid = os.fork()
        if pid == 0:
            self._close_in_fork()
            signal.pthread_sigmask(signal.SIG_SETMASK, held)  # a signal that came before ends it now
            client.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            _apply_environment(order, self._environment)
            return order
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for stream in streams:
            os.close(stream)
        script = Script(pid, os.pidfd_open(pid), client)
        for channel in (script.ended, client):
            self._selector.register(channel, selectors.EVENT_READ, script)
        return None

    def _receive(self, client: socket.socket) -> tuple[Order, list[int]] | None:
        """Return a client's order and its three streams; None where the script needs its own Python."""
        client.settimeout(_PATIENCE)
        streams: list[int] = []
        try:
            _, streams, _, _ = socket.recv_fds(client, 1, len(_STREAMS))
            with client.makefile("r", encoding="utf-8") as sent:
                order = Order(**json.loads(sent.readline(_LONGEST)))
            # A script started by a script passes on variables that libraries have set in this process.
            own = dict(order.environment.items() - _changed_variables(self._environment).items())
            same = _read_on_import(QUIET | own) == _read_on_import(self._environment)
            if same and len(streams) == len(_STREAMS):
                client.settimeout(None)
                return order, streams
            client.sendall(warm_python.NO)
        except (OSError, ValueError, TypeError):
            pass  # not one of our clients, or a client that is gone
        for stream in streams:
            os.close(stream)
        return None

    def _check_script(self, script: Script) -> None:
        """Send the exit code of a finished script to its client, or interrupt the script of a lost client."""
        watched = self._selector.get_map()
        pid, status = os.waitpid(script.pid, os.WNOHANG)
        if not pid:
            if script.client in watched:
                self._selector.unregister(script.client)
                os.kill(script.pid, signal.SIGINT)
            return
        self._selector.unregister(script.ended)
        if script.client in watched:
            self._selector.unregister(script.client)
        os.close(script.ended)
        with suppress(OSError):
            script.client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        script.client.close()

    def _close_in_fork(self) -> None:
        """Close the server's sockets and restore signal handlers, in a fork."""
        for key in [*self._selector.get_map().values()]:
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that libraries read on import, without PYTHONPATH, which a fork applies itself."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_ON_IMPORT) and name != "PYTHONPATH"
    }


def _changed_variables(before: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this process that are new or changed since ``before``."""
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _apply_environment(order: Order, before: Mapping[str, str]) -> None:
    """Set the environment and sys.path of a fork as in a new Python started for the script.

    ``before`` is the server's environment before its imports; variables that libraries set are kept.
    """
    by_libraries = _changed_variables(before)
    os.environ.clear()
    os.environ.update(by_libraries | order.environment)
    beside = str(Path(order.folder, order.command[0]).parent)
    sys.path[: 1 + len(_search_path(before))] = [beside, *_search_path(order.environment)]
    for name in [name for name in sys.modules if name == "canal" or name.startswith("canal.")]:
        del sys.modules[name]


def _search_path(environment: Mapping[str, str]) -> list[str]:
    """Return the folders in PYTHONPATH."""
    return [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
