"""What a released revision left is read, proven and gone on with today; nothing is learned again."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import jsonschema
import pytest

import canal.app.pipeline
from canal.app.auditing import audit_project
from canal.app.planning import plan
from canal.app.project import Project
from canal.config.yaml_file import load_config
from canal.core.digests import file_digest, json_digest, tree_digests
from canal.core.files import read_json
from canal.registry.manifest.stage_request import learning_part
from canal.registry.manifest.version_folder import schema
from tests.pipeline.conftest import Line
from tests.released.learn import Nothing
from tests.support.cells import make_adata, write_adata
from tests.support.recorded import recorded_form
from tests.support.registered import EMPTY, keep_empty, open_store
from tests.support.warm import REPOSITORY, warmly

HERE = Path(__file__).parent
REVISIONS = sorted(path.parent.name for path in HERE.glob("*/golden.json"))
STAGES = ("first", "second", "third")
MADE = ("splits", "panel.json", "verdicts", "tuned", "models", "metrics")
"""What the pipeline makes of prepared cells."""

with_empty = pytest.mark.xdist_group("released")  # what its tests share is made once


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack what `tests.released.make` packed, and return the folder."""
    shutil.unpack_archive(archive, folder, "xztar")  # Python 3.11.2, Debian's, knows no filter of members
    return folder


@pytest.fixture(scope="module", params=REVISIONS)
def released(request, tmp_path_factory) -> Path:
    """Return the unpacked project of a released revision; a test that changes it works on a copy.

    Its repository of git was left out of the archive: dvc.lock is committed again.
    """
    root = unpack(HERE / request.param / "project.tar.xz", tmp_path_factory.mktemp("released") / "project")
    person = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "--quiet"), ("add", "dvc.lock"), (*person, "commit", "--quiet", "-m", "lock")):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture
def golden(released, request) -> dict[str, Any]:
    """Return what the revision's own code said of its project."""
    return read_json(HERE / request.node.callspec.params["released"] / "golden.json")


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """Return MLflow's database of a project without versions, which takes MLflow seconds to make."""
    root = tmp_path_factory.mktemp("empty")
    keep_empty(open_store(root))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return root / EMPTY


@pytest.fixture
def line(released, tmp_path) -> Line:
    """Return a copy of the project."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    shutil.copytree(released, tmp_path / "project")
    return Line(tmp_path / "project")


def step(line: Line, monkeypatch, script: str, *arguments: str) -> None:
    """Run a script of today's pipeline in the project and in this process."""
    monkeypatch.chdir(line.root)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    runpy.run_path(str(REPOSITORY / "pipelines" / f"{script}.py"), run_name="__main__")


def never(_: Project, entry_point: str, stage: str, *rest: object) -> None:
    """Stand for a step that learns, where nothing may be learned."""
    raise AssertionError(f"{entry_point} of {stage} began anew")


def bytes_of(line: Line) -> dict[str, str]:
    """Return the digests of all that the pipeline makes of prepared cells."""
    return {
        name: digest for name, digest in tree_digests(line.root).items() if name.partition("/")[0] in MADE
    }


def answer(line: Line, *arguments: str) -> Any:
    """Return what a command says as JSON, below the lines that tell what it does."""
    lines = line.canal(*arguments, "--json").splitlines()
    start = next(place for place, text in enumerate(lines) if text.startswith(("{", "[")))
    return json.loads("\n".join(lines[start:]))


def numbered(golden: dict[str, Any]) -> dict[str, str]:
    """Return the keys of the revision's versions by number."""
    return {str(number): golden["keys"][stage] for number, stage in enumerate(STAGES, start=1)}


def test_requests_are_what_they_were(released, golden):
    """But for what only measures, which requests of then hold: `recorded_form`."""
    config = load_config(released / "params.yaml")
    found = {stage: json_digest(recorded_form(config, stage)) for stage in golden["requests"]}
    assert found == golden["requests"]
    shipped = load_config(HERE / golden["revision"] / "params.yaml")
    found = {stage: json_digest(recorded_form(shipped, stage)) for stage in golden["shipped"]}
    assert found == golden["shipped"]


def test_every_stage_counts_as_learned(released, golden):
    project = Project.open(released)
    found = {stage: project.learned(stage) for stage in golden["keys"]}
    assert {stage: version and version.key for stage, version in found.items()} == golden["keys"]
    weights = {stage: project.store.artifacts(one) / "model" for stage, one in found.items()}
    digests = {stage: file_digest(path / "weights.safetensors") for stage, path in weights.items()}
    assert digests == golden["weights"]


def test_keys_and_records_fit_the_published_schemas(released, golden):
    project = Project.open(released)
    for stage in golden["keys"]:
        folder = project.store.artifacts(project.learned(stage))
        for name in ("key", "record"):
            jsonschema.validate(read_json(folder / f"{name}.json"), schema(name))


def test_what_was_learned_is_restored_byte_for_byte(line, monkeypatch):
    before, project = bytes_of(line), line.project()
    for name in MADE:
        path = line.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setattr(canal.app.pipeline, "project_step", never)
    for script in ("split", "panel", "pretrain"):
        step(line, monkeypatch, script)
    for stage in project.config.stages:
        if project.config.study(stage) is not None:
            step(line, monkeypatch, "tune", "--stage", stage)
        for script in ("validate", "labels", "finetune", "evaluate"):
            step(line, monkeypatch, script, "--stage", stage)
    assert bytes_of(line) == before


def test_other_types_are_held_out_without_anything_being_learned(line, golden, monkeypatch):
    """The requests of then name the types: they are asked for all the same, and measured again."""
    monkeypatch.setattr(canal.app.pipeline, "project_step", never)
    before = bytes_of(line)
    line.edit(lambda document: document["novelty"].update(holdouts=["NK", "T"]))
    assert {stage: one.key for stage in STAGES if (one := line.project().learned(stage))} == {
        stage: golden["keys"][stage] for stage in STAGES
    }
    for stage in STAGES:
        for script in ("finetune", "evaluate"):
            step(line, monkeypatch, script, "--stage", stage)
    changed = {name for name, digest in bytes_of(line).items() if before.get(name) != digest}
    assert changed == {f"metrics/{stage}/evaluation.json" for stage in STAGES}
    line.canal("registry", "sync")
    shown = answer(line, "show", "3")["evaluation"]["novelty"]
    assert {one["type"] for one in shown["holdouts"]} | {*shown["not_measured"]} == {"NK", "T"}
    findings = audit_project(line.project()).findings
    assert {one.check for one in findings} == {"dvc"}  # the steps ran without DVC: dvc.lock is of before
    assert [one["kind"] for one in answer(line, "ledger")][-3:] == ["measure"] * 3


def test_an_audit_finds_nothing_and_every_entry_is_signed(line):
    report = answer(line, "audit", "--require-signed", str(line.root / "keyring.txt"))
    assert (report["passed"], report["findings"]) == (True, [])
    assert report["versions"] == ["canal-backbone 1", "version 1", "version 2", "version 3"]


def test_the_versions_are_shown_as_they_are(line, golden):
    versions = answer(line, "versions")
    assert [(one["version"], one["stage"]) for one in versions] == list(enumerate(STAGES, start=1))
    shown = answer(line, "show", "candidate")
    assert (shown["version"], shown["stage"], shown["parent"], shown["key"]) == (
        3, "third", 2, golden["keys"]["third"],
    )  # fmt: skip
    assert "third" in line.canal("show", "3")
    assert answer(line, "show", "champion")["version"] == 2
    graph = answer(line, "lineage", "3")
    assert [node["label"] for node in graph["nodes"] if node["kind"] in ("version", "backbone")] == [
        *(f"canal-annotator {number} ({STAGES[number - 1]})" for number in (3, 2, 1)),
        "canal-backbone 1",
    ]
    forward = answer(line, "lineage", "--data", "first")
    assert {one["version"] for one in forward["versions"]} == {1, 2, 3}
    difference = answer(line, "diff", "2", "3", str(line.root / "raw" / "query.h5ad"))
    assert (difference["before"]["key"], difference["after"]["key"]) == (
        golden["keys"]["second"], golden["keys"]["third"],
    )  # fmt: skip
    compared = answer(line, "compare", "3")
    assert (compared["candidate"], compared["champion"], compared["not_compared"]) == (3, 2, {})
    assert {stage: one["n"] for stage, one in compared["stages"].items()} == dict(
        zip(STAGES, (15, 11, 8), strict=True)
    )


def test_a_file_that_was_labelled_then_says_by_what(line, golden):
    said = answer(line, "who", str(line.root / "labelled.h5ad"))
    assert (said["genuine"], said["record"]["model"]["key"]) == (True, golden["keys"]["third"])


def test_the_last_version_labels_cells_as_it_did(line, golden, tmp_path):
    given, out = line.root / "raw" / "query.h5ad", tmp_path / "out.h5ad"
    line.canal("annotate", str(given), "-o", str(out), "--model", "3")
    obs = anndata.read_h5ad(out).obs
    assert dict(obs["canal_cell_type"].astype(str)) == {
        name: label for name, (label, _) in golden["labels"].items()
    }
    wanted = {name: confidence for name, (_, confidence) in golden["labels"].items()}
    assert dict(obs["canal_confidence"].astype(float)) == pytest.approx(wanted, abs=1e-3)
    said = answer(line, "who", str(out))
    assert (said["genuine"], said["record"]["model"]["key"]) == (True, golden["keys"]["third"])


def test_a_version_is_promoted_and_rolled_back(line):
    who = ("--by", "A. Person", "--why", "reviewed")
    line.canal("promote", "3", *who, "--too-few", "8 to 15 test cells are all there are")
    assert line.project().store.version("champion").number == 3
    line.canal("rollback", *who)
    assert line.project().store.version("champion").number == 2
    assert answer(line, "audit")["findings"] == []
    assert "rollback" in line.canal("ledger")


@with_empty
def test_its_bundle_is_known_at_home_and_taken_in_elsewhere(line, golden, empty, tmp_path):
    bundle = str(line.root / "version.zip")
    at_home = answer(line, "import", bundle)
    assert (at_home["version"], at_home["made"]) == (3, False)
    other = Line(tmp_path / "other")
    other.root.mkdir()
    shutil.copyfile(line.root / "params.yaml", other.root / "params.yaml")
    shutil.copyfile(empty, other.root / "mlflow.db")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    taken = answer(other, "import", bundle)
    assert (taken["version"], taken["stage"], taken["made"]) == (1, "third", True)
    assert other.keys() == {"1": golden["keys"]["third"]}
    assert answer(other, "audit")["findings"] == []
    onward = tmp_path / "onward.zip"
    other.canal("export", "1", "-o", str(onward))
    assert onward.is_file()


@with_empty
def test_a_lost_registry_is_made_again(line, golden, empty):
    shutil.copyfile(empty, line.root / "mlflow.db")
    shutil.rmtree(line.root / "mlartifacts")
    line.canal("registry", "rebuild", "--by", "A. Person", "--why", "the disk died")
    store = line.project().store
    assert line.keys() == numbered(golden)
    assert (store.version("champion").number, store.version("candidate").number) == (2, 3)
    assert answer(line, "audit")["findings"] == []


def test_a_stage_is_learned_on_top_of_what_was_learned_then(line, golden, monkeypatch):
    raw = write_adata(make_adata({"B": 16, "Plasma": 24}, 48, seed=4), line.root / "raw" / "fourth.h5ad")
    form = ("--values", "counts", "--batch", "batch", "--min-genes", "1", "--fixed")
    line.canal("stage", "add", "fourth", "--file", str(raw), *form)
    line.edit(lambda document: document["stages"]["fourth"].update(continual={"max_epochs": 1}))
    before, learned = bytes_of(line), []

    def learn(project: Project, entry_point: str, stage: str, how: Callable[[Project, Any], None]) -> None:
        learned.append(f"{entry_point} {stage}")
        how(project, Nothing())

    monkeypatch.setattr(canal.app.pipeline, "project_step", learn)
    step(line, monkeypatch, "ingest")
    (line.root / "incoming" / "fourth").rename(line.root / "data" / "fourth")
    step(line, monkeypatch, "prepare", "--source", "fourth")
    for script in ("split", "panel", "pretrain"):
        step(line, monkeypatch, script)
    for stage in line.project().config.stages:
        for script in ("validate", "labels", "finetune", "evaluate"):
            step(line, monkeypatch, script, "--stage", stage)
    assert learned == ["finetune fourth", "evaluate fourth"]
    after = bytes_of(line)
    assert {name: after.get(name) for name in before} == before
    assert "registered canal-annotator 4 (fourth)" in line.canal("registry", "sync")
    fourth = line.root / "models" / "fourth" / "key.json"
    assert line.keys() == numbered(golden) | {"4": file_digest(fourth)}
    assert read_json(fourth)["parent"] == golden["keys"]["third"]
    report = audit_project(line.project())
    assert report.versions[-1] == "version 4"
    assert {one.check for one in report.findings} == {"dvc"}  # its steps ran without DVC


def learned_by(code: Path, project: Path, into: Path) -> dict[str, Any]:
    """Return what `tests.released.learn` says of a lineage that ``code`` learned in a process of its own."""
    command = ["python", str(HERE / "learn.py"), str(code), str(project), str(into)]
    done = subprocess.run(
        command, env=warmly(code), capture_output=True, text=True, check=False, cwd=into.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_todays_code_learns_the_same_bits_as_the_released_code(released, golden, tmp_path):
    """Both on this machine and in this run: other processors add up in another order."""
    source = unpack(HERE / golden["revision"] / "source.tar.xz", tmp_path / "source")
    before = learned_by(source, released, tmp_path / "before")
    now = learned_by(REPOSITORY, released, tmp_path / "now")
    assert list(before["files"]) == list(golden["keys"])
    assert now["files"] == before["files"]
    above = None
    for stage, key in now["keys"].items():
        asked, recorded = key.pop("request"), before["keys"][stage].pop("request")
        assert learning_part(recorded, above) == asked
        above = key.pop("request_digest")
        del before["keys"][stage]["request_digest"]
    assert now["keys"] == before["keys"]


def test_an_upgraded_project_restores_all_and_learns_nothing(line, golden):
    """By the pipeline of the installed canal, in a folder without one."""
    before = bytes_of(line)
    said = line.canal("upgrade")
    assert "canal.json: new" in said
    assert "params.yaml: changed" in said
    assert line.project().config.tuned == ["second"]
    planned = plan(line.project())
    fates = {one.stage: (one.fate, one.version) for one in planned.stages}
    assert fates == {"backbone": ("restore", 1)} | {
        stage: ("restore", number) for number, stage in enumerate(STAGES, start=1)
    }
    assert not planned.refused
    # As `canal run` does, whose fork server the suite's warm Python stands in for.
    run = subprocess.run(
        ["dvc", "repro"], cwd=line.root, env=warmly(REPOSITORY), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    assert "Running stage 'finetune@third'" in run.stdout
    assert "nothing to do: every finished stage is registered" in line.canal("registry", "sync")
    assert line.keys() == numbered(golden)
    after = bytes_of(line)
    restored = {name for name in before if not name.startswith("tuned/")}
    assert {name: after.get(name) for name in restored} == {name: before[name] for name in restored}
    assert plan(line.project()).steps == {}
