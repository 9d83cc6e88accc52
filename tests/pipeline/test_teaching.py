"""`canal.learn`: a lineage taught from Python is the one that commands would have made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import canal
from canal.app.auditing import audit_project
from canal.app.project import Project
from canal.config.yaml_file import load_config
from canal.core.errors import ConfigError, DataError, GateError
from tests.support.cells import make_adata, write_adata
from tests.support.warm import REPOSITORY, environment

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("own")]


@pytest.fixture(autouse=True)
def person(monkeypatch):
    """Give git a name to commit by, and steps this Python."""
    for name, value in environment(REPOSITORY).items():
        if name.startswith(("GIT_", "MLFLOW_", "DVC_")):
            monkeypatch.setenv(name, value)


def blood():
    return make_adata({"B": 40, "T": 40, "NK": 30}, n_genes=300)


def test_a_lineage_is_taught_gated_learned_registered_and_committed(tmp_path):
    said: list[str] = []
    root = tmp_path / "lineage"
    words = {"values": "counts", "batch": "batch", "label_map": {"B": "B cell", "T": "T cell", "NK": None}}
    version = canal.learn(blood(), root, "donors", say=said.append, min_genes=1, **words)
    assert (version["stage"], version["version"], version["labels"]) == ("donors", 1, ["B cell", "T cell"])
    assert version["dirty"] is False
    assert any(line.startswith("stage donors passed the gate (") for line in said)
    assert any("learned  backbone (version 1), donors (version 1)" in line for line in said)
    config = load_config(root / "params.yaml")
    assert config.sources["donors"].path == "cells/donors.h5ad"
    log = subprocess.run(["git", "log", "--format=%s"], cwd=root, capture_output=True, text=True, check=True)
    assert log.stdout.splitlines() == ["Learn donors", "Add stage donors", "Begin lineage"]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, check=True)
    assert status.stdout == b""
    assert audit_project(Project.open(root)).findings == ()

    again = canal.learn(blood(), root, "donors", say=said.append, min_genes=1, **words)
    assert again["key"] == version["key"]
    with pytest.raises(ConfigError, match=r"cells/donors\.h5ad holds other cells than these"):
        canal.learn(make_adata({"B": 40}, n_genes=300, seed=1), root, "donors", **words)
    with pytest.raises(
        ConfigError, match="params.yaml has a stage 'donors' of other cells, or read otherwise"
    ):
        canal.learn(blood(), root, "donors", values="counts", min_genes=1)
    few = make_adata({"B": 3, "T": 60}, n_genes=300, seed=2)
    with pytest.raises(
        GateError, match=r"(?s)'more' was not added.*enough_cells_per_type: expected at least 5"
    ):
        canal.learn(few, root, "more", values="counts", min_genes=1)
    assert list(load_config(root / "params.yaml").stages) == ["donors"]
    assert [path.name for path in (root / "cells").iterdir()] == ["donors.h5ad"]
    with pytest.raises(GateError):
        canal.learn(few, tmp_path / "linage", "more", say=said.append, values="counts", min_genes=1)
    assert f"made {tmp_path / 'linage'}, a new project; did you mean 'lineage'?" in said
    assert not (tmp_path / "linage").exists()


@pytest.mark.parametrize(
    ("cells", "words", "message"),
    [
        (blood, {"values": "counts"}, "stage is missing"),
        (blood, {"stage": "x"}, "values is missing"),
        (
            blood,
            {"stage": "x", "values": "counts", "labels": "y"},
            "has no option labels; there are values, label",
        ),
        (blood, {"stage": "x", "values": "tpm"}, r"values: .*'counts', 'log1p_10k' or 'log2p_10k'"),
        (blood, {"stage": "Upper", "values": "counts"}, "is not a name"),
        (lambda: Path("nowhere.h5ad"), {"values": "counts"}, r"nowhere\.h5ad: no such file"),
        (lambda: [[1]], {"stage": "x", "values": "counts"}, "must be an AnnData or the path .* found list"),
    ],
)
def test_a_call_that_cannot_be_answered_leaves_nothing(tmp_path, cells, words, message):
    with pytest.raises((ConfigError, DataError, canal.CanalError), match=message):
        canal.learn(cells(), tmp_path / "lineage", **words)
    assert list(tmp_path.iterdir()) == []


def test_cells_that_no_file_holds_are_refused_and_an_empty_folder_stays(tmp_path):
    cells, root = blood(), tmp_path / "lineage"
    cells.uns["fit"] = object()
    root.mkdir()
    with pytest.raises(DataError, match="anndata cannot write these cells .* only obs, var, X"):
        canal.learn(cells, root, "donors", values="counts", min_genes=1)
    assert list(tmp_path.iterdir()) == [root]
    assert list(root.iterdir()) == []


def test_a_file_is_learned_where_it_lies(tmp_path):
    path = write_adata(blood(), tmp_path / "Blood.h5ad")
    with pytest.raises(GateError, match="enough_cells: expected at least 50"):
        canal.learn(path, tmp_path / "lineage", values="counts", min_genes=290)
    assert [one.name for one in tmp_path.iterdir()] == ["Blood.h5ad"]
