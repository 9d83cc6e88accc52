"""Process start-up and exit: settings made before large imports, running a script in-process, fast exit."""

import atexit
import gc
import logging
import os
import runpy
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended."""

_OBJECTS = 200_000
_OUTPUT_LOST = 120
"""Python's exit code after success when output could not be flushed."""


def begin() -> None:
    """Collect garbage less often, and escape characters that the terminal's encoding lacks.

    Imports create a million objects and hardly any garbage: collecting every 700 objects takes a seventh of
    the time to import torch and MLflow. A Latin-1 terminal has no λ.
    """
    gc.set_threshold(_OBJECTS)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            with suppress(OSError):  # a fork's pipe, where its parent had a file
                stream.reconfigure(errors="backslashreplace")


QUIET = {
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Default values of environment variables that libraries read; the user's values take precedence."""


def quiet_libraries() -> None:
    """Keep MLflow and Great Expectations off the network, and MLflow's notices off the terminal."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")


def own_code() -> dict[str, str]:
    """Return this process's environment for another Python that is to import this canal."""
    path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def run_script(command: Sequence[str], folder: str) -> int:
    """Run ``python SCRIPT.py ...`` in this process as the main program; return its exit code.

    Uncaught exceptions are raised.
    """
    os.chdir(folder)
    sys.argv = [*command]
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        return exit_code(end.code)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def exit_code(value: str | int | None) -> int:
    """Return the exit code of a `SystemExit` value as Python does: a value that is no number is printed."""
    if value is None or isinstance(value, int):
        return value or 0
    sys.stderr.write(f"{value}\n")
    return 1


def leave(code: int) -> NoReturn:
    """Exit as Python does, but without tearing down modules, which takes a second with MLflow and torch.

    The order is Python's own: threads, then exit handlers, then the streams.
    """
    _unregister_torch_exit()
    threading._shutdown()  # type: ignore[attr-defined]  # multiprocessing does the same in its forks
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (ValueError, BrokenPipeError):  # closed, or nobody reads it any more
            pass
        except OSError:  # a full disk
            code = code or _OUTPUT_LOST
    os._exit(code)


def _unregister_torch_exit() -> None:
    """Unregister torch's exit handlers: compile times for a log that is not kept, and operator teardown."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        atexit.unregister(dynamo.dump_compile_times)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        alive = finalizer.peek()
        if alive is not None and alive[1].__module__ == "torch.library":
            finalizer.atexit = False
