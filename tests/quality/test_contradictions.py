"""Cells whose label the parent's sums contradict: listed one by one, and none dropped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from canal.app.declaring import ask_sums
from canal.config.sections import Gate
from canal.data.prepare import prepare
from canal.data.prepared import PreparedCells
from canal.memory.answer import ExactAnnotator
from canal.memory.levels import Basis
from canal.memory.prediction import Calibration
from canal.memory.stage_sums import SolveSettings, StageSums, solve
from canal.memory.sums import add_up
from canal.quality.gate import (
    check_contradictions,
    contradiction_rule,
    contradictions,
    read_labels,
    write_labels,
)
from tests.support.cases import SETTINGS
from tests.support.cells import make_adata, make_config, source_of, write_adata

MOST = 0.95
RULE = contradiction_rule("pbmc", "first", MOST)
KNOWN = ("B", "NK", "T")


def prepared(folder, cells):
    raw = write_adata(cells, folder / "cells.h5ad")
    prepare(raw, "second", source_of(raw), SETTINGS, folder / "prepared")
    return PreparedCells(folder / "prepared" / "cells.h5ad")


def project(folder, cells):
    """Return what `ask_sums` looks at of a project: its parameters, the parent's folder, prepared cells."""
    layout = SimpleNamespace(model=lambda stage: folder / "models" / stage)
    return SimpleNamespace(config=make_config(), layout=layout, prepared=lambda stage: cells)


def learn(folder, genes=60):
    """Learn a first stage by sums, as a version's folder has them."""
    known = prepared(folder / "first", make_adata(dict.fromkeys(KNOWN, 60), n_genes=genes, seed=1))
    basis, obs = Basis(tuple(known.genes), {}), known.obs
    sums = add_up(basis, [(known.expression(list(obs.index), known.genes), list(obs["cell_type"]))])
    solved = solve(StageSums(basis).plus("first", sums), SolveSettings())
    annotator = ExactAnnotator(solved, KNOWN, basis.genes, Calibration(3.0, 0.002))
    annotator.save(folder / "models" / "first" / "model" / "exact")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A second stage, a tenth of whose known cells bear a wrong label; and which, with the right one."""
    folder = tmp_path_factory.mktemp("planted")
    learn(folder)
    cells = make_adata({"B": 60, "T": 60, "Mono": 40}, n_genes=60, seed=2)
    labels = np.array(cells.obs["cell_type"], dtype=object)
    wrong = {}
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(labels == name))[:6] for name in ("B", "T")]
    for row in np.concatenate(rows):
        wrong[f"second:{cells.obs_names[row]}"] = labels[row]
        labels[row] = {"B": "T", "T": "B"}[labels[row]]
    cells.obs["cell_type"] = labels
    return project(folder, prepared(folder / "second", cells)), wrong


def test_planted_wrong_labels_are_listed_with_the_right_pair(planted):
    stub, wrong = planted
    ids = list(stub.prepared("second").obs.index)
    table = ask_sums(stub, "second", ids)
    found = table[table["margin"] > Gate().max_contradiction]
    told = dict(zip(found["name"], found["like"], strict=True))
    assert len(wrong) == 12
    listed = {name: like for name, like in told.items() if name in wrong}
    assert listed == {name: wrong[name] for name in listed}
    assert len(listed) >= 11
    assert len(set(told) - set(wrong)) <= 2
    result = check_contradictions(table, RULE, MOST, "second-cells")
    assert not result.passed
    assert result.severity == "warning"
    pairs = {tuple(text.split(", such as")[0].split()[3:]) for text in result.examples}
    assert pairs >= {("B", "look", "like", "T"), ("T", "look", "like", "B")}
    assert len(stub.prepared("second").obs) == 160  # none is dropped


def test_cells_of_new_types_are_not_compared(planted):
    stub, _ = planted
    obs = stub.prepared("second").obs
    table = ask_sums(stub, "second", list(obs.index))
    assert set(table["label"]) == {"B", "T"}
    new = ask_sums(stub, "second", list(obs.index[obs["cell_type"] == "Mono"]))
    assert not len(new)
    told = check_contradictions(new, RULE, MOST, "second-cells")
    assert told.passed
    assert told.found == "no cell of a type that the parent's sums know, so none was compared"


def test_only_the_compared_cells_are_listed_whatever_their_order(planted):
    stub, _ = planted
    ids = list(stub.prepared("second").obs.index)
    whole = ask_sums(stub, "second", ids).set_index("name")
    some = ask_sums(stub, "second", ids[::-3]).set_index("name")
    assert set(some.index) == set(whole.index) & set(ids[::-3])
    assert (whole.loc[some.index] == some).all().all()


def test_genes_that_the_new_file_lacks_are_left_out(planted, tmp_path):
    stub, _ = planted
    cells = make_adata({"B": 30, "T": 30}, n_genes=60, seed=2)[:, 10:].copy()
    table = ask_sums(project(planted_root(stub), prepared(tmp_path, cells)), "second", [])
    assert not len(table)
    own = prepared(tmp_path / "again", cells)
    table = ask_sums(project(planted_root(stub), own), "second", list(own.obs.index))
    assert (table["like"] == "").mean() > 0.9


def planted_root(stub):
    return stub.layout.model("x").parent.parent


def test_a_parent_without_sums_lists_none(tmp_path):
    cells = prepared(tmp_path, make_adata({"B": 20, "T": 20}))
    assert ask_sums(project(tmp_path, cells), "second", list(cells.obs.index)) is None
    assert ask_sums(project(tmp_path, cells), "first", list(cells.obs.index)) is None  # a backbone


def test_the_margin_is_of_the_answer_over_the_cells_own_label():
    table = contradictions(
        ["a", "b", "c", "d"],
        ["B", "B", "T", "Mono"],
        ["B", "T", "B", "B"],
        np.array([0.0, 0.97, 0.95, 1.0]),
        KNOWN,
    )
    assert table["name"].tolist() == ["a", "b", "c"]
    assert table["like"].tolist() == ["", "T", "B"]
    assert table["margin"].tolist() == [0.0, 0.97, 0.95]
    assert (
        check_contradictions(table, RULE, MOST, "x").found == "1 of 3 cells"
    )  # the bound itself is no more than it


@pytest.mark.parametrize(
    ("called_t", "called_nk", "others", "warned"),
    [
        (1, 0, 9, []),  # one cell says nothing of its label, however few there are
        (4, 4, 2, []),  # nor do four of one type and four of another
        (5, 0, 95, []),  # the bound itself
        (7, 0, 193, []),
        (6, 0, 94, ["6 of 100 B look like T, such as cell0"]),
        (6, 5, 9, ["6 of 20 B look like T, such as cell0", "5 of 20 B look like NK, such as cell6"]),
    ],
)
def test_single_cells_are_listed_and_not_warned_of(called_t, called_nk, others, warned):
    """The demo warned of pairs of one cell: noise of any model, and of any labels."""
    answers = ["T"] * called_t + ["NK"] * called_nk + ["B"] * others
    margins = np.array([0.99] * (called_t + called_nk) + [0.0] * others)
    names = [f"cell{n}" for n in range(len(answers))]
    result = check_contradictions(
        contradictions(names, ["B"] * len(answers), answers, margins, KNOWN), RULE, MOST, "x"
    )
    assert list(result.examples) == warned
    assert result.passed == (not warned)
    assert result.found == f"{called_t + called_nk} of {len(answers)} cells"


def test_what_was_found_is_kept_cell_by_cell(tmp_path):
    table = contradictions(["b", "a"], ["B", "B"], ["T", "NK"], np.array([0.99996, 0.96]), KNOWN)
    result, path = check_contradictions(table, RULE, MOST, "x"), tmp_path / "second.json"
    write_labels(path, "second", "first", 9, None, (table.sort_values("name"), result))
    kept = read_labels(path)["contradicted"]
    assert kept["cells"] == [
        {"cell_id": "a", "label": "B", "like": "NK", "margin": 0.96},
        {"cell_id": "b", "label": "B", "like": "T", "margin": 1.0},
    ]
    assert kept["rule"]["rule"] == "labels_unlike_sums"
    assert kept["rule"]["found"] == "2 of 2 cells"
    before = path.read_bytes()
    write_labels(path, "second", "first", 9, None, (table.sort_values("name"), result))
    assert path.read_bytes() == before
    write_labels(path, "second", "first", 9, None)
    assert "contradicted" not in json.loads(path.read_text())
