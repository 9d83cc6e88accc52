"""`python -m canal.runtime.warm`: scripts run in forks as Python would have run them, of today's code."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "canal"
LIBRARY = "colorsys"


@pytest.fixture
def place(tmp_path) -> Path:
    """Return a folder with what warm needs of canal, and a script that tells where it runs."""
    (tmp_path / "src" / "canal").mkdir(parents=True)
    (tmp_path / "src" / "canal" / "runtime").mkdir()
    for name in ("__init__.py", "startup.py", "warm.py", "warm_python.py"):
        shutil.copyfile(PACKAGE / "runtime" / name, tmp_path / "src" / "canal" / "runtime" / name)
    (tmp_path / "src" / "canal" / "__init__.py").write_text("EDITION = 1\n")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(place: Path, shell: str, **variables: str) -> subprocess.Popen:
    """Start shell words under warm, one small library instead of all the large ones."""
    code = (
        "import sys, canal.runtime.warm as warm\n"
        f"warm.LIBRARIES = ('no_such_library', 'setting', {LIBRARY!r})\n"
        "sys.exit(warm.main(sys.argv[1:]))"
    )
    there = {"PYTHONPATH": str(place / "src"), "TMPDIR": str(place / "tmp")}
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "bash", "-c", shell],
        cwd=place, env=os.environ | path | there | variables, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(place: Path, shell: str, given: str = "", **variables: str) -> tuple[int, list[str], str]:
    """Run shell words under warm; return exit code, lines and complaints."""
    process = start(place, shell, **variables)
    said, complained = process.communicate(given, timeout=60)
    return process.returncode, said.splitlines(), complained


def test_a_script_sees_what_its_own_python_would_show_it(place):
    script = place / "deep" / "tell.py"
    script.parent.mkdir()
    (script.parent / "beside.py").write_text("VALUE = 'beside'\n")
    script.write_text(
        "import os, sys\nimport beside, canal\n"
        "print(sys.argv, os.getcwd(), os.environ['OWN'], beside.VALUE, __name__, canal.__file__, input())\n"
        "print('complaint', file=sys.stderr)\n"
    )
    code, warm, complained = run(place, "cd deep; OWN=mine python tell.py a 'b c'", "typed\n")
    assert (code, complained) == (0, "complaint\n")
    _, cold, _ = run(place, f"cd deep; OWN=mine {sys.executable} tell.py a 'b c'", "typed\n")
    assert warm == cold
    assert "typed" in warm[0]


def test_libraries_are_imported_once_and_never_canal(place):
    (place / "tell.py").write_text(
        "import os, sys\nhad = 'canal' in sys.modules\nimport canal\n"
        f"print(os.getppid(), {LIBRARY!r} in sys.modules, had, canal.EDITION)\n"
    )
    # Of another length: Python takes compiled code for a source of the same second and size.
    edit = "echo EDITION = 1 + 1 > src/canal/__init__.py; echo 0/0 > src/canal/runtime/startup.py"
    code, lines, _ = run(place, f"python tell.py; {edit}; sleep 1; python tell.py")
    (first, *early), (second, *late) = (line.split() for line in lines)
    assert code == 0
    assert first == second, "both are forks of one process"
    assert early[1:] == ["False", "1"]
    assert late == ["True", "False", "2"]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('so not')", 1, "so not"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
        ("import atexit; atexit.register(print, 'bye')", 0, ""),
        ("import threading; threading.Timer(0.2, print, ['bye']).start()", 0, ""),
        ("print('bye', end='')", 0, ""),
        ("import sys; print('bye'); sys.stdout.close()", 0, ""),
        ("import sys; sys.stdout = open('/dev/full', 'w'); print('lost')", 120, ""),
    ],
)
def test_a_script_ends_as_python_would_end_it(place, body, code, words):
    (place / "end.py").write_text(body + "\n")
    found, lines, complained = run(place, "python end.py")
    assert found == code
    assert words in complained
    assert lines == (["bye"] if "bye" in body else [])


def test_a_script_of_a_script_is_a_fork_as_well(place):
    """Libraries leave variables behind, which a script hands on: they are no wish of its own."""
    (place / "src" / "setting.py").write_text("import os\nos.environ['OMP_SET'] = 'by a library'\n")
    (place / "tell.py").write_text("import os\nprint(os.getppid(), os.environ['OMP_SET'])\n")
    (place / "outer.py").write_text("import subprocess\nsubprocess.run(['python', 'tell.py'])\n")
    (place / "begin.py").touch()
    code, lines, _ = run(place, "python begin.py; sleep 1; python tell.py; python outer.py")
    assert code == 0
    assert lines[0] == lines[1]
    assert lines[0].endswith("by a library")


@pytest.mark.parametrize(
    "shell", ["OMP_NUM_THREADS=7 python tell.py", "python -c 'import os; print(os.getppid())'"]
)
def test_what_needs_a_python_of_its_own_gets_one(place, shell):
    (place / "tell.py").write_text("import os\nprint(os.getppid())\n")
    code, lines, _ = run(place, f"echo $PPID; {shell}; true")
    assert code == 0
    assert lines[0] != lines[1]


def test_a_script_whose_caller_is_killed_is_interrupted(place):
    (place / "wait.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "try:\n    Path('begun').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    Path('interrupted').touch()\n"
    )
    wait = "for i in $(seq 600); do [ -e {} ] && break; sleep 0.05; done"
    kill = f"python wait.py & {wait.format('begun')}; kill -9 $!; {wait.format('interrupted')}"
    code, _, _ = run(place, kill)
    assert code == 0
    assert (place / "interrupted").exists()


def test_ended_itself_it_ends_the_command_and_leaves_nothing(place):
    process = start(place, "echo begun; exec sleep 60")
    assert process.stdout.readline() == "begun\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 30
    assert process.returncode == 128 + signal.SIGTERM
    assert list((place / "tmp").iterdir()) == []


def test_where_it_cannot_serve_the_command_is_simply_run(place):
    (place / "tell.py").write_text("print('here')\nraise SystemExit(4)\n")
    without = (
        "import os, sys; del os.pidfd_open; from canal.runtime import warm; sys.exit(warm.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, sys.executable, "tell.py"],
        cwd=place, env=os.environ | {"PYTHONPATH": str(place / "src")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "here\n")


def test_no_command_and_an_unknown_one_are_said(place):
    warm = [sys.executable, "-m", "canal.runtime.warm"]
    none = subprocess.run(warm, capture_output=True, text=True, check=False)
    assert (none.returncode, "Example: python -m canal.runtime.warm dvc repro" in none.stderr) == (2, True)
    unknown = subprocess.run([*warm, "no-such-command"], capture_output=True, text=True, check=False)
    assert (unknown.returncode, unknown.stderr) == (
        127,
        "canal: command 'no-such-command' not found on PATH\n",
    )


def test_ctrl_c_while_a_script_waits_for_its_turn_is_no_traceback(place):
    """The server is amid an import of seconds; the client is gone when it answers."""
    (place / "src" / f"{LIBRARY}.py").write_text("import time\ntime.sleep(1.5)\n")
    (place / "first.py").write_text("print('first', flush=True)\n")
    (place / "second.py").write_text("print('second')\n")
    process = start(place, "python first.py & sleep 0.3; python second.py; echo $?; wait")
    assert process.stdout.readline() == "first\n"
    while not (pids := waiting(place)):
        time.sleep(0.05)
    time.sleep(0.2)  # until it asks
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert said.splitlines() == ["130"]
    assert complained == ""


def waiting(place) -> list[int]:
    """Return the processes that wait for the server in ``place`` to run second.py."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"second.py" in words and any(str(place).encode() in word for word in words):
                found.append(int(entry.parent.name))
    return found
