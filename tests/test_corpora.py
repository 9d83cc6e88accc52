"""Which cells of sources without labels pre-train: drawn by content, whatever file they stand in."""

import json

import pytest

from canal.app.corpora import corpus_tokens, draw_corpora
from canal.app.project import Project
from canal.core.errors import TrainingError
from canal.data.expression import tokenize
from canal.data.prepare import PrepareSettings, prepare
from tests.support.cells import gene_names, make_adata, make_document, source_of, write_adata

SETTINGS = PrepareSettings(min_genes=1, chunk_cells=64)


def project(root, backbone=None, seed=0, **files):
    """Return a project whose unlabelled sources are these cells, prepared; nothing else of it is there."""
    document = make_document(seed=seed)
    for name, adata in files.items():
        source = source_of(write_adata(adata, root / f"{name}.h5ad"), label=None)
        prepare(root / f"{name}.h5ad", name, source, SETTINGS, root / "prepared" / name)
        document["sources"][name] = source.model_dump(mode="json", exclude_unset=True)
    document["backbone"] |= {"unlabelled": list(files)} | (backbone or {})
    (root / "params.yaml").write_text(json.dumps(document))
    return Project.open(root)


def sets(drawn):
    """Return the set of each content."""
    return {
        digest: chosen
        for table in drawn.values()
        for digest, chosen in zip(table["cell_digest"], table["set"], strict=True)
    }


def test_a_draw_follows_from_seed_and_content_alone(tmp_path):
    cells = make_adata({"B": 40, "T": 60}, seed=1)
    whole = draw_corpora(project(tmp_path / "a", atlas=cells))
    assert dict(whole["atlas"]["set"].value_counts()) == {"train": 80, "validation": 20}
    other_order = cells[::-1]
    files = {"left": other_order[:30].copy(), "right": other_order[30:].copy()}
    parted = draw_corpora(project(tmp_path / "b", **files))
    assert {name: len(table) for name, table in parted.items()} == {"left": 30, "right": 70}
    assert sets(parted) == sets(whole)
    assert sets(draw_corpora(project(tmp_path / "c", seed=1, atlas=cells))) != sets(whole)


def test_at_most_so_many_cells_are_drawn_of_every_source_in_proportion(tmp_path):
    files = {"large": make_adata({"B": 160}, seed=1), "small": make_adata({"B": 40}, seed=2)}
    drawn = draw_corpora(project(tmp_path, {"max_unlabelled_cells": 50}, **files))
    n = {name: len(table) for name, table in drawn.items()}
    assert sum(n.values()) == 50
    assert 3 <= n["small"] <= 20
    assert list(sets(drawn).values()).count("validation") == 10


def test_a_cell_in_two_sources_is_drawn_once_and_a_source_of_nothing_else_is_refused(tmp_path):
    cells = make_adata({"B": 40}, seed=1)
    with pytest.raises(TrainingError, match="no cell of again would pre-train the backbone: all its cells"):
        draw_corpora(project(tmp_path, atlas=cells, again=cells[:10].copy()))


def test_tokens_are_read_of_the_drawn_cells_of_a_set(tmp_path):
    opened = project(tmp_path, atlas=make_adata({"B": 30, "T": 30}, seed=1))
    panel = gene_names(120)[:20]
    (tmp_path / "panel.json").write_text(json.dumps({"format": 1, "genes": panel}))
    table = draw_corpora(opened)["atlas"]
    opened.layout.corpus_cells("atlas").parent.mkdir(parents=True)
    table.to_csv(opened.layout.corpus_cells("atlas"), index=False)
    for chosen in ("train", "validation"):
        ids = list(table["cell_id"][table["set"] == chosen])
        read = [row for block in corpus_tokens(opened, chosen) for row in block.tolist()]
        wanted = tokenize(opened.prepared_source("atlas").expression(ids, panel)).tolist()
        assert sorted(read) == sorted(wanted)
