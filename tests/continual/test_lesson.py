from dataclasses import replace

import pytest

from canal.continual.cells import LabelledCells
from canal.core.errors import TrainingError
from tests.continual.lessons import GENES, first_lesson, grown_lesson, make_cells, second_lesson

NONE = LabelledCells.empty(24)


def test_labels_are_appended():
    assert first_lesson().labels == ("B", "T")
    assert second_lesson().labels == ("B", "T", "NK")


def test_genes_are_added_behind_the_parents():
    assert second_lesson().added_genes == first_lesson().added_genes == ()
    assert grown_lesson().added_genes == ("NEW1", "NEW2", "NEW3")


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
        replace(grown_lesson(), genes=genes)


def test_judges_are_each_earlier_stage_and_this_one():
    judges = second_lesson().judges(None)
    assert list(judges) == ["first", "second"]
    assert [set(cells.stages) for cells in judges.values()] == [{"first"}, {"second"}]


def test_at_most_so_many_of_its_own_cells_judge_whatever_their_order():
    lesson = second_lesson()
    all_of_them = lesson.judges(None)
    for enough in (len(lesson.validation), 1000):
        assert lesson.judges(enough)["second"].cell_ids == lesson.validation.cell_ids
    drawn = lesson.judges(6)
    assert len(drawn["second"]) == 6
    assert set(drawn["second"].cell_types) == set(lesson.validation.cell_types)
    assert set(drawn["second"].cell_ids) < set(lesson.validation.cell_ids)
    assert drawn["first"].cell_ids == all_of_them["first"].cell_ids
    backwards = lesson.validation.take(range(len(lesson.validation))[::-1])
    again = replace(lesson, validation=backwards).judges(6)["second"]
    assert again.cell_ids == drawn["second"].cell_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": NONE}, "found 0 and 16"),
        ({"validation": NONE}, "found 40 and 0"),
        ({"genes": GENES[:-1]}, "train cells have 24 genes, the panel has 23"),
        ({"new_labels": ("B", "B", "T")}, "new labels must be new, found again: .'B'"),
        ({"new_labels": ("B",)}, "not among the 1 labels, such as .'T'"),
        ({"validation": first_lesson().train}, "40 cell.s. would both train and validate"),
        ({"replay": make_cells({"B": 3}, "old", 9)}, "no bank and no probe"),
        ({"probe": make_cells({"B": 3}, "old", 9)}, "no bank and no probe"),
    ],
)
def test_a_first_lesson_that_cannot_be_learned_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        first_lesson(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_labels": ("NK", "B")}, "found again: .'B'"),
        ({"genes": GENES[::-1]}, "not the parent's"),
        ({"replay": first_lesson().validation}, "both train and validate"),
        ({"probe": make_cells({"B": 3}, "second", 9)}, "probe holds cells of this stage"),
        ({"replay": make_cells({"mast": 3}, "old", 9)}, "not among the 3 labels, such as .'mast'"),
    ],
)
def test_a_later_lesson_that_cannot_be_learned_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        second_lesson(**change)
