"""Lineages whose cells are drawn one by one: types without training, validation or test cells among them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

import canal.app.pipeline
from canal.app.backfilling import backfill
from canal.app.tasks import add_up_stage
from canal.config.sections import Split
from canal.continual.bank import PROBE, Probe
from canal.core.errors import TrainingError
from canal.core.files import read_json
from canal.data.split import RESERVE, SUMMED, split_stage, types_lacking, write_split
from canal.memory.levels import Basis
from canal.memory.stage_sums import StageSums, by_type
from canal.model.annotator import GENES, LABELS
from canal.model.storage import read_names
from tests.pipeline.conftest import Line
from tests.support.cells import make_adata, source_of, write_adata
from tests.support.methods import (
    N_GENES,
    empty_database,
    learn_here,
    make_line,
    prepare_here,
    with_database,
    without_pictures,
)

pytestmark = pytest.mark.xdist_group("independent")  # what its tests share is learned once

RULE = Split(rule="independent")
CELLS = {
    "first": {"B": 30, "T": 30, "NK": 30, "Mast": 2, "DC": 1},
    "second": {"B": 24, "Mono": 24, "Mast": 3, "pDC": 1},
}
METHODS = ("exact", pytest.param("combined", marks=pytest.mark.chaos))


def wanted(splits) -> bool:
    """Whether types are told apart as the tests need it.

    Mast has no training cell at first and is learned second, DC and pDC are never learned; one of them is
    validated and one tested, and NK is in every set.
    """
    first, second = (types_lacking(split) for split in splits)
    held = [
        {(name, chosen) for name, chosen in zip(split["cell_type"], split["set"], strict=True)}
        for split in splits
    ]
    return (
        {"Mast", "DC"} <= set(first["train"])
        and {("Mast", "validation"), ("DC", "test")} <= held[0]
        and set(second["train"]) == {"pDC"}
        and ("pDC", "validation") in held[1]
    )


def make(root: Path, method: str, monkeypatch, tmp_path_factory, **changes) -> Line:
    """Make a project whose seed draws the sets that `wanted` asks for; nothing is learned yet."""
    stages = {name: {} for name in CELLS}
    line = make_line(
        root,
        stages,
        split={"rule": "independent", **changes},
        gate={"min_cells": 20, "min_cells_per_type": 1},
        continual={"method": method, "learning_rate": 0.01, "max_epochs": 2},
    )
    with_database(line, empty_database(tmp_path_factory))
    for seed, (name, types) in enumerate(CELLS.items()):
        cells = make_adata(types, N_GENES, seed=seed, batches=("b1", "b2"))
        write_adata(cells, root / "raw" / f"{name}.h5ad")
    line.edit(lambda document: [_declare(document, root, name) for name in CELLS])
    with monkeypatch.context() as patch:
        patch.setattr(canal.app.pipeline, "project_step", lambda *_: None)
        without_pictures(patch)
        prepare_here(line, patch)
    obs = [line.project().prepared(name).obs for name in CELLS]
    obs = [own[own["cell_type"].isin(["Mast", "DC", "pDC"])] for own in obs]  # the others have no say
    seeds = range(100_000)
    seed = next(one for one in seeds if wanted([split_stage(own, RULE, one, False, {}) for own in obs]))
    line.edit(lambda document: document.update(seed=seed))
    return line


def _declare(document, root: Path, name: str) -> None:
    document["sources"][name]["sha256"] = source_of(root / "raw" / f"{name}.h5ad").sha256


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> str:
    """Return the method of the tests' project."""
    return request.param


@pytest.fixture(scope="module")
def learned_so(method, tmp_path_factory) -> Line:
    """Return a learned project, which no test changes; the network and the sums have a say."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("independent") / "project"
        line = make(root, method, patch, tmp_path_factory)
        patch.setattr("canal.continual.combining.WEIGHTS", (0.5,))
        learn_here(line)
    return line


def split_of(line: Line, stage: str):
    return line.project().split(stage)


def test_a_type_is_known_once_a_training_cell_of_it_was_seen(learned_so):
    models = learned_so.project().layout
    known = [set(read_names(models.model(name) / "model", LABELS)) for name in CELLS]
    assert known == [{"B", "T", "NK"}, {"B", "T", "NK", "Mono", "Mast"}]


def test_sums_are_of_all_training_cells(learned_so):
    layout = learned_so.project().layout
    sums = StageSums.load(layout.model("second"), tuple(CELLS))
    for name in CELLS:
        split = split_of(learned_so, name)
        counts = split[split["set"].isin(SUMMED)]["cell_type"].value_counts()
        assert dict(zip(sums.stages[name].types, sums.stages[name].counts, strict=True)) == counts.to_dict()


def test_validation_cells_of_types_that_are_not_learned_choose_nothing(learned_so):
    layout = learned_so.project().layout
    genes = read_names(layout.model("second") / "model", GENES)
    probe = Probe.load(layout.model("second") / PROBE, genes).cells
    assert set(probe.of_stage("first").cell_types) == {"B", "T", "NK"}
    assert "pDC" not in probe.cell_types
    history = read_json(layout.model("second") / "history.json")
    if history.get("method") == "exact":
        assert 0 <= history["validation_accuracy"] <= 1
    for value in _numbers(history):
        assert np.isfinite(value)


def _numbers(document) -> list[float]:
    if isinstance(document, dict):
        return [one for value in document.values() for one in _numbers(value)]
    if isinstance(document, list):
        return [one for value in document for one in _numbers(value)]
    return [document] if isinstance(document, float) else []


def test_test_cells_of_types_that_are_not_learned_count_as_wrong_and_are_told(learned_so):
    project = learned_so.project()
    for name, unknown in (("first", {"Mast", "DC"}), ("second", {"DC", "pDC"})):
        document = read_json(project.layout.metrics(name) / "evaluation.json")
        for stage, one in document["per_stage"].items():
            split = split_of(learned_so, stage)
            tested = split[split["set"] == "test"]["cell_type"]
            assert one["n"] == len(tested)
            told = {kind: n for kind, n in tested.value_counts().items() if kind in unknown}
            assert one.get("not_learned", {}) == told
            assert all(one["recall"][kind]["recall"] == 0 for kind in told)
            assert one["accuracy"] <= 1 - sum(told.values()) / len(tested)
        assert not set(document["novelty"]["false_unassigned"]) & unknown
    assert "DC" in document["per_stage"]["first"]["not_learned"]
    assert not np.isnan(document["average_accuracy"])


def test_the_split_and_the_gate_tell_of_these_types(learned_so):
    project = learned_so.project()
    for name in CELLS:
        lacking = types_lacking(split_of(learned_so, name))
        assert read_json(project.layout.split(name).with_suffix(".json"))["lacking"] == lacking
        verdict = read_json(project.layout.verdict(name))
        (rule,) = (one for one in verdict["rules"] if one["rule"] == "types_in_every_set")
        assert rule["severity"] == "warning"
        assert not rule["passed"]
        for kind in lacking["train"]:
            assert any(text.startswith(f"{kind} (") and "no training" in text for text in rule["examples"])


def audited(line: Line) -> dict:
    """Return what audit says of a project, as JSON."""
    lines = line.canal("audit", "--json").splitlines()
    start = next(place for place, text in enumerate(lines) if text.startswith("{"))
    return json.loads("\n".join(lines[start:]))


def test_audit_finds_nothing_wrong(learned_so):
    assert audited(learned_so)["findings"] == []


@pytest.mark.chaos
def test_sums_are_added_to_a_published_lineage(tmp_path, monkeypatch, tmp_path_factory):
    line = make(tmp_path / "project", "published", monkeypatch, tmp_path_factory)
    learn_here(line)
    project = line.project()
    added = backfill(project, "second", lambda _: None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    key = read_json(project.layout.model("second") / "key.json")
    assert set(key["sums"]) == {"first", "second"}
    assert key["backfilled"]
    assert added.stage == "second"
    labels = read_names(project.layout.model("second") / "model", LABELS)
    assert set(labels) == {"B", "T", "NK", "Mono", "Mast"}
    assert audited(line)["findings"] == []


def test_a_stage_without_a_training_cell_has_nothing_to_add_up(tmp_path, monkeypatch, tmp_path_factory):
    line = make(tmp_path / "project", "exact", monkeypatch, tmp_path_factory)
    split = split_of(line, "first").assign(set="test")
    write_split(line.project().layout.split("first"), "first", split, RULE, {})
    basis = Basis(tuple(line.project().panel), {"elsewhere": "9" * 64})
    with pytest.raises(TrainingError, match="no training cell among the 93 of its split"):
        add_up_stage(line.project(), "first", basis)


@pytest.mark.chaos
def test_a_project_without_a_batch_has_the_sums_of_one_less_the_batch(
    tmp_path, monkeypatch, tmp_path_factory
):
    line = make(tmp_path / "project", "exact", monkeypatch, tmp_path_factory, max_cells_per_type=10)
    without_pictures(monkeypatch)
    prepare_here(line, monkeypatch)
    basis = Basis(tuple(line.project().panel), {"elsewhere": "9" * 64})
    before, split = add_up_stage(line.project(), "first", basis), split_of(line, "first")
    assert RESERVE in set(split["set"])
    less = before[1].without([name for name in before[1].types if json.loads(name)[0] == "b2"])

    path = line.root / "raw" / "first.h5ad"
    cells = anndata.read_h5ad(path)
    write_adata(cells[cells.obs["batch"] == "b1"].copy(), path)
    line.edit(lambda document: _declare(document, line.root, "first"))
    shutil.rmtree(line.root / "data" / "first")
    prepare_here(line, monkeypatch)
    after = add_up_stage(line.project(), "first", basis)
    assert set(split_of(line, "first")["batch"]) == {"b1"}
    assert after[1].digest == less.digest
    assert after[0].digest == by_type(less).digest
