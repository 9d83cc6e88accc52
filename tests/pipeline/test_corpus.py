"""A backbone pretrained on a source without labels: gated, on record, found again, never tested on."""

import shutil

import pandas as pd
import pytest

from canal.app.auditing import audit_project
from canal.app.erasing import Confirmation, erase
from canal.app.impact import CellQuery, impact
from canal.app.planning import stage_fates
from canal.app.unlearning import Decision, Withdrawal, unlearn
from canal.core.digests import file_digest
from canal.core.errors import HistoryError
from canal.core.files import read_json
from canal.data.prepare import PrepareSettings, prepare
from canal.registry.manifest.version_folder import schema_complaints
from tests.support.cells import make_adata, source_of, write_adata

pytestmark = pytest.mark.pipeline
BY = Decision("A. Person", "asked to")


@pytest.fixture
def with_atlas(line):
    """Return a learned project whose backbone is to be pretrained anew, also on cells without labels."""
    adata = make_adata({"T": 30, "DC": 40}, seed=7)
    del adata.obs["cell_type"]
    path = write_adata(adata, line.root / "raw" / "atlas.h5ad")
    source = source_of(path).model_dump(mode="json", exclude_unset=True) | {"path": "raw/atlas.h5ad"}
    del source["label"]

    def edit(document):
        document["sources"]["atlas"] = source
        document["backbone"].update(unlabelled=["atlas"], max_unlabelled_cells=50, branch=2)
        for stage in document["stages"].values():
            stage["branch"] = 2

    line.edit(edit)
    return line


def test_cells_without_labels_pretrain_the_backbone_and_are_found_again(with_atlas):
    line, root = with_atlas, with_atlas.root
    assert stage_fates(line.project())[0].why == "branch 2 is not learned yet: pretrained, also on atlas"
    line.run("dvc", "repro", "--quiet", "pretrain")
    line.canal("registry", "sync")
    kept = root / "models" / "backbone" / "corpus" / "atlas"
    table, key = pd.read_csv(kept / "cells.csv"), read_json(root / "models" / "backbone" / "key.json")
    assert dict(table["set"].value_counts()) == {"train": 40, "validation": 10}
    split = pd.read_csv(root / "splits" / "first.csv")
    history = read_json(root / "models" / "backbone" / "history.json")
    assert history["n_train"] == (split["set"] == "train").sum() + 40
    assert schema_complaints("key", key) == []
    assert key["unlabelled"]["atlas"] == {
        "prepared_sha256": read_json(root / "prepared" / "atlas" / "prepared.json")["sha256"],
        "cells": file_digest(kept / "cells.csv"),
        "verdict": file_digest(kept / "verdict.json"),
    }
    assert audit_project(line.project()).findings == ()
    found = impact(line.project(), CellQuery(cell=table["cell_id"][0])).to_json()
    assert [(one["stage"], one["branch"], one["grade"]) for one in found["versions"]] == [
        ("backbone", 2, "learned")
    ]
    project = line.project()
    with pytest.raises(HistoryError, match=r"atlas pre-trained the backbone.*`canal impact atlas` lists"):
        unlearn(project, Withdrawal("atlas"), BY, dry_run=True)
    with pytest.raises(HistoryError, match=r"still asks for backbone.*take them out first \(`canal impact"):
        erase(project, Withdrawal("atlas"), BY, Confirmation())
    before = file_digest(root / "corpus" / "atlas" / "cells.csv")
    (root / "prepared" / "atlas" / "cells.h5ad").unlink()
    line.run("python", "pipelines/corpus.py")  # from the version, not from the cells
    assert file_digest(root / "corpus" / "atlas" / "cells.csv") == before

    # A later stage with the same cells, labelled: those that pre-trained are no test cells of it.
    learn_from_the_same_cells(line)
    project = line.project()
    split, seen = project.split("third"), set(table["cell_digest"])
    assert set(split["cell_digest"]) > seen
    assert not set(split["cell_digest"][split["set"] == "test"]) & seen
    assert project.subject("third").pretrained == {}
    moved = split.assign(set=split["set"].where(~split["cell_digest"].isin(seen), "test"))
    moved.to_csv(project.layout.split("third"), index=False)
    assert project.subject("third").pretrained == dict.fromkeys(seen, "atlas")


def learn_from_the_same_cells(line):
    """Declare, prepare and split a stage ``third`` whose cells are those of the unlabelled source."""
    path = write_adata(make_adata({"T": 30, "DC": 40}, seed=7), line.root / "raw" / "third.h5ad")
    source = source_of(path).model_dump(mode="json", exclude_unset=True) | {"path": "raw/third.h5ad"}

    def edit(document):
        document["sources"]["third"] = source
        document["stages"]["third"] = {"source": "third", "parent": "second"}

    line.edit(edit)
    prepared(line, "third")
    line.run("python", "pipelines/split.py")


def prepared(line, name):
    """Prepare a source from its own path, as the pipeline does from the fetched file."""
    project = line.project()
    source = project.config.sources[name]
    raw = project.layout.source(name) / "cells.h5ad"
    raw.parent.mkdir(exist_ok=True)
    shutil.copyfile(line.root / source.path, raw)
    settings = PrepareSettings(project.config.min_genes(name), project.config.prepare.chunk_cells)
    prepare(raw, name, source, settings, project.layout.prepared(name))


def test_a_cell_that_a_stage_tests_on_does_not_pretrain(with_atlas):
    """The same cells under other names, without their labels."""
    line = with_atlas
    path = line.root / "raw" / "second.h5ad"
    source = source_of(path).model_dump(mode="json", exclude_unset=True) | {"path": "raw/second.h5ad"}
    del source["label"]
    line.edit(lambda document: document["sources"].update(atlas=source))
    prepared(line, "atlas")
    before = read_json(line.root / "corpus" / "sources.json")
    said = line.run("python", "pipelines/corpus.py", expect=1)
    assert "unlabelled source 'atlas' did not pass its gate" in said
    assert "20 of 100 cells that" in said
    assert "second (20" in said
    assert read_json(line.root / "corpus" / "sources.json") == before == []
