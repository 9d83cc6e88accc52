"""A third stage whose panel grows: learned, registered, audited, compared, used; the past is as it was."""

from __future__ import annotations

import json

import pytest
import torch

from canal.app.auditing import audit_project
from canal.core.files import read_json
from canal.data.panel import read_panel
from canal.model.annotator import Annotator
from tests.pipeline.conftest import CELLS
from tests.support.warm import environment

pytestmark = pytest.mark.pipeline


@pytest.mark.chaos
def test_a_stage_adds_genes_and_everything_behind_it_reads_them(line, tmp_path, monkeypatch):
    before, root = line.keys(), line.root
    for name, value in environment(root).items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
    file = ("--file", str(root / "raw" / "third.h5ad"), "--values", "counts", "--batch", "batch")
    line.canal("stage", "add", "third", *file, "--min-genes", "1", "--grow", "8", "--commit")
    assert "the panel grows by 8 genes" in line.learn()
    assert {number: key for number, key in line.keys().items() if number in before} == before

    parent, child = (Annotator.load(root / "models" / name / "model") for name in ("second", "third"))
    assert list(parent.genes) == read_panel(root / "panel.json")
    assert child.genes[:32] == parent.genes
    assert len(set(child.genes)) == 40
    assert read_json(root / "models" / "third" / "teacher" / "genes.json") == list(parent.genes)
    old, new = parent.network.state_dict(), child.network.state_dict()
    trained = child.network.trained()
    frozen = [name for name in old if name not in trained and name != "backbone.pos_emb.weight"]
    assert all(torch.equal(old[name], new[name]) for name in frozen)
    vectors = "backbone.pos_emb.weight"
    assert torch.equal(new[vectors][:32], old[vectors][:32])
    assert torch.equal(new[vectors][-1], old[vectors][-1])
    assert new[vectors][32:-1].any(dim=1).all()
    assert new["head.to_manifold.weight"][:, 32:-1].any()

    report = audit_project(line.project())
    assert report.findings == ()
    request = read_json(root / "models" / "third" / "key.json")["request"]
    assert request["panel"] == {"grow": 8}
    differ = json.loads(line.canal("diff", "2", "3", "--json"))
    assert differ["genes"] == {"added": list(child.genes[32:]), "removed": [], "kept": 32}
    assert set(json.loads(line.canal("compare", "3", "--with", "2", "--json"))["stages"]) >= {
        "first",
        "second",
    }
    artifacts = line.project().store.artifacts(line.project().store.version("3"))
    assert f'"{child.genes[-1]}"' in (artifacts / "MLmodel").read_text()

    line.canal("annotate", str(root / "raw" / "third.h5ad"), "-o", str(tmp_path / "out.h5ad"))
    import anndata

    labelled = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert labelled.n_obs == sum(CELLS["third"].values())
    assert set(labelled.obs["canal_cell_type"]) <= {*child.labels, "Unassigned"}
    line.canal("export", "3", "-o", str(tmp_path / "third.zip"))
