import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.errors import ModelError
from canal.model.novelty import NoveltyRule

RULE = NoveltyRule(temperature=0.8, energy_low=-4.0, energy_high=0.0, threshold=0.5)


def test_energy_by_hand():
    # -0.8 log(e^(0/0.8) + e^(0/0.8)) = -0.8 log 2, scaled from -4...0 to 0...1
    expected = (-0.8 * math.log(2) + 4) / 4
    assert RULE.energy(np.zeros((1, 2)))[0] == pytest.approx(expected)


def test_score_by_hand():
    energy = (-0.8 * math.log(2) + 4) / 4
    assert RULE.score(np.zeros((1, 2)))[0] == pytest.approx((energy + 1 - 0.5) / 2)


def test_energy_is_clipped_to_its_bounds():
    assert RULE.energy(np.array([[50.0, 0.0], [-50.0, -50.0]])).tolist() == [0.0, 1.0]


def test_novel_is_strictly_above_the_threshold():
    assert RULE.is_novel(np.array([0.4, 0.5, 0.6])).tolist() == [False, False, True]


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_scores_lie_between_0_and_1_and_are_each_cells_own(rows):
    logits = np.array(rows)
    scores = RULE.score(logits)
    assert ((scores >= 0) & (scores <= 1)).all()
    alone = [RULE.score(logits[i : i + 1])[0] for i in range(len(logits))]
    assert scores.tolist() == pytest.approx(alone)


def test_json_and_back():
    assert NoveltyRule.from_json(RULE.to_json()) == RULE


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"energy_high": -4.0},
        {"threshold": math.nan},
        {"threshold": "0.5"},
        {"threshold": True},
        {"extra": 1.0},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change):
    with pytest.raises(ModelError, match="novelty rule"):
        NoveltyRule.from_json(RULE.to_json() | change)
