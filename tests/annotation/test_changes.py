"""Cells that two models label differently."""

import pandas as pd
import pytest

from canal.annotation.annotate import annotate_h5ad, label_h5ad
from canal.annotation.options import Options
from canal.annotation.summary import label_changes
from canal.core.errors import DataError
from canal.model.head import NoveltyRule
from tests.support.cells import gene_names, make_adata, write_adata


def table(types, names="abcd"):
    confidence = [0.5 + i / 10 for i in range(len(types))]
    return pd.DataFrame({"canal_cell_type": types, "canal_confidence": confidence}, index=list(names))


def test_changes_are_counted_by_old_and_new_type():
    found = label_changes("x", table(["B", "B", "T", "NK"]), table(["T", "T", "T", "Unassigned"]))
    assert found.flows == {("B", "T"): 2, ("NK", "Unassigned"): 1}
    assert found.to_json()["flows"][0] == {"from": "B", "to": "T", "n": 2, "examples": ["a", "b"]}
    assert (found.to_json()["changed"], found.n_cells) == (3, 4)
    assert list(found.table.index) == ["a", "b", "d"]


def test_the_same_labels_change_nothing(tmp_path):
    found = label_changes("x", table(["B"] * 4), table(["B"] * 4))
    assert found.flows == {}
    found.write(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "cell,before,after,confidence_before,confidence_after\n"


def test_cells_of_one_name_stay_apart():
    found = label_changes("x", table(["B", "T"], "aa"), table(["B", "B"], "aa"))
    assert found.flows == {("T", "B"): 1}


def test_other_cells_are_not_compared():
    with pytest.raises(ValueError, match="different cells"):
        label_changes("x", table(["B"], "a"), table(["B"], "b"))


def test_a_file_is_labelled_as_annotate_does_it_and_not_written(annotator, tmp_path):
    cells = make_adata({"B": 30, "NK": 25}, n_genes=60)
    cells.var_names = [*gene_names(20), *(f"OTHER{i}" for i in range(40))]
    source = write_adata(cells, tmp_path / "in.h5ad")
    labels = label_h5ad(annotator, source, Options(chunk_cells=7))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]
    assert list(labels.index) == list(cells.obs_names)
    summary = annotate_h5ad(annotator, source, tmp_path / "out.h5ad")
    assert dict(labels["canal_cell_type"].value_counts()) == summary.counts
    never = annotator.with_novelty(NoveltyRule(0.8, -3.0, 0.0, 2.0))
    found = label_changes("in.h5ad", labels, label_h5ad(never, source))
    assert {old for old, _ in found.flows} == {"Unassigned"}
    assert len(found.table) == summary.unassigned
    with pytest.raises(DataError, match="no matrix 'none'"):
        label_h5ad(annotator, source, Options(layer="none"))
