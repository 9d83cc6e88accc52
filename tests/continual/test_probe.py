from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.config.stage_sections import Exclusion
from canal.continual.bank import Probe, choose_probe, extend
from canal.core.errors import TrainingError
from tests.support.learning import make_cells

TYPES = ["A"] * 60 + ["B"] * 30 + ["C"] * 9 + ["D"]


def test_types_are_chosen_in_proportion_and_none_is_left_out():
    chosen = choose_probe(make_cells(TYPES), 20, seed=0)
    assert len(chosen) == 20
    assert Counter(chosen.cell_types) == {"A": 11, "B": 6, "C": 2, "D": 1}


def test_few_cells_are_all_taken():
    cells = make_cells(TYPES)
    assert choose_probe(cells, 500, seed=0).cell_ids == cells.cell_ids


def test_fewer_cells_than_types_are_still_at_most_that_many():
    assert len(choose_probe(make_cells(TYPES), 2, seed=0)) == 2


@settings(deadline=None)
@given(st.lists(st.sampled_from("ABCD"), max_size=40), st.integers(1, 30), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_rows(types, size, random):
    cells = make_cells(types)
    shuffled = cells.take(random.sample(range(len(cells)), len(cells)))
    chosen = choose_probe(cells, size, seed=3)
    assert choose_probe(shuffled, size, seed=3).cell_ids == chosen.cell_ids
    assert len(chosen) == min(size, len(cells))


def test_another_seed_chooses_other_cells():
    cells = make_cells(TYPES)
    assert choose_probe(cells, 20, seed=0).cell_ids != choose_probe(cells, 20, seed=1).cell_ids


def test_stages_accumulate_and_come_back_from_a_file(tmp_path):
    probe = extend(Probe.empty(3), make_cells(["A", "B"], "second"))
    probe = extend(probe, make_cells(["C"], "first"))
    probe.save(tmp_path / "probe.h5ad", ("CD4", "CD14", "LYZ"))
    again = Probe.load(tmp_path / "probe.h5ad", ("CD4", "CD14", "LYZ"))
    assert again.cells.stage_names == ("second", "first")
    assert again.cells.cell_ids == probe.cells.cell_ids


def test_a_stage_is_added_once():
    probe = extend(Probe.empty(3), make_cells(["A"]))
    with pytest.raises(TrainingError, match="already holds cells of first"):
        extend(probe, make_cells(["A"], ids=["other"]))


def test_excluded_cells_leave():
    probe = Probe(make_cells(["A", "A"], ids=["p", "q"]))
    assert probe.without_excluded({"first": Exclusion(cells=("q",))}).cells.cell_ids == ("first:p",)
