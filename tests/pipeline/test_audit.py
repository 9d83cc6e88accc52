"""Audit of a learned project: silent about a sound one, and precise about every fault."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.registry.audit.earlier_audits import EarlierAudits
from canal.registry.audit.full_audit import audit
from canal.registry.audit.version_files import AuditLog
from canal.registry.ledger.ledger import Draft
from canal.registry.promotion.moves import ledger_of
from tests.pipeline.conftest import Line, move_database
from tests.support.registered import OVERRIDDEN, promoted

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def shared(learned, tmp_path_factory):
    """Give one copy of the learned project; every test puts back what it changes."""
    original, _ = learned
    copy = Line(tmp_path_factory.mktemp("audit") / "project")
    shutil.copytree(original.root, copy.root, symlinks=True)
    move_database(copy.root, original.root)
    return copy


@pytest.fixture
def project(shared):
    return shared.project()


@pytest.fixture
def newest(project):
    return project.store.version("candidate")


def found(project, versions=None):
    """Return what an audit finds, as people read it."""
    return [str(one) for one in audit(project.store, project.layout, project.config, versions).findings]


@contextmanager
def changed(path, content):
    """Let a file hold other bytes (None: be away) for a while."""
    before = path.read_bytes()
    try:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)


def flipped(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] if content else b"x"


def test_a_sound_project_has_no_findings_and_says_what_was_looked_at(project):
    report = audit(project.store, project.layout, project.config)
    assert (report.findings, report.notes) == ((), ())
    assert report.versions == ("canal-backbone 1", "version 1", "version 2")
    assert report.counts["versions"] == 3
    assert report.counts["ledger entries"] == 3
    assert report.counts["files"] > 100


def test_the_command_imports_neither_mlflow_nor_torch(shared):
    code = (
        "import sys\nfrom canal.cli import app\nsys.argv = ['canal', 'audit', '--json']\n"
        "try: app()\nexcept SystemExit as end: print(end.code, file=sys.stderr)\n"
        "print(sorted({'mlflow', 'torch', 'dvc'} & set(sys.modules)), file=sys.stderr)"
    )
    said = shared.run(sys.executable, "-c", code)
    assert said.endswith("0\n[]\n")
    assert json.loads(said[: said.rindex("}") + 1])["passed"] is True


@pytest.mark.chaos
def test_a_flipped_byte_in_any_file_names_that_file_and_no_other(project, newest, unopened):
    folder = project.store.artifacts(newest)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert {"key.json", "record.json", "MLmodel", "teacher/weights.safetensors"} <= set(names)
    code = {Path(name).parent: name for name in names if name.startswith("code/")}  # alike in each room
    for name in (*(name for name in names if not name.startswith("code/")), *code.values()):
        with changed(folder / name, flipped((folder / name).read_bytes())):
            said = found(project, [newest])
        assert said, name
        assert all(one.startswith((f"version 2: {name} has", f"version 2: {name}:")) for one in said), said
    assert found(project) == []


def test_a_flipped_byte_in_an_ancestor_is_the_ancestors_fault(project, newest):
    for version in (project.store.version("1"), project.store.versions("canal-backbone")[0]):
        folder = project.store.artifacts(version)
        subject = "version 1" if version.model == newest.model else "canal-backbone 1"
        for name in ("key.json", "model/weights.safetensors"):
            with changed(folder / name, flipped((folder / name).read_bytes())):
                said = found(project, [newest])
            assert said
            assert all(one.startswith(f"{subject}: {name} has") for one in said), said


def resumed(project):
    return audit(project.store, project.layout, project.config, depth="changed")


def test_an_audit_that_resumes_reads_what_changed_and_names_the_rest(project, newest):
    """A byte that was flipped is found whatever is done to the time of its file."""
    notes = project.layout.private / "audited.json"
    notes.unlink(missing_ok=True)
    assert resumed(project).counts["versions not read again"] == 0
    again = resumed(project)
    assert (again.findings, again.versions) == ((), ())
    assert again.counts["versions not read again"] == 3
    (told,) = [str(one) for one in again.notes if one.check == "resume"]
    assert "versions 1-2 and canal-backbone 1 were not read again" in told
    path = project.store.local_artifacts(newest) / "model" / "labels.json"
    seen, content = path.stat(), path.read_bytes()
    path.write_bytes(flipped(content))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    try:
        for _ in range(2):  # a version with a finding is read each time
            report = resumed(project)
            assert report.versions == ("version 2",)
            assert any("model/labels.json" in str(one) for one in report.findings)
    finally:
        path.write_bytes(content)
    assert resumed(project).versions == ("version 2",)
    assert found(project, [newest]) == []  # an audit of one version leaves what is noted of others
    assert resumed(project).versions == ()


def test_a_version_whose_ancestors_do_not_hold_is_read_again(project, newest):
    for subject, read_again in (("version 2, ancestor 0123456789ab", [newest]), ("version 22", [])):
        log = AuditLog()
        log.finding(subject, "files", "something")
        EarlierAudits(project.store, project.layout, [newest]).keep([newest], log)
        again = EarlierAudits(project.store, project.layout, [newest])
        assert [one for one in [newest] if one not in again.unchanged([newest])] == read_again


@pytest.mark.parametrize("notes", ["", "{}", '{"format": 1, "versions": 3}', "[" * 9999])
def test_notes_that_cannot_be_read_or_are_of_other_parameters_count_for_nothing(project, notes):
    path = project.layout.private / "audited.json"
    path.write_text(notes)
    assert len(resumed(project).versions) == 3
    assert resumed(project).versions == ()
    with changed(project.layout.params, project.layout.params.read_bytes() + b"\n"):
        assert len(resumed(project).versions) == 3


def test_an_audit_that_resumes_is_of_all_versions(shared):
    for words in (["2", "--resume"], ["--resume", "--recompute"]):
        refused = CliRunner().invoke(app, ["audit", *words, "--root", str(shared.root)])
        assert refused.exit_code == 2
        assert "--resume is an audit of every version" in refused.output


def test_files_cut_lost_added_and_swapped_are_found(project, newest):
    folder, other = project.store.artifacts(newest), project.store.artifacts(project.store.version("1"))
    weights = folder / "model" / "weights.safetensors"
    with changed(weights, weights.read_bytes()[:-100]):
        assert found(project, [newest])[0].startswith("version 2: model/weights.safetensors has sha256")
    for name in ("model/labels.json", "figures/recall.png", "key.json", "record.json"):
        with changed(folder / name, None):
            assert f"version 2: {name}: missing" in found(project, [newest])[0]
    extra = folder / "model" / "extra.pkl"
    extra.write_bytes(b"x")
    assert found(project, [newest]) == [
        "version 2: model/extra.pkl lies there, but neither key.json nor record.json knows it"
    ]
    extra.unlink()
    one, two = (place / "model" / "weights.safetensors" for place in (folder, other))
    ours, theirs = one.read_bytes(), two.read_bytes()
    with changed(one, theirs), changed(two, ours):
        said = found(project)
    assert [line.split(" has ")[0] for line in said] == [
        "version 1: model/weights.safetensors",
        "version 2: model/weights.safetensors",
    ]
    folder.rename(folder.with_name("aside"))
    other.rename(folder)
    folder.with_name("aside").rename(other)
    said = found(project)
    folder.rename(folder.with_name("aside"))
    other.rename(folder)
    folder.with_name("aside").rename(other)
    assert [line.split(" has ")[0] for line in said] == ["version 1: key.json", "version 2: key.json"]


def test_a_changed_ledger_is_found_line_by_line(project):
    path = project.layout.ledger
    lines = path.read_text().splitlines(keepends=True)
    with changed(path, "".join(lines).replace('"version":2', '"version":7').encode()):
        said = found(project)
        assert any(one.startswith("ledger: ledger.jsonl, line 3: content has hash") for one in said)
        assert (
            "ledger: ledger.jsonl, line 3: the committed ledger (git show HEAD:ledger.jsonl) differs" in said
        )
    with changed(path, "".join([lines[0], lines[2]]).encode()):
        said = found(project)
        assert "ledger: ledger.jsonl, line 2: entry number 3, expected 2" in said
        assert any(
            one.startswith("version 1: it is registered, but has no entry in the ledger") for one in said
        )
    with changed(path, "".join([lines[1], lines[0], lines[2]]).encode()):
        assert "ledger: ledger.jsonl, line 1: entry number 2, expected 1" in found(project)
    with changed(path, "".join(lines[:2]).encode()):
        assert (
            "ledger: ledger.jsonl, line 3: the committed ledger (git show HEAD:ledger.jsonl) differs"
            in found(project)
        )
    with changed(path, None):
        gone = "ledger: ledger.jsonl is gone or empty: `git checkout HEAD -- ledger.jsonl` brings it back"
        assert gone in found(project)
    assert found(project) == []


def test_a_changed_file_of_the_project_is_named_and_a_lost_one_noted(project):
    for name in ("data/first/cells.h5ad", "prepared/first/cells.h5ad", "splits/second.csv", "panel.json"):
        path = project.layout.root / name
        with changed(path, flipped(path.read_bytes())):
            said = found(project)
        assert said
        assert all(name in one for one in said), said
    aside = project.layout.root / "aside"
    (project.layout.root / "prepared").rename(aside)
    report = audit(project.store, project.layout, project.config)
    aside.rename(project.layout.root / "prepared")
    assert report.findings == ()
    assert "not in this folder, not compared with dvc.lock: prepared/first" in str(report.notes[-1])


def test_what_is_moved_behind_the_ledgers_back_is_found(project, newest):
    client, model = project.store.client, newest.model
    client.set_registered_model_alias(model, "champion", "1")
    client.set_registered_model_alias(model, "candidate", "1")
    client.set_model_version_tag(model, "1", "canal.retired", "true")
    client.set_model_version_tag(model, "2", "canal.key", "0" * 64)
    client.set_model_version_tag(model, "1", "canal.stage", "other")
    said = found(project)
    client.delete_registered_model_alias(model, "champion")
    client.set_registered_model_alias(model, "candidate", "2")
    client.delete_model_version_tag(model, "1", "canal.retired")
    client.set_model_version_tag(model, "2", "canal.key", newest.key)
    client.set_model_version_tag(model, "1", "canal.stage", "first")
    behind = "by the ledger: it was moved without an entry"
    assert f"aliases: champion points to version 1 in MLflow, to nothing {behind}" in said
    assert f"aliases: candidate points to version 1 in MLflow, to version 2 {behind}" in said
    assert "version 1: MLflow says it is retired, the ledger does not" in said
    assert any(
        one.startswith("version 2: key.json has sha256") and "the tag says 0000" in one for one in said
    )
    assert "version 1: the tag canal.stage says 'other', key.json and record.json say 'first'" in said
    assert found(project) == []


def test_an_interrupted_move_is_finished_before_anything_is_judged(line):
    project = line.project()
    store, version = project.store, project.store.version("1")
    moved, details = {"champion": 1}, promoted(1, rulings=OVERRIDDEN)
    draft = Draft("promote", version.model, 1, version.key, version.record, "A", "w", moved, details)
    project.layout.pending.write_text(ledger_of(store).next(draft).line)
    assert found(project) == []
    assert store.version("champion").number == 1
    store.client.delete_model_version(version.model, "2")
    assert "version 2: the ledger has it (entry 3, register), the registry has not" in found(project)
