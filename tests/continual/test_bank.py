from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.config.stage_sections import Exclusion
from canal.continual.bank import Bank, admit, cut, rank_candidates
from canal.continual.cells import LabelledCells
from canal.core.errors import ModelError, TrainingError
from tests.support.learning import make_cells

LABELS = ("A", "B", "C")
GENES = ("CD4", "CD14", "LYZ")


def ranked(cells):
    """Return ranks where the representation is the expression, and the prototypes of x and y are the axes."""
    return rank_candidates(cells, cells.expression, np.eye(2, dtype=np.float32), ("x", "y"))


def bank_of(types, ranks, stage="first", ids=None):
    return Bank(make_cells(types, stage, ids=ids), np.array(ranks, dtype=np.int64), (stage,))


@st.composite
def stages(draw):
    """An old bank with gaps and ties in its ranks, and ranked candidates."""

    def cells(stage, ranks):
        types = draw(st.lists(st.sampled_from(LABELS), min_size=0, max_size=25))
        return make_cells(types, stage), np.array([draw(ranks) for _ in types], dtype=np.int64)

    old, old_ranks = cells("first", st.integers(1, 9))
    new, new_ranks = cells("second", st.integers(1, 9))
    return Bank(old, old_ranks, ("first",)), new, new_ranks


def test_candidates_are_ranked_by_their_prototype_alone():
    expression = np.array([[1, 9], [3, 0], [2, 0], [0, 1], [7, 2]])
    cells = make_cells(["x", "x", "x", "y", "y"], expression=expression, n_genes=2)
    assert ranked(cells).tolist() == [3, 1, 2, 2, 1]


def test_equal_candidates_are_ranked_by_id():
    cells = make_cells(["x", "x", "x"], expression=np.ones((3, 2)), ids=["c", "a", "b"])
    assert ranked(cells).tolist() == [3, 1, 2]


def test_a_candidate_without_label_is_refused():
    with pytest.raises(TrainingError, match="'z'"):
        ranked(make_cells(["z"], n_genes=2))


def test_old_and_new_share_the_quota_and_old_ranks_stay():
    old = bank_of(["A", "A", "B"], [1, 3, 1])
    new = make_cells(["A", "A", "A", "C"], "second")
    bank = admit(old, new, np.array([1, 2, 3, 1]), LABELS, capacity=10)
    kept = list(zip(bank.cells.cell_ids, bank.ranks.tolist(), strict=True))
    assert kept == [
        ("first:c000", 1),
        ("second:c000", 1),
        ("second:c001", 2),  # rank 2 of the new stage beats rank 3 of the old one
        ("first:c002", 1),
        ("second:c003", 1),
    ]
    assert bank.stages == ("first", "second")


def test_a_tie_goes_to_the_older_stage_then_to_the_smaller_id():
    old = bank_of(["A", "A"], [1, 1], stage="zebra", ids=["b", "a"])
    bank = admit(old, make_cells(["A"], "ant"), np.array([1]), ("A",), capacity=2)
    assert bank.cells.cell_ids == ("zebra:a", "zebra:b")


def test_the_age_of_stages_outlives_a_file(tmp_path):
    both = admit(bank_of(["A"], [1], "zebra"), make_cells(["A"], "ant"), np.array([1]), ("A",), capacity=9)
    both.save(tmp_path / "bank.h5ad", GENES)
    bank = Bank.load(tmp_path / "bank.h5ad", GENES)
    assert bank.stages == ("zebra", "ant")
    assert cut(bank, 1, 1).cells.cell_ids == ("zebra:c000",)


def test_a_capacity_below_the_number_of_types_is_refused():
    with pytest.raises(TrainingError, match=r"bank\.capacity is 2.*at least 3"):
        admit(Bank.empty(3), make_cells(["A"]), np.array([1]), LABELS, capacity=2)
    with pytest.raises(TrainingError, match=r"continual\.bank_size is 2"):
        cut(bank_of(["A"], [1]), 2, 3)


def test_a_candidate_that_the_bank_holds_is_refused():
    with pytest.raises(TrainingError, match="more than once"):
        admit(bank_of(["A"], [1]), make_cells(["A"]), np.array([1]), LABELS, capacity=9)


def test_ranks_must_be_whole_numbers_from_one_up():
    with pytest.raises(TrainingError, match="from 1 up"):
        bank_of(["A"], [0])
    with pytest.raises(TrainingError, match="from 1 up"):
        Bank(make_cells(["A"]), np.array([1.5]), ("first",))


@settings(deadline=None)
@given(stages(), st.integers(3, 40))
def test_the_quota_is_exact(given_cells, capacity):
    old, new, ranks = given_cells
    bank = admit(old, new, ranks, LABELS, capacity)
    there = Counter(old.cells.cell_types) + Counter(new.cell_types)
    quota = capacity // len(LABELS)
    assert Counter(bank.cells.cell_types) == Counter({t: min(n, quota) for t, n in there.items() if quota})
    assert len(bank) <= capacity


@settings(deadline=None)
@given(stages(), st.integers(3, 40))
def test_only_given_cells_stay_with_their_ranks_and_the_worst_leave(given_cells, capacity):
    old, new, ranks = given_cells
    bank = admit(old, new, ranks, LABELS, capacity)
    rank_of = dict(zip(old.cells.cell_ids, old.ranks, strict=True)) | dict(
        zip(new.cell_ids, ranks, strict=True)
    )
    type_of = dict(
        zip((*old.cells.cell_ids, *new.cell_ids), (*old.cells.cell_types, *new.cell_types), strict=True)
    )
    kept = dict(zip(bank.cells.cell_ids, bank.ranks, strict=True))
    assert all(rank_of[cell] == rank for cell, rank in kept.items())
    worst = {t: max(kept[c] for c in kept if type_of[c] == t) for t in bank.cells.types}
    assert all(rank_of[c] >= worst[type_of[c]] for c in rank_of.keys() - kept.keys())


@settings(deadline=None)
@given(stages(), st.integers(3, 40), st.randoms())
def test_the_order_of_rows_does_not_matter(given_cells, capacity, random):
    old, new, ranks = given_cells
    order = random.sample(range(len(new)), len(new))
    straight = admit(old, new, ranks, LABELS, capacity)
    shuffled = admit(old, new.take(order), ranks[order], LABELS, capacity)
    assert straight.cells.cell_ids == shuffled.cells.cell_ids
    assert straight.ranks.tolist() == shuffled.ranks.tolist()


@settings(deadline=None)
@given(stages(), st.integers(3, 40), st.integers(3, 40))
def test_cutting_twice_is_cutting_once_to_the_smaller_size(given_cells, first, second):
    old, new, ranks = given_cells
    bank = admit(old, new, ranks, LABELS, capacity=1000)
    twice = cut(cut(bank, first, 3), second, 3)
    assert twice.cells.cell_ids == cut(bank, min(first, second), 3).cells.cell_ids


def test_a_cut_to_nothing_is_empty():
    assert len(cut(bank_of(["A", "B"], [1, 1]), 0, 2)) == 0


def test_excluded_cells_and_batches_leave_and_the_others_keep_their_ranks():
    cells = make_cells(["A"] * 4, ids=["p", "q", "r", "s"], batches=["b1", "b2", "b1", "b1"])
    bank = Bank(cells, np.array([1, 2, 3, 4]), ("first",))
    left = bank.without_excluded(
        {"first": Exclusion(cells=("p", "s:1"), batches=("b2",)), "other": Exclusion()}
    )
    assert left.cells.cell_ids == ("first:r", "first:s")
    assert left.ranks.tolist() == [3, 4]
    assert len(bank.without_excluded({"second": Exclusion(cells=("p",), batches=("b1",))})) == 4


@settings(max_examples=15, deadline=None)
@given(stages())
def test_a_file_gives_back_the_bank(tmp_path_factory, given_cells):
    old, new, ranks = given_cells
    bank = admit(old, new, ranks, LABELS, capacity=30)
    path = tmp_path_factory.mktemp("bank") / "bank.h5ad"
    bank.save(path, GENES)
    again = Bank.load(path, GENES)
    assert again.cells.cell_ids == bank.cells.cell_ids
    assert again.cells.batches == bank.cells.batches
    assert again.ranks.tolist() == bank.ranks.tolist()
    assert again.stages == bank.stages
    np.testing.assert_array_equal(again.cells.expression, bank.cells.expression)


def test_a_probe_file_is_no_bank(tmp_path):
    from canal.continual.bank import Probe

    Probe(LabelledCells.empty(3)).save(tmp_path / "probe.h5ad", GENES)
    with pytest.raises(ModelError, match="rank"):
        Bank.load(tmp_path / "probe.h5ad", GENES)
