"""Steps run in a fork that has imported MLflow: what the script does and how it ends is told."""

import os
import signal
import sys
import time

import pytest
from mlflow.exceptions import ExecutionException

from canal.core.files import read_json
from canal.registry.forked import NAME, SPARE, ForkedBackend, ForkedRun, Spare

SCRIPT = """
import json, os, sys
from pathlib import Path
if __name__ == "__main__":
    seen = {"arguments": sys.argv, "here": os.getcwd(), "value": os.environ["CANAL_TEST"]}
    Path("seen.json").write_text(json.dumps(seen))
    exec(sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "step.py").write_text(SCRIPT)
    return tmp_path


def started(folder, code):
    spare = Spare()
    spare.run(str(folder), ["step.py", code], {"CANAL_TEST": "set"})
    return spare


def test_a_script_runs_as_if_python_had_been_started_for_it(folder):
    assert started(folder, "pass").wait() == 0
    assert read_json(folder / "seen.json") == {
        "arguments": ["step.py", "pass"],
        "here": str(folder),
        "value": "set",
    }
    assert "CANAL_TEST" not in os.environ


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit()", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('a reason')", 1),
        ("raise ValueError('broken')", 1),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_how_a_script_ends_is_told(folder, code, ends):
    run = ForkedRun("run", started(folder, code))
    assert run.wait() == (ends == 0)
    assert run.get_status() == ("FINISHED" if ends == 0 else "FAILED")


def test_what_a_script_says_when_it_fails_is_shown(folder, capfd):
    started(folder, "sys.exit('a reason')").wait()
    started(folder, "raise ValueError('broken')").wait()
    said = capfd.readouterr().err
    assert "a reason" in said
    assert "ValueError: broken" in said


def test_what_is_imported_ahead_is_there(folder):
    assert "wave" not in sys.modules
    spare = Spare(ahead=["wave"])
    spare.run(str(folder), ["step.py", "sys.exit(0 if 'wave' in sys.modules else 4)"], {"CANAL_TEST": ""})
    assert spare.wait() == 0


def test_a_run_can_be_cancelled(folder):
    run = ForkedRun("run", started(folder, "import time; time.sleep(60)"))
    assert run.get_status() == "RUNNING"
    run.cancel()
    assert run.get_status() == "FAILED"


def test_a_run_can_be_cancelled_whatever_the_process_that_started_it_does_with_the_signal(folder):
    """Dask and uvicorn catch SIGTERM in the process that uses them; a fork of it slept on to its end."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    began = time.monotonic()
    try:
        for moment in (0.0,) * 30 + (0.5,):
            run = ForkedRun("run", started(folder, "import time; time.sleep(60)"))
            time.sleep(moment)
            run.cancel()
            assert run.get_status() == "FAILED"
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    assert time.monotonic() - began < 30
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_spare_process_without_an_order_ends_with_the_one_that_made_it():
    """Its maker forks, and is killed before it has given an order: the copy reads the end of its pipe."""
    told, tell = os.pipe()
    maker = os.fork()
    if maker == 0:
        os.write(tell, f"{Spare().pid}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(tell)
    os.waitpid(maker, 0)
    assert os.read(told, 20)
    assert os.read(told, 1) == b""  # the copy held the other end until it ended
    os.close(told)


def test_mlflow_knows_the_backend_and_an_entry_point_that_is_no_script_is_refused(tmp_path):
    from mlflow.projects.backend.loader import load_backend

    (tmp_path / "MLproject").write_text("name: x\nentry_points:\n  main: {command: make all}\n")
    backend = load_backend(NAME)
    assert isinstance(backend, ForkedBackend)
    with pytest.raises(ExecutionException, match="make all"):
        backend.run(str(tmp_path), "main", {}, None, {SPARE: None}, "", "0")
