from dataclasses import replace

import pytest

from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError
from tests.support.tasks import GENES, first_task, grown_task, make_cells, second_task

NONE = LabelledCells.empty(24)


def test_labels_are_appended():
    assert first_task().labels == ("B", "T")
    assert second_task().labels == ("B", "T", "NK")


def test_genes_are_added_behind_the_parents():
    assert second_task().added_genes == first_task().added_genes == ()
    assert grown_task().added_genes == ("NEW1", "NEW2", "NEW3")


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (("NEW1", "NEW2", "NEW3", *GENES), "adds genes at the end"),
        ((*GENES, "NEW1", "NEW2", GENES[0]), f"occur more than once: .'{GENES[0]}'"),
        ((*GENES, "NEW1", "NEW2"), "train cells have 27 genes, the panel has 26"),
    ],
)
def test_a_panel_that_did_not_grow_at_its_end_is_refused(genes, message):
    with pytest.raises(TrainingError, match=message):
        replace(grown_task(), genes=genes)


def test_validation_cells_are_of_each_earlier_stage_and_this_one():
    validation_cells = second_task().validation_cells(None)
    assert list(validation_cells) == ["first", "second"]
    assert [set(cells.stages) for cells in validation_cells.values()] == [{"first"}, {"second"}]


def test_at_most_so_many_of_its_own_cells_validate_whatever_their_order():
    task = second_task()
    all_of_them = task.validation_cells(None)
    for enough in (len(task.validation), 1000):
        assert task.validation_cells(enough)["second"].cell_ids == task.validation.cell_ids
    drawn = task.validation_cells(6)
    assert len(drawn["second"]) == 6
    assert set(drawn["second"].cell_types) == set(task.validation.cell_types)
    assert set(drawn["second"].cell_ids) < set(task.validation.cell_ids)
    assert drawn["first"].cell_ids == all_of_them["first"].cell_ids
    backwards = task.validation.take(range(len(task.validation))[::-1])
    again = replace(task, validation=backwards).validation_cells(6)["second"]
    assert again.cell_ids == drawn["second"].cell_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": NONE}, "found 0 and 16"),
        ({"validation": NONE}, "found 40 and 0"),
        ({"genes": GENES[:-1]}, "train cells have 24 genes, the panel has 23"),
        ({"new_labels": ("B", "B", "T")}, "new labels must be new, found again: .'B'"),
        ({"new_labels": ("B",)}, "not among the 1 labels, such as .'T'"),
        ({"validation": first_task().train}, "40 cell.s. would both train and validate"),
        ({"replay": make_cells({"B": 3}, "old", 9)}, "no bank and no probe"),
        ({"probe": make_cells({"B": 3}, "old", 9)}, "no bank and no probe"),
    ],
)
def test_a_first_task_that_cannot_be_learned_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        first_task(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_labels": ("NK", "B")}, "found again: .'B'"),
        ({"genes": GENES[::-1]}, "not the parent's"),
        ({"replay": first_task().validation}, "both train and validate"),
        ({"probe": make_cells({"B": 3}, "second", 9)}, "probe holds cells of this stage"),
        ({"replay": make_cells({"mast": 3}, "old", 9)}, "not among the 3 labels, such as .'mast'"),
    ],
)
def test_a_later_task_that_cannot_be_learned_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        second_task(**change)
