import pytest

from canal.continual import evaluation as measures

TRUTH = ["A", "A", "A", "A", "B", "B"]
SAID = ["A", "A", "A", "B", "B", "C"]


def test_accuracy_and_its_kin_by_hand():
    assert measures.accuracy(TRUTH, SAID) == pytest.approx(4 / 6)
    assert measures.balanced_accuracy(TRUTH, SAID) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert measures.macro_f1(TRUTH, SAID) == pytest.approx((6 / 7 + 1 / 2) / 2)  # C is not in the truth
    assert measures.recall_by_type(TRUTH, SAID) == {
        "A": {"n": 4, "recall": 0.75},
        "B": {"n": 2, "recall": 0.5},
    }


def test_false_alarms_are_counted_by_type():
    assert measures.unassigned_by_type(["B", "A", "B", "B"], [True, False, False, True]) == {
        "A": {"n": 1, "unassigned": 0.0},
        "B": {"n": 3, "unassigned": pytest.approx(2 / 3)},
    }


def test_confusion_has_true_types_as_rows():
    assert measures.confusion(TRUTH, SAID, ["C", "B", "A"]) == [[0, 0, 0], [1, 1, 0], [0, 1, 3]]


def test_ari_ignores_names_and_is_zero_by_chance():
    assert measures.ari(["A", "A", "B"], ["x", "x", "y"]) == 1.0
    assert measures.ari(["A", "A", "B", "B"], ["x", "x", "x", "x"]) == 0.0


def test_the_matrix_by_hand():
    matrix = [[0.9], [0.8, 0.7], [0.85, 0.6, 0.5]]
    assert measures.average_accuracy(matrix) == pytest.approx((0.85 + 0.6 + 0.5) / 3)
    assert measures.backward_transfer(matrix) == pytest.approx(((0.85 - 0.9) + (0.6 - 0.7)) / 2)
    assert measures.forgetting(matrix) == pytest.approx(((0.9 - 0.85) + (0.7 - 0.6)) / 2)


def test_forgetting_looks_at_the_best_and_backward_transfer_at_the_first():
    matrix = [[0.7], [0.9, 0.5], [0.8, 0.5, 0.5]]
    assert measures.forgetting(matrix) == pytest.approx((0.1 + 0.0) / 2)
    assert measures.backward_transfer(matrix) == pytest.approx((0.1 + 0.0) / 2)


def test_the_first_stage_has_nothing_to_forget():
    assert measures.backward_transfer([[0.9]]) is None
    assert measures.forgetting([[0.9]]) is None
    assert measures.average_accuracy([[0.9]]) == 0.9


def test_what_was_not_measured_is_left_out():
    matrix = [[0.9], [None, 0.7], [None, 0.6, 0.5]]
    assert measures.average_accuracy(matrix) == pytest.approx(0.55)
    assert measures.backward_transfer(matrix) == pytest.approx(-0.1)
    assert measures.forgetting(matrix) == pytest.approx(0.1)
    assert measures.forgetting([[None], [0.5, 0.7]]) is None
    assert measures.backward_transfer([[None], [0.5, 0.7]]) is None
    assert measures.average_accuracy([[None]]) is None


def test_harmonic_mean_is_low_when_either_is():
    assert measures.harmonic_mean(0.887, 0.769) == pytest.approx(0.824, abs=5e-4)  # as published
    assert measures.harmonic_mean(1.0, 0.0) == 0.0
    assert measures.harmonic_mean(0.0, 0.0) == 0.0
