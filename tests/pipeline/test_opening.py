"""A model that cannot be opened, or does not answer, is named: of every method, by each of its files."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from canal.core.digests import file_digest
from canal.core.errors import AuditError
from canal.registry.audit import opening
from canal.registry.audit.opening import Opening, complaints
from canal.registry.audit.version_files import AuditLog
from canal.registry.manifest.version_folder import key_digest, read_key
from canal.registry.provenance.registered import RegisteredVersion
from canal.registry.transfer.exchange import export_bundle, import_bundle
from tests.faults.bundles import every_kind, read_bundle, write_agreeing
from tests.pipeline.conftest import Line, copied
from tests.support.methods import learned_by

pytestmark = pytest.mark.pipeline
METHODS = ("exact", pytest.param("combined", marks=pytest.mark.chaos))


@pytest.fixture(scope="module", params=METHODS)
def newest(request, tmp_path_factory):
    """Give a copy of the folder of the newest version of a method."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    line = learned_by(request.param, tmp_path_factory)
    store = line.project().store
    folder = tmp_path_factory.mktemp("opening") / "version"
    shutil.copytree(store.artifacts(store.version("3")), folder)
    return folder


def opened(folder):
    """Return what an audit says of a folder whose key.json agrees with its files."""
    key = read_key(folder)
    key["files"] = {name: file_digest(folder / name) for name in key["files"] if (folder / name).is_file()}
    member = RegisteredVersion("version 3", folder, key, key_digest(folder), None)
    log = AuditLog()
    Opening([member]).start().report(log)
    return [str(one) for one in log.findings]


def test_every_change_of_every_file_is_named(newest):
    """In this process: a child for each of hundreds would take minutes."""
    key = read_key(newest)
    method, sums = key["request"]["continual"]["method"], sorted(key["sums"])
    about = {"kind": "annotator", "method": method, "sums": sums, "cells": True}
    assert complaints(newest, about) == []
    places = ("model", "teacher", "sums")
    files = {
        f"version/{path.relative_to(newest).as_posix()}": path.read_bytes()
        for place in places
        for path in sorted((newest / place).rglob("*"))
        if path.is_file() and path.name != "ontology.json"
    }
    unnamed, tried = [], 0
    for one in every_kind(files, "0"):
        path = newest / one.name.removeprefix("version/")
        if one.what == "gone":
            path.unlink()
        else:
            path.write_bytes(one.files[one.name])
        tried += 1
        if not complaints(newest, about):
            unnamed.append((one.name, one.what))
        path.write_bytes(files[one.name])
    assert tried > 100
    assert unnamed == []


def test_a_model_that_wants_more_than_it_may_take_ends_its_own_process_only(learned, tmp_path, monkeypatch):
    """Of a network of a million blocks nothing can be read, however long somebody waits."""
    monkeypatch.setattr(opening, "_SECONDS", 3)
    line = copied(learned[0], tmp_path / "project")
    store = line.project().store
    folder = store.artifacts(store.version("2"))
    assert opened(folder) == []
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    for field, value in (("depth", 10**6), ("dim", 2**40)):
        shape = {**config["backbone"], field: value}
        path.write_text(json.dumps({**config, "backbone": shape}))
        said = opened(folder)
        assert len(said) == 1
        assert said[0].startswith("version 3: its model cannot answer: ")


def test_a_bundle_whose_digests_fit_is_refused_by_its_model_and_by_what_it_lacks(learned, tmp_path):
    line = copied(learned[0], tmp_path / "project")
    store = line.project().store
    export_bundle(store, "2", tmp_path / "whole.zip")
    about, files = read_bundle(tmp_path / "whole.zip")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(line.root / "params.yaml", other / "params.yaml")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    every = {(one.name, one.what): one.files for one in every_kind(files, "0")}
    splits = [name for name, what in every if name.endswith("split/cells.csv") and what == "gone"]
    cases = {
        ("version/model/weights.safetensors", "not a number"): "holds values that are not finite",
        ("version/model/labels.json", "one less"): "its model cannot answer: ",
        **{(name, "gone"): "split/cells.csv did not come along" for name in splits},
    }
    assert len(cases) == 3
    for case, named in cases.items():
        write_agreeing(tmp_path / "changed.zip", about, every[case])
        store = Line(other).project().store
        with pytest.raises(AuditError, match=named):
            import_bundle(store, tmp_path / "changed.zip")
        assert not (other / "mlflow.db").exists()
        assert not (other / "ledger.jsonl").exists()
