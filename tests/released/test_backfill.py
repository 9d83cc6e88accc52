"""`canal sums backfill` on what a released revision left: sums beside the network as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import canal.app.backfilling
import canal.app.pipeline
from canal.app.auditing import audit_project
from canal.app.backfilling import backfill
from canal.app.project import Project
from canal.core.digests import file_digest, tree_digests
from canal.core.errors import HistoryError, TrainingError
from canal.core.files import read_json
from canal.registry.manifest.stage_request import request_digest
from canal.registry.manifest.version_folder import schema
from canal.registry.versions.history import learned_request
from tests.pipeline.conftest import COPIED, Line
from tests.released.learn import Nothing
from tests.released.test_released import HERE, answer, step, unpack
from tests.support.cells import make_adata, write_adata
from tests.support.methods import without_pictures
from tests.support.warm import REPOSITORY

NETWORK = ("model/weights.safetensors", "model/config.json", "model/labels.json", "model/genes.json")
WHOLE = ("models", "metrics", "dvc.lock", "params.yaml", "ledger.jsonl")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Return the project of b42cc87, which no test changes."""
    return unpack(HERE / "b42cc87" / "project.tar.xz", tmp_path_factory.mktemp("released") / "project")


@pytest.fixture
def line(released, tmp_path) -> Line:
    """Return a copy of the project."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    shutil.copytree(released, tmp_path / "project")
    return Line(tmp_path / "project")


@pytest.fixture(scope="module")
def filled(released, tmp_path_factory) -> Line:
    """Return a project whose last stage has been backfilled, which no test changes."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    root = tmp_path_factory.mktemp("filled") / "project"
    shutil.copytree(released, root)
    backfill(Project.open(root), "third", lambda line: None)
    return Line(root)


@pytest.fixture
def backfilled(filled, tmp_path) -> Line:
    """Return a copy of that project."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    shutil.copytree(filled.root, tmp_path / "project")
    return Line(tmp_path / "project")


def state(line: Line) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of what a backfill changes, and the versions' keys."""
    files = {name: one for name, one in tree_digests(line.root).items() if name.split("/")[0] in WHOLE}
    return files, line.keys()


def test_a_version_gains_sums_and_keeps_network_and_request(line):
    for name in COPIED:
        if not (line.root / name).is_file() and name != "data.dvc":
            shutil.copyfile(REPOSITORY / name, line.root / name)
    for name in ("src", "pipelines"):
        (line.root / name).symlink_to(REPOSITORY / name)
    line.run("git", "init", "--quiet")
    line.run("dvc", "init", "--quiet")
    old = line.project().learned("third")
    said = line.canal("sums", "backfill", "third", "--dry-run")
    assert said.count("its training cells would be summed") == 3
    assert line.project().learned("third") == old
    made = answer(line, "sums", "backfill", "third")
    assert made == {
        "stage": "third", "before": 3, "after": 4, "gone": [], "lacking": [],
        "sums": {"first": 47, "second": 34, "third": 24},
    }  # fmt: skip
    project = line.project()
    new = project.learned("third")
    assert (new.number, new.request) == (4, old.request)
    assert learned_request(project.store, new) == request_digest(project.config, "third")
    before, after = (project.store.artifacts(one) for one in (old, new))
    assert all(file_digest(before / name) == file_digest(after / name) for name in NETWORK)
    key = read_json(after / "key.json")
    jsonschema.validate(key, schema("key"))
    parent = read_json(before / "key.json")["parent"]
    assert (key["format"], key["backfilled"], key["parent"]) == (2, old.key, parent)
    assert key["memory"] == project.config.memory.numbers()
    assert key["basis"]["seen"] == {"first": file_digest(line.root / "splits" / "first.csv")}
    assert set(key["sums"]) == {"first", "second", "third"}
    assert file_digest(line.root / "models" / "third" / "key.json") == new.key
    report = answer(line, "audit", "--recompute")
    assert report["findings"] == []
    notes = [one["what"] for one in report["notes"] if one["subject"] == "version 4"]
    assert sum("recomputed from" in one for one in notes) == 3
    assert f"sums were added to the version with key {old.key[:12]}" in line.canal("show", "4")
    unchanged = state(line)
    with pytest.raises(HistoryError, match=r"version 4 \(third\) already has sums of first, second, third"):
        backfill(project, "third", lambda line: None)
    assert state(line) == unchanged


def test_sums_begin_where_cells_are_and_what_they_lack_is_named(line):
    shutil.rmtree(line.root / "prepared" / "first")
    line.edit(lambda document: document["sources"]["first"].update(available=False))
    said = line.canal("sums", "backfill", "third")
    assert "no sums of first: the cells are gone" in said
    assert "types that only the network knows: NK" in said
    assert answer(line, "show", "4")["method"]["lacking"] == ["NK"]
    found = audit_project(line.project(), depth="recomputed").findings
    assert {one.check for one in found} <= {"dvc"}  # this project has no DVC
    shown = line.canal("show", "4")
    assert "NK: only the network knows" in shown


def test_a_stage_whose_own_cells_are_gone_is_refused_and_nothing_is_changed(line):
    (line.root / "prepared" / "third" / "cells.h5ad").unlink()
    before = state(line)
    with pytest.raises(HistoryError, match="the cells of third are gone"):
        backfill(line.project(), "third", lambda line: None)
    with pytest.raises(HistoryError, match="no stage 'fourth'"):
        backfill(line.project(), "fourth", lambda line: None)
    assert state(line) == before


def test_a_kill_leaves_the_project_as_it_was_or_is_completed(line, monkeypatch):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = state(line)
    with monkeypatch.context() as patch:
        patch.setattr("canal.app.backfilling.evaluate_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            backfill(line.project(), "third", lambda line: None)
    assert state(line) == before
    with monkeypatch.context() as patch:
        patch.setattr(canal.app.backfilling, "_install", killed)
        with pytest.raises(KeyboardInterrupt):
            backfill(line.project(), "third", lambda line: None)
    files, keys = state(line)
    assert set(keys) == {"1", "2", "3", "4"}
    moved = {name for name in files if name != "ledger.jsonl"}
    assert {name: files[name] for name in moved} == {name: before[0][name] for name in moved}
    made = backfill(line.project(), "third", lambda line: None)
    assert (made.before, made.after) == (3, 4)
    assert file_digest(line.root / "models" / "third" / "key.json") == keys["4"] == line.keys()["4"]
    with pytest.raises(HistoryError, match="already has sums"):
        backfill(line.project(), "third", lambda line: None)


def learn_fourth(line: Line, method: str, monkeypatch) -> list[str]:
    """Add a stage that is learned by a method, run the pipeline in this process; return what began anew."""
    raw = write_adata(make_adata({"B": 16, "Plasma": 24}, 48, seed=4), line.root / "raw" / "fourth.h5ad")
    form = ("--values", "counts", "--batch", "batch", "--min-genes", "1", "--fixed")
    line.canal("stage", "add", "fourth", "--file", str(raw), *form)
    continual = {"method": method, "max_epochs": 1}
    line.edit(lambda document: document["stages"]["fourth"].update(continual=continual))
    learned = []

    def learn(project: Project, entry_point: str, stage: str, how: Callable[[Project, Any], None]) -> None:
        learned.append(f"{entry_point} {stage}")
        how(project, Nothing())

    monkeypatch.setattr(canal.app.pipeline, "project_step", learn)
    without_pictures(monkeypatch)
    step(line, monkeypatch, "ingest")
    (line.root / "incoming" / "fourth").rename(line.root / "data" / "fourth")
    step(line, monkeypatch, "prepare", "--source", "fourth")
    for script in ("split", "panel", "pretrain"):
        step(line, monkeypatch, script)
    for script in ("validate", "labels"):
        step(line, monkeypatch, script, "--stage", "fourth")
    for stage in line.project().config.stages:
        for script in ("finetune", "evaluate"):
            step(line, monkeypatch, script, "--stage", stage)
    line.canal("registry", "sync")
    return learned


@pytest.mark.parametrize("method", [pytest.param("combined", marks=pytest.mark.chaos), "exact"])
def test_the_next_stage_is_learned_on_the_version_with_sums(backfilled, method, monkeypatch):
    line = backfilled
    assert learn_fourth(line, method, monkeypatch) == ["finetune fourth", "evaluate fourth"]
    key = read_json(line.root / "models" / "fourth" / "key.json")
    assert key["parent"] == line.keys()["4"]
    assert set(key["sums"]) == {"first", "second", "third", "fourth"}
    found = audit_project(line.project(), depth="recomputed").findings
    assert {one.check for one in found} <= {"dvc"}  # its steps ran without DVC
    assert set(answer(line, "show", "5")["method"]["sums"]) == set(key["sums"])


@pytest.mark.chaos
def test_without_a_backfill_sums_begin_with_the_stage(line, monkeypatch):
    learn_fourth(line, "combined", monkeypatch)
    key = read_json(line.root / "models" / "fourth" / "key.json")
    assert set(key["sums"]) == {"fourth"}
    assert key["parent"] == line.keys()["3"]
    assert answer(line, "show", "4")["method"]["lacking"] == ["NK", "T", "Mono", "DC"]
    found = audit_project(line.project(), depth="recomputed").findings
    assert {one.check for one in found} <= {"dvc"}  # its steps ran without DVC


def test_sums_alone_do_not_go_on_from_a_version_without_sums(line):
    from canal.app.tasks import sums_task

    line.edit(lambda document: document["stages"]["third"].update(continual={"method": "exact"}))
    with pytest.raises(TrainingError, match="`canal sums backfill second`"):
        sums_task(line.project(), "third")
