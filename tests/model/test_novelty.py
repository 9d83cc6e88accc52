import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.errors import ModelError
from canal.model.novelty import Blend, NoveltyRule

RULE = NoveltyRule(temperature=0.8, energy_low=-4.0, energy_high=0.0, threshold=0.5)
LOGITS = np.zeros((1, 2))
BLEND = Blend(float(RULE.score(LOGITS)[0]), 0.1, 50.0, 10.0)
BLENDED = replace(RULE, blend=BLEND)


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
    assert NoveltyRule.from_json(json.loads(json.dumps(BLENDED.to_json()))) == BLENDED


def test_a_rule_from_before_distances_is_written_as_it_was():
    assert set(RULE.to_json()) == {"temperature", "energy_low", "energy_high", "threshold"}


def test_a_blend_counts_both_in_standard_deviations():
    usual = BLENDED.score(LOGITS, np.array([50.0]))
    assert usual == pytest.approx(0.5)
    up = 0.5 + 0.5 * math.tanh((0.1 / 0.1) / 4)
    assert BLENDED.score(LOGITS, np.array([60.0])) == pytest.approx(up)
    assert BLENDED.score(LOGITS, np.array([1e9])) == 1.0


def test_a_blend_needs_distances():
    with pytest.raises(ModelError, match="needs the cells' distances"):
        BLENDED.score(LOGITS)


@pytest.mark.parametrize("blend", [{"score_mean": 0.3}, [], {**BLEND.__dict__, "score_spread": 0.0}])
def test_a_blend_that_makes_no_sense_is_refused(blend):
    with pytest.raises(ModelError, match="blend"):
        NoveltyRule.from_json(BLENDED.to_json() | {"blend": blend})


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
