from dataclasses import replace

import numpy as np
import pytest

from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError

CELLS = LabelledCells(
    ("a:1", "a:2", "b:1"),
    np.array([[0.0, 1.5], [2.0, 9.0], [0.4, 0.0]], dtype=np.float32),
    ("B", "T", "B"),
    ("first", "first", "second"),
    ("a", "a", "b"),
    ("x", "y", "z"),
)


def test_taking_keeps_rows_together():
    taken = CELLS.take([2, 0])
    assert taken.cell_ids == ("b:1", "a:1")
    assert taken.expression.tolist() == CELLS.expression[[2, 0]].tolist()
    assert (taken.cell_types, taken.stages) == (("B", "B"), ("second", "first"))
    assert (taken.sources, taken.batches) == (("b", "a"), ("z", "x"))


def test_taking_nothing():
    assert len(CELLS.take([])) == 0
    assert CELLS.take([]).n_genes == 2


def test_genes_that_a_cell_was_stored_without_count_as_zero():
    wide = CELLS.widened(4)
    assert wide.expression[:, :2].tolist() == CELLS.expression.tolist()
    assert not wide.expression[:, 2:].any()
    assert (wide.cell_ids, wide.expression.dtype) == (CELLS.cell_ids, np.float32)
    assert CELLS.widened(2) is CELLS
    assert wide.narrowed(2).expression.tolist() == CELLS.expression.tolist()
    with pytest.raises(TrainingError, match="cells of 2 genes cannot have 1: a panel only grows"):
        CELLS.widened(1)


def test_parts_by_stage_make_the_whole_again():
    parts = [CELLS.of_stage(stage) for stage in CELLS.stage_names]
    assert CELLS.stage_names == ("first", "second")
    assert [len(part) for part in parts] == [2, 1]
    assert LabelledCells.concatenate(parts).cell_ids == CELLS.cell_ids


def test_tokens_and_types():
    assert CELLS.tokens().tolist() == [[0, 1], [2, 5], [0, 0]]
    assert CELLS.types == ("B", "T")


def test_targets_follow_the_order_of_labels():
    assert CELLS.targets(("T", "NK", "B")).tolist() == [2, 0, 2]


def test_a_type_without_label_is_named():
    with pytest.raises(TrainingError, match=r"1 cell type\(s\).*'T'"):
        CELLS.targets(("B",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_types": ("B",)}, "one entry a cell"),
        ({"batches": ()}, "one entry a cell"),
        ({"cell_ids": ("a:1", "a:1", "b:1")}, "more than once, such as .'a:1'"),
        ({"expression": CELLS.expression.astype(np.float64)}, "float32 matrix"),
        ({"expression": CELLS.expression[:, 0]}, "float32 matrix"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        replace(CELLS, **change)


def test_joining_cells_of_two_panels_is_refused():
    with pytest.raises(TrainingError, match=r"panels of \[2, 3\] genes"):
        LabelledCells.concatenate([CELLS, LabelledCells.empty(3)])
