import numpy as np
import pytest

from canal.memory.prediction import bin_of, calibration, expected_calibration_error


def random(seed=0):
    return np.random.default_rng(seed)


def believed(n, seed=0, honest=True):
    """Confidences that are right as often as they say, or right half the time whatever they say."""
    confidence = random(seed).uniform(0.5, 1.0, n)
    correct = random(seed + 1).random(n) < (confidence if honest else 0.5)
    return confidence, correct


def test_fifteen_bins_of_equal_width():
    assert bin_of(np.array([0.0, 0.0666, 0.0667, 0.5, 0.999, 1.0])).tolist() == [0, 0, 1, 7, 14, 14]


def test_the_error_by_hand():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5])
    correct = np.array([True, True, False, False, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx(4 / 5 * 0.4 + 1 / 5 * 0.5)


def test_bins_add_up_and_empty_ones_are_left_out():
    confidence, correct = np.array([0.9, 0.92, 0.5]), np.array([True, False, True])
    found = calibration(confidence, correct, random())
    assert [one["n"] for one in found["bins"]] == [1, 2]
    assert found["bins"][1] == {"confidence": pytest.approx(0.91), "accuracy": 0.5, "n": 2}
    assert found["n"] == 3


def test_the_interval_repeats_with_its_seed_and_holds_the_estimate():
    confidence, correct = believed(200)
    found = calibration(confidence, correct, random(5))
    assert found == calibration(confidence, correct, random(5))
    assert found["low"] <= found["ece"] <= found["high"]


def test_the_interval_tells_honest_from_boastful():
    assert calibration(*believed(400), random())["low"] < 0.01
    assert calibration(*believed(400, honest=False), random())["low"] > 0.15


def test_the_interval_covers_the_truth_where_percentiles_would_not():
    """Right half the time, sure of 0.5 to 1 evenly: the true ECE is 0.25."""
    covered = 0
    for seed in range(40):
        confidence, correct = believed(300, seed=10 * seed, honest=False)
        found = calibration(confidence, correct, random(seed))
        covered += found["low"] <= 0.25 <= found["high"]
    assert covered >= 35
