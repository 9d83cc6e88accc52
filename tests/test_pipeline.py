"""`make run` around DVC: what is refused before it, what is said after it."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from canal.app import running
from canal.app.at_work import note_run, run_lock
from canal.app.creating import complete_project
from canal.app.planning import dvc_steps
from canal.core.errors import ConfigError
from canal.runtime.startup import run_script
from tests.support.cells import make_document
from tests.support.warm import REPOSITORY

FILES = ("params.yaml", "data.dvc", "dvc.lock", "ledger.jsonl")


@pytest.fixture
def folder(tmp_path):
    for name in FILES[:2]:
        (tmp_path / name).write_text("a: 1\n")
    (tmp_path / "other.txt").write_text("x")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "params.yaml", "data.dvc")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@x", "commit", "--quiet", "--message", "start")
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_what_a_run_made_is_said_with_the_command_that_commits_it(folder):
    (folder / "dvc.lock").write_text("x")
    (folder / "ledger.jsonl").write_text("x")
    (folder / "data.dvc").write_text("changed")
    lines = running.to_commit(folder)
    assert [line.split()[0] for line in lines[2:-1]] == ["data.dvc", "dvc.lock", "ledger.jsonl"]
    command = lines[-1].strip()
    assert command.startswith("git add data.dvc dvc.lock ledger.jsonl && git commit -m ")
    git(folder, "config", "user.name", "t")
    git(folder, "config", "user.email", "t@x")
    subprocess.run(["bash", "-euc", command], cwd=folder, check=True, capture_output=True)
    assert running.to_commit(folder) == []


def test_a_clean_tree_and_a_folder_outside_of_git_are_told_nothing(folder, tmp_path_factory):
    assert running.to_commit(folder) == []
    assert running.to_commit(tmp_path_factory.mktemp("plain")) == []


def test_the_demo_commits_no_lock_of_models_that_are_made_anew():
    """A fresh clone's first run changed the committed lock, which was of models restored from older code."""
    from tests.support.warm import REPOSITORY

    tracked = subprocess.run(["git", "ls-files", "dvc.lock"], cwd=REPOSITORY, capture_output=True, check=True)
    assert tracked.stdout == b""
    ignored = ["git", "check-ignore", "--quiet", "dvc.lock"]
    assert subprocess.run(ignored, cwd=REPOSITORY, check=False).returncode == 1  # users commit theirs


def test_ctrl_c_is_one_line_and_registers_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    ran = []

    def interrupted(what, module, *_, **__):
        ran.append(module)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "check_before_run", list)
    monkeypatch.setattr(running, "complete_project", lambda root: None)
    monkeypatch.setattr(running, "run_module", interrupted)
    assert running.main() == 130
    said = capfd.readouterr().err
    assert said.splitlines() == ["canal: interrupted; `canal run` continues after the steps that are done"]
    assert ran == ["canal.runtime.warm"]


def test_a_second_run_in_a_folder_is_refused_in_one_line(tmp_path, monkeypatch, capfd):
    """DVC refused it with its own file of locks, after which the table of versions was shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "check_before_run", list)
    monkeypatch.setattr(running, "complete_project", lambda root: None)
    with run_lock(tmp_path, 0):
        assert running.main() == 1
        with pytest.raises(ConfigError, match="a `canal run` is at work in this folder"):
            dvc_steps(tmp_path)
    said = capfd.readouterr().err.splitlines()
    assert [one for one in said if not one.startswith("running DVC ...")] == [
        "canal: another `canal run` is at work in this folder: wait for it, or end it"
    ]
    with run_lock(tmp_path, 0):
        note_run(tmp_path, os.getpid())
        with pytest.raises(ConfigError, match=rf"at work in this folder \(process {os.getpid()}, since 20"):
            dvc_steps(tmp_path)
        assert running.main() == 1
    said = capfd.readouterr().err
    assert re.search(rf"process {os.getpid()}, since 20.* wait for it, or end it with `kill \d+`", said)


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_alone_ends_what_it_has_started(tmp_path, ended_by):
    """`kill` reaches one process, Ctrl-C all of a terminal; DVC leaves Ctrl-C to the step, its child.

    It was started as a script starts what has ``&`` behind it: to ignore SIGINT.
    """
    (tmp_path / "patient.py").write_text(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "step = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "subprocess.run([sys.executable, '-c', step], check=False)\n"
    )
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from canal.app import running; running._heed_signals(); running.run_module('working', 'patient')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "1\n"
    process.send_signal(ended_by)
    _, said = process.communicate(timeout=30)
    assert process.returncode
    assert said.rstrip().endswith(("KeyboardInterrupt", "_Ended"))


def test_a_script_that_ctrl_c_ends_leaves_no_traceback(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("raise KeyboardInterrupt\n")
    assert run_script(["script.py"], str(tmp_path)) == 130
    assert capfd.readouterr().err == ""


def test_a_run_that_dvc_stopped_ends_with_that(monkeypatch, capfd, folder):
    """The table of what was registered before would be the last thing on the screen."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(running, "check_before_run", list)
    monkeypatch.setattr(
        running, "run_module", lambda what, module, *_, **__: 255 if module == "canal.runtime.warm" else 0
    )
    assert running.main() == 255
    assert capfd.readouterr().err.splitlines()[-1].startswith("canal: the run failed: see the error above")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "data.dvc"])
def test_amid_a_merge_nothing_is_run(monkeypatch, tmp_path, name):
    from tests.support.cells import make_document

    (tmp_path / "params.yaml").write_text(json.dumps(make_document()))
    path = tmp_path / name
    ours = path.read_text() if path.is_file() else "a: 1\n"
    path.write_text(f"<<<<<<< HEAD\n{ours}\n=======\nb: 2\n>>>>>>> other\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{name} has an unresolved merge conflict .* lines 1, "):
        running.check_before_run()


def test_a_project_that_may_only_be_read_is_not_run(monkeypatch, tmp_path):
    from tests.support.cells import make_document

    (tmp_path / "params.yaml").write_text(json.dumps(make_document()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="is read-only for this user"):
        running.check_before_run()


@pytest.mark.parametrize(
    ("content", "left"),
    [(b"", False), (b'{"a": {"wri', False), (b"\xff", False), (b"{}", True), (None, False)],
)
def test_a_list_of_locks_that_ctrl_c_cut_short_is_removed(monkeypatch, tmp_path, content, left):
    """DVC refused it for ever: "JSON structure is corrupted", and `make run` went on from nothing."""
    monkeypatch.setattr(running, "_WRITING_S", 0)
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    running.mend_locks(tmp_path)
    assert path.exists() == left
    if left:
        assert path.read_bytes() == content


def test_a_list_of_locks_that_is_being_written_is_left_alone(monkeypatch, tmp_path):
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{")
    monkeypatch.setattr("time.sleep", lambda _: path.write_bytes(b"{}"))
    running.mend_locks(tmp_path)
    assert path.read_bytes() == b"{}"


def test_what_dvc_hands_to_a_shell_is_quoted(tmp_path):
    """Bare `dvc repro` reads params.yaml before canal does; a name must not become a command."""
    yaml = YAML(typ="safe")
    stages = yaml.load(REPOSITORY / "dvc.yaml")["stages"]
    commands = [one.get("do", one)["cmd"] for one in stages.values()]
    named = [command for command in commands if "${" in command]
    assert len(named) >= 6
    for command in named:
        assert re.findall(r".\$\{[^}]*\}.", command) == ["'${key}'"], command
    names = ("$(touch one)", "b; touch two", "`touch three`")
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump({"names": {name: {} for name in names}}, file)
    script = {"foreach": "${names}", "do": {"cmd": named[0].replace("python pipelines/prepare.py", "echo")}}
    with (tmp_path / "dvc.yaml").open("w") as file:
        yaml.dump({"stages": {"made": script}}, file)
    for command in ("git init -q", "dvc init -q", "dvc repro --quiet"):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "dvc.lock").is_file()
    assert {path.name for path in tmp_path.iterdir()} & {"one", "two", "three"} == set()


def test_an_older_project_gets_what_dvc_asks_for(tmp_path):
    """A section and a folder that dvc.yaml names; what is there stays as it is."""
    document = make_document()
    del document["memory"]
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(document, file)
    for _ in range(2):
        complete_project(tmp_path)
        assert YAML(typ="safe").load(tmp_path / "params.yaml")["memory"] == {}
        assert (tmp_path / "gate").is_dir()
        (tmp_path / "gate" / "cells.json").write_text("{}")
    assert (tmp_path / "gate" / "cells.json").read_text() == "{}"
