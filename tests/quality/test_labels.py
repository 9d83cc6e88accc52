"""Labels against what the parent's model calls the same cells."""

import json

import pytest

from canal.config.sections import Gate
from canal.core.errors import GateError
from canal.data.prepare import prepare
from canal.data.prepared import PreparedCells
from canal.quality.gate import (
    CELLS_COMPARED,
    cells_to_compare,
    check_labels,
    compare,
    label_rule,
    read_labels,
    write_labels,
)
from tests.support.cases import SETTINGS
from tests.support.cells import make_adata, source_of, write_adata

RULE = label_rule("pbmc", "first", 0.5)


def table(answers, label="CD14+ Monocyte", cell_type="CD14 Mono", known=("CD14 Mono", "CD16 Mono", "B")):
    return compare([label] * len(answers), [cell_type] * len(answers), answers, known)


def test_a_label_whose_cells_look_like_another_type_is_named_with_the_confusion():
    result = check_labels(table(["CD16 Mono"] * 44 + ["CD14 Mono"] * 6), RULE, "second")
    assert not result.passed
    assert result.severity == "warning"
    assert result.found == "1 of 1 labels"
    assert result.examples == ("CD14+ Monocyte (CD14 Mono): 44 of 50 cells look like CD16 Mono",)
    assert "sources.pbmc.label_map" in result.hint


@pytest.mark.parametrize(
    "answers",
    [
        ["CD14 Mono"] * 50,
        ["CD14 Mono"] * 25 + ["CD16 Mono"] * 25,  # the bound itself
        ["CD16 Mono"] * 24 + ["B"] * 24,  # no one type
        [""] * 50,  # Unassigned is no type
        ["CD16 Mono"] * 4,  # too few to judge
    ],
)
def test_what_is_no_confusion(answers):
    assert check_labels(table([*answers], known=("CD14 Mono", "CD16 Mono", "B")), RULE, "second").passed


def test_a_new_type_that_is_an_old_one_by_another_name_is_reported():
    result = check_labels(table(["B"] * 50, "B lineage", "B lineage"), RULE, "second")
    assert result.examples == ("B lineage: 50 of 50 cells look like B",)


def test_each_published_label_is_compared_on_its_own():
    labels = ["naive"] * 20 + ["memory"] * 20
    found = compare(labels, ["CD4 T"] * 40, ["CD4 T"] * 20 + ["CD8 T"] * 20, ["CD4 T", "CD8 T"])
    assert dict(zip(found["name"], found["alike"], strict=True)) == {"memory (CD4 T)": 20, "naive (CD4 T)": 0}


def test_few_cells_of_each_label_are_compared_and_no_test_cell(tmp_path):
    raw = write_adata(make_adata({"B": 150, "NK": 40}), tmp_path / "cells.h5ad")
    prepare(raw, "s", source_of(raw), SETTINGS, tmp_path / "prepared")
    prepared = PreparedCells(tmp_path / "prepared" / "cells.h5ad")
    ids = list(prepared.obs.index)
    chosen = cells_to_compare(prepared, ids[::2])
    assert set(chosen) <= set(ids[::2])
    counts = prepared.obs.loc[chosen, "cell_type"].value_counts()
    assert counts["B"] == CELLS_COMPARED
    assert counts["NK"] == len(set(ids[::2]) & set(prepared.obs.index[prepared.obs["cell_type"] == "NK"]))


def test_what_was_found_is_kept(tmp_path):
    result = check_labels(table(["CD16 Mono"] * 50), RULE, "second")
    write_labels(tmp_path / "second.json", "second", "first", 50, result)
    kept = read_labels(tmp_path / "second.json")
    assert kept["rule"]["examples"] == list(result.examples)
    assert (kept["parent"], kept["cells_asked"]) == ("first", 50)
    (tmp_path / "second.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(GateError, match="format 9, this canal reads 1"):
        read_labels(tmp_path / "second.json")
    with pytest.raises(GateError, match="were not checked"):
        read_labels(tmp_path / "none.json")


def test_the_bound_is_a_parameter():
    assert Gate().max_confused == 0.5
    strict = label_rule("pbmc", "first", 0.1)
    assert not check_labels(table(["CD16 Mono"] * 6 + ["CD14 Mono"] * 44), strict, "second").passed


def test_labels_of_too_few_cells_are_said_not_to_be_compared(tmp_path):
    """In the gate, too, whose suite looks at an empty table."""
    for found in (check_labels(table([]), RULE, "second"), RULE.describe(table([]), table([]))):
        assert found.found == "no label with 5 cells, so none was compared"
