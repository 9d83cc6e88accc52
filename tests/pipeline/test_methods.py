"""Every command on versions of sums alone and of network and sums together; each project is learned once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from canal.core.digests import tree_digests
from canal.core.files import read_json
from canal.memory.answer import ExactAnnotator
from canal.model.combined import CombinedAnnotator
from canal.model.load import load_model
from canal.registry.ledger.signing import new_key
from tests.pipeline.conftest import Line, copied
from tests.support.methods import empty_database, learned_by

METHODS = ("exact", "combined")
WHO = ("--by", "A. Person", "--why", "reviewed")


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> str:
    """Return the method of the tests' project."""
    return request.param


@pytest.fixture(scope="module")
def learned_so(method, tmp_path_factory) -> Line:
    """Return the project, which no test changes."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return learned_by(method, tmp_path_factory)


@pytest.fixture
def line(learned_so, tmp_path) -> Line:
    """Return a copy of the project."""
    return copied(learned_so, tmp_path / "project")


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """Return MLflow's database of a project without versions."""
    return empty_database(tmp_path_factory)


def answer(line: Line, *arguments: str) -> Any:
    """Return what a command says as JSON, below the lines that tell what it does."""
    lines = line.canal(*arguments, "--json").splitlines()
    start = next(place for place, text in enumerate(lines) if text.startswith(("{", "[")))
    return json.loads("\n".join(lines[start:]))


def test_versions_are_shown_with_what_answers(learned_so, method):
    rows = answer(learned_so, "versions")
    assert [row["stage"] for row in rows] == ["first", "second", "third"]
    shown = answer(learned_so, "show", "3")["method"]
    assert shown["name"] == method
    assert shown["lacking"] == ([] if method == "exact" else ["NK"])
    stages = {"first", "second", "third"} if method == "exact" else {"second", "third"}
    assert set(shown["sums"]) == stages
    said = learned_so.canal("show", "3")
    assert ("the sums alone" if method == "exact" else "weight 0.5") in said
    assert ("NK: only the network knows" in said.replace("\n", " ")) == (method == "combined")
    facts = answer(learned_so, "lineage", "3")["nodes"][0]["facts"]
    assert set(facts["sums of"].split(", ")) == stages
    assert learned_so.canal("lineage", "3", "--dot").startswith("digraph")
    learned_so.canal("lineage", "3")


def test_what_learned_from_a_cell_is_told_of_sums(learned_so, method):
    split = pd.read_csv(learned_so.root / "splits" / "second.csv", dtype=str)
    cell = split["cell_id"][split["set"] == "train"].iloc[0]
    found = answer(learned_so, "lineage", "--cell", cell)["versions"]
    by_number = {one["version"]: one for one in found}
    assert set(by_number) == {2, 3}
    assert by_number[2]["roles"]["summed"] == by_number[3]["roles"]["summed"] == 1
    assert ("trained" in by_number[2]["roles"]) == (method == "combined")
    assert "trained" not in by_number[3]["roles"]
    assert {one["grade"] for one in found} == {"learned"}
    assert "holds 1 cell in its sums" in learned_so.canal("lineage", "--cell", cell).replace("\n", " ")
    steps = answer(learned_so, "impact", "second", "--cell", cell)["steps"]
    assert any("canal stage relearn second" in one["text"] for one in steps)


def test_a_difference_says_which_sums_are_the_same(learned_so, method):
    found = answer(learned_so, "diff", "2", "3", str(learned_so.root / "raw" / "query.h5ad"))
    sums = found["sums"]
    assert sums["basis"]["same"] is True
    assert {stage: one["same"] for stage, one in sums["stages"].items()} == (
        {"first": True, "second": True, "third": None}
        if method == "exact"
        else {"second": True, "third": None}
    )
    assert "sums (one basis): the same:" in learned_so.canal("diff", "2", "3")
    before = answer(learned_so, "diff", "1", "2")["sums"]
    assert before["basis"]["same"] is (True if method == "exact" else None)


def test_cells_are_labelled_and_the_labels_known_again(learned_so, method, tmp_path):
    out, query = tmp_path / "fast.csv", str(learned_so.root / "raw" / "query.h5ad")
    learned_so.canal("annotate", query, "-o", str(out), "--model", "3", "--effort", "fast")
    fast = pd.read_csv(out, index_col=0)
    obs = anndata.read_h5ad(learned_so.root / "labelled.h5ad").obs
    assert len(fast) == len(obs) == 30
    said = answer(learned_so, "who", str(learned_so.root / "labelled.h5ad"))
    assert said["genuine"] is True
    explained = learned_so.canal("explain", str(learned_so.root / "labelled.h5ad"))
    assert "Genes that carry a type" in explained
    learned_so.canal("novel", str(learned_so.root / "labelled.h5ad"), "-o", str(tmp_path / "novel.csv"))


def test_what_carries_each_type_is_told_by_the_sides_that_know_it(learned_so, method, tmp_path):
    target = tmp_path / "genes.csv"
    found = answer(learned_so, "markers", "3", "-o", str(target), "--top", "4")
    assert (found["model"]["version"], found["model"]["stage"]) == (3, "third")
    sides = {one["cell_type"]: one["side"] for one in found["cell_types"]}
    assert set(sides.values()) <= ({"sums"} if method == "exact" else {"both", "sums", "network"})
    table = pd.read_csv(target)
    assert list(table["gene"]) == [gene["gene"] for one in found["cell_types"] for gene in one["genes"]]
    assert table.groupby("cell_type").size().max() == 4
    assert "What carries each type" in learned_so.canal("markers")
    for arguments, expected in (("-o", "exists already"), ("9", "no version")):
        words = [arguments, str(target)] if arguments == "-o" else [arguments]
        with pytest.raises(AssertionError, match=expected):
            learned_so.canal("markers", *words)


def test_versions_are_promoted_compared_and_rolled_back(line):
    line.canal("promote", "2", *WHO)
    compared = answer(line, "compare", "3")
    assert (compared["candidate"], compared["champion"], compared["not_compared"]) == (3, 2, {})
    line.canal("promote", "3", *WHO)
    line.canal("rollback", *WHO)
    assert line.project().store.version("champion").number == 2
    assert answer(line, "audit")["findings"] == []


def test_the_page_shows_the_method(learned_so, method, tmp_path):
    learned_so.canal("report", "--training", "-o", str(tmp_path))
    page = (tmp_path / "training.html").read_text()
    assert ("the sums alone" if method == "exact" else "network&#39;s weight 0.5") in page
    assert ("added up; none of them is kept" in page) == (method == "exact")


def test_a_bundle_is_taken_in_elsewhere(learned_so, empty, tmp_path):
    bundle, key = tmp_path / "version.zip", learned_so.keys()["3"]
    learned_so.canal("export", "3", "-o", str(bundle))
    other = Line(tmp_path / "other")
    other.root.mkdir()
    shutil.copyfile(learned_so.root / "params.yaml", other.root / "params.yaml")
    shutil.copyfile(empty, other.root / "mlflow.db")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    taken = answer(other, "import", str(bundle))
    assert (taken["version"], taken["stage"], taken["made"]) == (1, "third", True)
    assert other.keys()["1"] == key
    report = answer(other, "audit", "--recompute")
    assert report["findings"] == []
    assert any("cells gone: digest only" in one["what"] for one in report["notes"])
    other.canal("show", "1")
    cells = pd.read_csv(learned_so.root / "splits" / "second.csv", dtype=str)
    cell = cells["cell_id"][cells["set"] == "train"].iloc[0]
    found = answer(other, "lineage", "--cell", cell)["versions"]
    assert all(one["roles"].get("summed") == 1 for one in found if one["version"] == 1)


def test_a_lost_registry_is_made_again(line, empty):
    keys = line.keys()
    shutil.copyfile(empty, line.root / "mlflow.db")
    shutil.rmtree(line.root / "mlartifacts")
    new_key(line.root / "key.pem", "A. Person")
    line.canal("registry", "rebuild", *WHO, "--sign", str(line.root / "key.pem"), "--json")
    assert line.keys() == keys
    entries = json.loads(line.canal("ledger", "--json"))
    assert {one["kind"] for one in entries if "signature" in one} == {"rebuild"}
    assert all("signature" in one for one in entries if one["kind"] == "rebuild")
    assert answer(line, "audit")["findings"] == []


def test_what_was_learned_is_restored_and_nothing_learned_anew(line):
    from tests.support.methods import learn_here

    made = ("models", "metrics", "panel.json")
    before = {name: one for name, one in tree_digests(line.root).items() if name.split("/")[0] in made}
    for name in ("models", "metrics"):
        shutil.rmtree(line.root / name)
    (line.root / "panel.json").unlink()
    assert learn_here(line, sync=False) == []
    after = {name: one for name, one in tree_digests(line.root).items() if name.split("/")[0] in made}
    assert after == before


def test_a_version_of_sums_alone_keeps_neither_network_nor_training_cells(learned_so, method):
    key = read_json(learned_so.root / "models" / "third" / "key.json")
    kept = {name.split("/")[0] for name in key["files"]}
    assert ("bank" in kept) == ("teacher" in kept) == (method == "combined")
    assert ("model/weights.safetensors" in key["files"]) == (method == "combined")
    assert (key["teacher"] is None) == (method == "exact")


def test_types_without_sums_keep_the_probability_of_the_network(learned_so, method):
    annotator = load_model(learned_so.root / "models" / "third" / "model")
    if method == "exact":
        assert isinstance(annotator, ExactAnnotator)
        assert set(annotator.classifier.labels) == set(annotator.labels)
        return
    assert isinstance(annotator, CombinedAnnotator)
    cells = learned_so.project().cells("first", "test", annotator.genes)
    logits = annotator.network.predict(cells.expression).logits.astype(np.float64)
    scaled = logits / annotator.combination.network_temperature
    network = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    network /= network.sum(axis=1, keepdims=True)
    both = np.exp(annotator.predict(cells.expression).logits)
    place = annotator.labels.index("NK")
    assert both[:, place] == pytest.approx(network[:, place], rel=1e-6)
    assert both.sum(axis=1) == pytest.approx(1.0)
