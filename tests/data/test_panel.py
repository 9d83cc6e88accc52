import sys

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from canal.config.sections import Panel, Split
from canal.core.errors import ConfigError, DataError
from canal.data.panel import choose_more, choose_panel, f_statistic, read_panel, variance, write_panel
from canal.data.prepare import PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.data.split import split_stage
from tests.support.cells import make_adata, source_of, write_adata


def canonical(folder, adata):
    path = write_adata(adata, folder / "raw.h5ad")
    prepare(path, "s", source_of(path), PrepareSettings(0, 50), folder / "out")
    cells = PreparedCells(folder / "out" / "cells.h5ad")
    return cells, split_stage(cells.obs, Split(), 0, False, {})


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return canonical(tmp_path_factory.mktemp("stage"), make_adata({"B": 60, "NK": 60, "DC": 30}, n_genes=80))


def panel(rule="mixed", **changes):
    return Panel(stage="first", rule=rule, **changes)


@pytest.mark.parametrize("rule", ["mixed", "f_statistic", "variance", "dispersion"])
def test_every_rule_gives_as_many_genes_as_asked(stage, rule):
    chosen = choose_panel(*stage, panel(rule), 21)
    assert len(set(chosen.genes)) == 21
    assert set(chosen.genes) <= set(stage[0].genes)
    assert chosen == choose_panel(*stage, panel(rule), 21)


def test_genes_that_a_backbone_does_not_know_are_no_candidates(stage):
    known = frozenset(stage[0].genes[:40:2])
    chosen = choose_panel(*stage, panel(), 12, known)
    assert set(chosen.genes) <= known
    everything = choose_panel(*stage, panel(), 12, frozenset(stage[0].genes))
    assert everything == choose_panel(*stage, panel(), 12)
    with pytest.raises(DataError, match=r"known to the imported backbone \(3 genes\), found [0-3] of"):
        choose_panel(*stage, panel(), 12, frozenset([*stage[0].genes[:2], "UNHEARD"]))


def test_mixed_is_half_and_half(stage):
    chosen = choose_panel(*stage, panel(), 21)
    assert list(chosen.origin) == list(chosen.genes)
    assert sorted(chosen.origin.values()).count("f_statistic") == 11
    assert chosen.genes[0] == choose_panel(*stage, panel("f_statistic"), 8).genes[0]


def test_markers_lead_the_f_statistic(stage):
    cells, split = stage
    train = split[split["set"] == "train"]
    means = {
        name: cells.expression(train["cell_id"][train["cell_type"] == name].tolist(), cells.genes).mean(
            axis=0
        )
        for name in ("B", "NK", "DC")
    }
    spread = np.std(list(means.values()), axis=0)
    far = {cells.genes[i] for i in np.argsort(-spread)[:24]}
    assert len(far & set(choose_panel(*stage, panel("f_statistic"), 12).genes)) >= 9


def test_only_training_cells_are_looked_at(stage, tmp_path):
    adata = make_adata({"B": 60, "NK": 60, "DC": 30}, n_genes=80)
    cells, split = stage
    held_out = set(split[split["set"] != "train"]["cell_id"])
    rows = [f"s:{name}" in held_out for name in adata.obs_names]
    changed = adata.X.toarray()
    changed[rows] = np.random.default_rng(1).poisson(3, size=(sum(rows), 80))
    adata.X = csr_matrix(changed)
    path = write_adata(adata, tmp_path / "raw.h5ad")
    prepare(path, "s", source_of(path), PrepareSettings(0, 50), tmp_path / "out")
    other = PreparedCells(tmp_path / "out" / "cells.h5ad")
    assert choose_panel(other, split, panel(), 20) == choose_panel(cells, split, panel(), 20)


def test_a_gene_must_be_expressed_in_more_than_the_floor(stage):
    cells, split = stage
    train = split[split["set"] == "train"]["cell_id"].tolist()
    share = (cells.expression(train, cells.genes) > 0).mean(axis=0)
    chosen = choose_panel(*stage, panel(min_expressed=0.4), 80)
    assert set(chosen.genes) == {gene for gene, value in zip(cells.genes, share, strict=True) if value > 0.4}


def test_too_few_genes_are_refused_with_numbers(stage):
    with pytest.raises(
        DataError, match=r"at least 8 genes .* of the 90 training cells of first, found 0 of 80"
    ):
        choose_panel(*stage, panel(min_expressed=0.999), 20)


def test_one_type_cannot_be_compared(tmp_path):
    stage = canonical(tmp_path, make_adata({"B": 40}, n_genes=40))
    with pytest.raises(DataError, match=r"training cells have 1 \(B\): set panel.rule: variance"):
        choose_panel(*stage, panel(), 20)
    assert len(choose_panel(*stage, panel("variance"), 20).genes) == 20


def test_a_later_stage_adds_genes_that_its_parent_does_not_read(stage):
    whole = choose_panel(*stage, panel(), 30)
    more = choose_more(*stage, panel(), whole.genes[:12], 10)
    assert len(set(more.genes)) == 10
    assert not set(more.genes) & set(whole.genes[:12])
    assert set(more.genes[::2]) <= set(choose_panel(*stage, panel("f_statistic"), 30).genes)
    assert more == choose_more(*stage, panel(), frozenset(whole.genes[:12]), 10)
    assert len(choose_more(*stage, panel(), stage[0].genes[:75], 10).genes) <= 5


def test_where_no_gene_is_left_to_add_is_said(stage):
    with pytest.raises(DataError, match=r"grow asks for 4 more genes, but of the 80 genes of .* parent's 80"):
        choose_more(*stage, panel(), stage[0].genes, 4)


def test_a_stage_of_one_type_adds_genes_by_variance(tmp_path):
    cells, split = canonical(tmp_path, make_adata({"B": 40}, n_genes=40))
    more = choose_more(cells, split, panel(), cells.genes[:20], 5)
    assert set(more.origin.values()) == {"variance"}
    assert not set(more.genes) & set(cells.genes[:20])


def test_the_order_of_genes_and_cells_does_not_matter(stage, tmp_path):
    adata = make_adata({"B": 60, "NK": 60, "DC": 30}, n_genes=80)
    order = np.random.default_rng(0).permutation(80)
    other = canonical(tmp_path, adata[::-1, order].copy())
    assert set(choose_panel(*other, panel(), 20).genes) == set(choose_panel(*stage, panel(), 20).genes)


def test_the_f_statistic_by_hand():
    # groups (1, 2, 3) and (5, 6, 7): between 24 / 1, within 4 / 4; a constant gene has no F.
    expression = csr_matrix(np.array([[1, 2, 3, 5, 6, 7], [1] * 6], dtype=np.float32).T)
    scores = f_statistic(expression, np.array(["B"] * 3 + ["NK"] * 3))
    assert scores[0] == pytest.approx(24.0)
    assert not scores[1] > 24


def test_the_variance_stands_against_genes_of_like_mean():
    generator = np.random.default_rng(0)
    means = np.linspace(1, 5, 200)
    expression = generator.normal(means, 0.1 * means, size=(500, 200))
    expression[:, 50] = generator.normal(means[50], 0.6, size=500)  # more than its likes, less than gene 199
    scores = variance(csr_matrix(expression.astype(np.float32)), np.array([]))
    assert scores.argmax() == 50
    assert expression[:, 199].var() > 0.6 * expression[:, 50].var()


def test_what_is_written_is_read_back(stage, tmp_path):
    chosen = choose_panel(*stage, panel(), 12)
    write_panel(tmp_path / "panel.json", chosen, panel(), "ab" * 32)
    assert read_panel(tmp_path / "panel.json") == list(chosen.genes)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 9, "genes": []}', '{"format": 1, "genes": ["A", "A"]}']
)
def test_a_damaged_panel_is_refused(tmp_path, text):
    with pytest.raises(DataError, match="no such panel"):
        read_panel(tmp_path / "panel.json")
    (tmp_path / "panel.json").write_text(text)
    with pytest.raises(DataError, match=r"panel\.json"):
        read_panel(tmp_path / "panel.json")


def test_the_published_rule_without_scanpy_says_what_to_install(stage, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(ConfigError, match=r"is not installed: .*published.*, or another rule: mixed"):
        choose_panel(*stage, panel("dispersion"), 21)
    assert len(choose_panel(*stage, panel("mixed"), 21).genes) == 21
