"""What is learned and what is kept, as one number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.tuning.attempts import Score, accuracy_by_stage, effective_cells, retention, score
from tests.support.tasks import first_learned, make_cells, second_task

shares = st.floats(0, 1)


@given(shares, shares)
def test_the_harmonic_mean_lies_between_both_and_is_no_good_where_one_is_none(accuracy, kept):
    mean = Score(accuracy, kept).harmonic_mean
    assert min(accuracy, kept) - 1e-12 <= mean <= max(accuracy, kept) + 1e-12
    assert Score(accuracy, 0.0).harmonic_mean == 0


def test_a_bank_has_its_price():
    assert Score(0.8, 0.8).value(0.01) == pytest.approx(0.79)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(shares, shares), min_size=1))
def test_retention_is_a_share_over_all_earlier_stages(stages):
    student = {name: one for name, (one, _) in stages.items()}
    teacher = {name: one for name, (_, one) in stages.items()}
    kept = retention(student, teacher)
    assert 0 <= kept <= 1
    assert retention(teacher, teacher) == 1
    worse = {name: one / 2 for name, one in student.items()}
    assert retention(worse, teacher) <= kept


def test_a_stage_long_past_counts_as_much_as_the_last_one_and_a_gain_hides_no_loss():
    teacher = {"first": 0.8, "second": 0.5}
    assert retention({"first": 0.4, "second": 0.5}, teacher) == pytest.approx(0.75)
    assert retention({"first": 0.4, "second": 1.0}, teacher) == pytest.approx(0.75)
    assert retention({"first": 0.8, "second": 0.25}, teacher) == pytest.approx(0.75)


def test_what_the_teacher_never_knew_cannot_be_lost():
    assert retention({"first": 0.0}, {"first": 0.0}) == 1
    assert retention({}, {}) == 1


def test_the_score_is_that_of_new_validation_cells_and_all_probes():
    epoch = {
        "validation_balanced_accuracy": 0.6,
        "validation_accuracy": 0.9,
        "probe_accuracy": {"first": 0.4},
    }
    assert score(epoch, {"first": 0.8}) == Score(0.6, 0.5)


def test_the_teachers_accuracy_is_taken_stage_by_stage():
    teacher, probe = first_learned().annotator, second_task().probe
    found = accuracy_by_stage(teacher, probe)
    right = np.array(teacher.predict(probe.expression).labels) == np.array(probe.cell_types)
    assert found == {"first": pytest.approx(right.mean())}
    both = accuracy_by_stage(teacher, probe.concatenate([probe, make_cells({"B": 5}, "other", seed=9)]))
    assert list(both) == ["first", "other"]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0.1, 0.9))
def test_effective_cells_are_those_of_an_accuracy_as_uncertain_as_the_balanced_one(counts, recall):
    types = [name for name, n in enumerate(counts) for _ in range(n)]
    variance = sum(recall * (1 - recall) / n for n in counts) / len(counts) ** 2
    assert effective_cells(types) == pytest.approx(recall * (1 - recall) / variance)
    assert effective_cells(types) <= len(types) + 1e-9


def test_types_of_one_size_lose_no_cells_and_no_cells_are_none():
    assert effective_cells(["B", "T"] * 10) == pytest.approx(20)
    assert effective_cells([]) == 0
