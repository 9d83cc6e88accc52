"""One Python for all processes of the suite that has imported the libraries, as `make run` has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = "CANAL_TESTS_WARM"
"""Variable that names the folders of a warm ``python`` and of console scripts that it runs, for `warmly`."""
STARTED_WITH = "CANAL_TESTS_WARM_ENVIRONMENT"
"""Variable with the environment of that ``python``, a JSON document."""

_SERVER = """
import sys
from canal.runtime import warm

warm.LIBRARIES = (  # a project is made by DVC
    "dvc.cli.parser",
    "dvc.repo.index",
    "dvc.repo.reproduce",
    "dvc.utils.strictyaml",
    "dvc.lock",
    "scmrepo.git",
    "networkx",
    *warm.LIBRARIES,
    "mlflow.cli",
    "typer",
)
sys.exit(warm.main(sys.argv[1:]))
"""


@contextmanager
def serving() -> Iterator[None]:
    """Have scripts forked from a process of libraries; it imports them when the first script asks."""
    with TemporaryDirectory(prefix="canal-scripts-") as scripts:
        place = Path(__file__).with_name("script.py")
        for name in ("canal", "dvc", "mlflow"):
            script = Path(scripts, name)
            script.write_text(f'#!/bin/sh\nexec python "{place}" {name} "$@"\n')
            script.chmod(0o755)
        command = [sys.executable, "-c", _SERVER, "sh", "-c", 'dirname "$(command -v python)"; cat']
        own = environment(REPOSITORY)
        process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.environ[STARTED_WITH] = json.dumps(own)
        os.environ[FOLDERS] = os.pathsep.join([process.stdout.readline().strip(), scripts])
        yield
        del os.environ[FOLDERS], os.environ[STARTED_WITH]
        process.communicate()


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a person in ``root``: this Python first, the project's own source."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(root / "src"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }


def warmly(root: Path) -> dict[str, str]:
    """Return `environment` with what `serving` serves; without it, just that."""
    cold = environment(root)
    if FOLDERS not in os.environ:
        return cold
    return cold | {"PATH": os.pathsep.join([os.environ[FOLDERS], cold["PATH"]])}
