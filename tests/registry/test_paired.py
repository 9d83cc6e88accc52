"""Two models on the same cells: counts, interval and test against hand-made cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.registry.promotion.comparing import Sampling, compare_answers

SAMPLING = Sampling(confidence=0.95, resamples=2000, seed=0)


def pair(lost, gained, both=0, neither=0):
    truth = ["B"] * (lost + gained + both + neither)
    champion = ["B"] * lost + ["T"] * gained + ["B"] * both + ["T"] * neither
    candidate = ["T"] * lost + ["B"] * gained + ["B"] * both + ["T"] * neither
    return compare_answers(truth, champion, candidate, SAMPLING)


def test_counts_and_accuracies():
    found = pair(lost=3, gained=1, both=14, neither=2)
    assert (found.n, found.lost, found.gained) == (20, 3, 1)
    assert (found.champion, found.candidate) == (17 / 20, 15 / 20)
    assert found.difference == pytest.approx(-0.1)
    assert found.p == pytest.approx(0.625)  # two-sided binomial test of 1 in 4
    assert found.low < found.difference < found.high


def test_equal_models_differ_by_nothing():
    found = pair(lost=0, gained=0, both=9, neither=1)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_interval_is_that_of_resampled_cells():
    """The multinomial draw is the bootstrap: compare it with one that draws cells."""
    import numpy as np

    found = pair(lost=12, gained=5, both=60, neither=23)
    change = np.array([-1] * 12 + [1] * 5 + [0] * 83)
    generator = np.random.default_rng(1)
    drawn = generator.choice(change, size=(4000, 100)).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


@given(lost=st.integers(0, 30), gained=st.integers(0, 30), both=st.integers(1, 50))
def test_swapping_the_models_swaps_everything(lost, gained, both):
    there, back = pair(lost, gained, both), pair(gained, lost, both)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert there.low <= there.difference <= there.high
    assert pair(lost, gained, both) == there


@pytest.mark.parametrize("answers", [([], [], []), (["B"], ["B"], []), (["B"], [], ["B"])])
def test_other_cells_are_refused(answers):
    with pytest.raises(ValueError, match="same cells"):
        compare_answers(*answers, SAMPLING)
