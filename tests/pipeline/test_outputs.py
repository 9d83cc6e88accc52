"""What --json prints is as `canal schema` says, also in a subfolder; and what `canal status` tells."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.core.digests import canonical_json
from canal.core.files import append_line
from canal.registry.promotion.moves import moving
from canal.registry.promotion.promotion import Decision, promote
from tests.pipeline.conftest import Line
from tests.support.outputs import complaints
from tests.support.registered import OVERRIDDEN
from tests.support.warm import warmly

pytestmark = pytest.mark.pipeline

BY = ("--by", "A. Person", "--why", "reviewed")
FILE = "raw/second.h5ad"
FORM = ("--values", "counts", "--batch", "batch", "--min-genes", "1")
COMMANDS = (
    ("versions",), ("show", "2"), ("plan",), ("registry sync",),
    ("compare", "candidate"), ("annotate", FILE, "-o", "labelled.h5ad"), ("who", "labelled.h5ad"), ("watch",),
    ("novel", "labelled.h5ad"), ("explain", "labelled.h5ad", "--cells", "5"), ("markers", "2"),
    ("validate", FILE, "--stage", "second"), ("stage map", "raw/third.h5ad", *FORM),
    ("stage add", "third", "--file", "raw/third.h5ad", *FORM, "--dry-run"), ("stage relearn", "second"),
    ("ledger",), ("ledger", "--verify"), ("ledger merge", "HEAD", "--dry-run"), ("audit", "1"),
    ("lineage", "2"), ("lineage", "--data", "first"), ("impact", "first"), ("diff", "1", "2", FILE),
    ("export", "2", "-o", "two.zip"), ("import", "two.zip"), ("models add", "two.zip"), ("models list",),
    ("models show", "two"), ("models remove", "two"), ("keys new", "--name", "A. Person", "-o", "key.pem"),
    ("keys show", "key.pem"), ("rollback", "--to", "2", *BY, "--dry-run"), ("rollback", "--to", "2", *BY),
    ("retire", "1", *BY), ("upgrade", "--dry-run"), ("doctor",), ("status",),
)  # fmt: skip
ROOTLESS = ("models", "keys")


def output(line: Line, command: str, *words: str) -> Any:
    """Return the JSON that a command prints in a project, whatever its exit code."""
    place = () if command.startswith(ROOTLESS) else ("--root", str(line.root))
    done = CliRunner().invoke(app, [*command.split(), *words, *place, "--json"])
    assert done.stdout, f"{command}: {done.exception!r} {done.output}"
    return json.loads(done.stdout)


def let_serve(line: Line, number: str) -> None:
    """Promote a version, whatever the policy says."""
    store = line.project().store
    with moving(store) as ledger:
        promote(store, ledger, store.version(number), OVERRIDDEN, Decision("A. Person", "for the test"))


def test_outputs_are_as_their_schemas_say(line, tmp_path, monkeypatch):
    monkeypatch.chdir(line.root)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    let_serve(line, "1")
    wrong = [
        said for command, *words in COMMANDS for said in complaints(command, output(line, command, *words))
    ]
    assert wrong == []


def test_commands_find_the_project_from_a_subfolder(line, monkeypatch):
    let_serve(line, "1")
    inner = line.root / "analysis" / "today"
    inner.mkdir(parents=True)
    shutil.copy(line.root / FILE, inner / "new.h5ad")
    monkeypatch.chdir(inner)
    for words in (
        ["versions"],
        ["plan"],
        ["annotate", "new.h5ad", "-o", "labelled.h5ad"],
        ["promote", "candidate", "--dry-run"],
        ["rollback", "--to", "2", *BY],
    ):
        done = CliRunner().invoke(app, words)
        refused = words[0] == "promote" and done.exit_code == 1
        assert done.exit_code == 0 or refused, f"{words}: {done.exception!r}"
        assert done.stderr.count(f"project: {line.root}\n") == 1, words
    assert (inner / "labelled.h5ad").is_file()
    assert not (line.root / "labelled.h5ad").exists()
    done = CliRunner().invoke(app, ["versions", "--root", str(line.root), "--json"])
    assert (done.stderr, done.exit_code) == ("", 0)


@pytest.mark.chaos
def test_a_run_in_a_subfolder_runs_the_project(line):
    inner = line.root / "analysis"
    inner.mkdir()
    done = subprocess.run(
        ["canal", "run", "--json"],
        cwd=inner, env=warmly(line.root), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"project: {line.root}\n" in done.stderr
    document = json.loads(done.stdout)
    assert complaints("run", document) == []
    assert [one["stage"] for one in document["kept"]] == ["backbone", "first", "second"]
    assert document["learned"] == []


def needs(line: Line) -> str:
    """Return what waits for a person, with the commands, as one text."""
    return "\n".join(f"{one['what']} -> {one['command']}" for one in output(line, "status")["needs"])


def test_status_names_what_waits_for_a_person(line):
    before = output(line, "status")
    assert (before["serving"], before["candidate"]["version"]) == (None, 2)
    assert "version 2 (second) is not promoted" in needs(line)
    assert "too few test cells to judge" in needs(line)
    let_serve(line, "2")
    assert "not promoted" not in needs(line)
    serving = output(line, "status")["serving"]
    assert (serving["version"], serving["decision"]["who"]) == (2, "A. Person")
    assert "git does not hold ledger.jsonl as it is here -> git add ledger.jsonl" in needs(line)

    output(line, "rollback", "--to", "1", *BY)
    assert output(line, "status")["candidate"] is None  # a person decided against it
    output(line, "rollback", "--to", "2", *BY)

    before = output(line, "status")["labelled"]  # other tests labelled files in what this one copied
    output(line, "annotate", str(line.root / FILE), "-o", str(line.root / "labelled.h5ad"))
    output(line, "annotate", str(line.root / FILE), "-o", str(line.root / "again.h5ad"))
    labelled = output(line, "status")["labelled"]  # a file that was labelled twice counts once
    assert (labelled["files"], labelled["cells"]) == (before["files"] + 1, before["cells"] + 100)
    assert labelled["newest"][-1]["file"] == "second.h5ad"

    failed = {"entry": 6, "hook": "false", "outcome": "failed", "detail": "exit code 1"}
    append_line(line.root / "hooks.jsonl", canonical_json(failed))
    assert "the hook false was not told of entry 6: exit code 1" in needs(line)
    append_line(line.root / "hooks.jsonl", canonical_json(failed | {"outcome": "done"}))
    assert "the hook" not in needs(line)

    line.edit(lambda document: document["stages"]["second"].update(branch=2))
    assert "params.yaml asks for what is not learned: second -> canal run" in needs(line)
    ledger = line.root / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(b"<<<<<<< ours\n" + whole)
    assert "git left a merge of ledger.jsonl unsettled -> canal ledger merge" in needs(line)
    ledger.write_bytes(whole)
    (line.root / "mlflow.db").unlink()
    assert "is gone" in needs(line)
    assert "canal registry rebuild" in needs(line)


def checks(line: Line) -> dict[str, str]:
    """Return each check of `canal doctor` with its state."""
    return {one["name"]: one["state"] for one in output(line, "doctor")}


def test_status_asks_for_a_key_where_entries_have_to_be_signed(line, monkeypatch):
    monkeypatch.delenv("CANAL_SIGN", raising=False)
    line.edit(lambda document: document.setdefault("registry", {}).update(keyring="keyring.txt"))
    assert "the keyring keyring.txt of params.yaml is missing -> canal keys add" in needs(line)
    (line.root / "keyring.txt").write_text("")
    assert "have to be signed by a key of keyring.txt -> export CANAL_SIGN=FILE" in needs(line)
    monkeypatch.setenv("CANAL_SIGN", "key.pem")
    assert "have to be signed" not in needs(line)


def test_doctor_finds_what_is_broken_and_changes_nothing(line):
    let_serve(line, "1")
    assert "broken" not in checks(line).values()
    database, params = line.root / "mlflow.db", line.root / "params.yaml"
    database.rename(line.root / "kept.db")
    assert checks(line)["registry"] == "broken"
    assert not database.exists()
    database.write_bytes(b"no database" * 100)
    assert checks(line)["registry"] == "broken"
    assert database.read_bytes() == b"no database" * 100
    (line.root / "kept.db").replace(database)

    let = (line.root / "ledger.jsonl").read_bytes()
    (line.root / "ledger.jsonl").write_bytes(b"".join(let.splitlines(keepends=True)[:-1]))
    assert checks(line)["aliases"] == "broken"
    (line.root / "ledger.jsonl").write_bytes(let)

    moved = line.root / "models" / "second"
    shutil.rmtree(moved)
    assert checks(line)["DVC"] == "look"  # the cache has it
    (line.root / "store").mkdir()
    (line.root / ".dvc" / "cache" / "files").rename(line.root / "store" / "files")
    assert checks(line)["DVC"] == "broken"
    with (line.root / ".dvc" / "config").open("a") as config:
        config.write("[core]\n    remote = store\n['remote \"store\"']\n    url = ../store\n")
    assert checks(line)["DVC"] == "look"  # the remote has it
    (line.root / "store" / "files").rename(line.root / "store" / "gone")
    assert checks(line)["DVC"] == "broken"

    text = params.read_bytes()
    params.write_bytes(text + b"\nstages: [")
    found = checks(line)
    assert (found["params.yaml"], found["registry"], found["Python"]) == ("broken", "look", "ok")
    done = CliRunner().invoke(app, ["doctor", "--root", str(line.root)])
    assert done.exit_code == 1
    assert "canal: broken: " in done.stderr
    assert params.read_bytes() == text + b"\nstages: ["


def test_outside_projects_status_and_doctor_say_where_to_begin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["status", "--json"])
    document = json.loads(done.stdout)
    assert (done.exit_code, document["project"], complaints("status", document)) == (0, None, [])
    commands = " ".join(one["command"] for one in document["needs"])
    for command in ("canal init", "canal models", "canal annotate IN -o OUT --model"):
        assert command in commands
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "is in no project" in done.stdout
    assert list(Path(tmp_path).iterdir()) == []


def test_a_foreign_project_of_dvc_is_not_taken_for_one_of_canal(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    inner = tmp_path / "notebooks"
    inner.mkdir()
    monkeypatch.chdir(inner)
    done = CliRunner().invoke(app, ["status", "--json"])
    assert (json.loads(done.stdout)["project"], done.stderr) == (None, "")
    (tmp_path / "canal.json").write_text("{}")  # of canal, and damaged
    done = CliRunner().invoke(app, ["versions"])
    assert f"project: {tmp_path}" in done.stderr
    assert "params.yaml" in str(done.exception)


def test_the_home_folder_is_the_last_that_is_looked_at(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "home"):
        folder.mkdir(exist_ok=True)
        for name, text in (("params.yaml", "{}"), ("dvc.yaml", ""), ("canal.json", "{}")):
            (folder / name).write_text(text)
    inner = tmp_path / "home" / "cells"
    inner.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(inner)
    assert "project: " in CliRunner().invoke(app, ["versions"]).stderr
    (tmp_path / "home" / "canal.json").unlink()
    assert "project: " not in CliRunner().invoke(app, ["versions"]).stderr
