import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canal.core.errors import ModelError
from canal.model.centroids import CentroidDistances
from canal.model.head import Blend, NoveltyRule

RULE = NoveltyRule(temperature=0.8, energy_low=-4.0, energy_high=0.0, threshold=0.5)
LOGITS = np.zeros((1, 2))
OLD_BLEND = Blend(float(RULE.score(LOGITS)[0]), 0.1, 50.0, 10.0)
BLEND = replace(OLD_BLEND, angle_mean=0.2, angle_spread=0.05)
OLD, BLENDED = (replace(RULE, blend=blend) for blend in (OLD_BLEND, BLEND))


def apart(distance, angle):
    return CentroidDistances(torch.tensor([distance]), torch.tensor([angle]))


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


@pytest.mark.parametrize("rule", [RULE, OLD, BLENDED])
def test_json_and_back(rule):
    assert NoveltyRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_rules_from_before_are_written_as_they_were():
    assert set(RULE.to_json()) == {"temperature", "energy_low", "energy_high", "threshold"}
    parts = {"score_mean", "score_spread", "distance_mean", "distance_spread"}
    assert set(OLD.to_json()["blend"]) == parts
    assert set(BLENDED.to_json()["blend"]) == parts | {"angle_mean", "angle_spread"}


def test_a_blend_counts_all_parts_in_standard_deviations():
    assert BLENDED.score(LOGITS, apart(50.0, 0.2)) == pytest.approx(0.5)
    up = 0.5 + 0.5 * math.tanh(1 / 4)
    assert BLENDED.score(LOGITS, apart(60.0, 0.2)) == pytest.approx(up)
    assert BLENDED.score(LOGITS, apart(50.0, 0.25)) == pytest.approx(up)
    assert BLENDED.score(LOGITS, apart(1e9, 0.2)) == 1.0


def test_a_blend_from_before_angles_does_not_look_at_them():
    assert OLD.score(LOGITS, apart(50.0, 0.9)) == pytest.approx(0.5)


def test_a_blend_needs_the_distances_to_the_centroids():
    with pytest.raises(ModelError, match="needs the distances of cells"):
        BLENDED.score(LOGITS)


@pytest.mark.parametrize(
    "blend",
    [
        {"score_mean": 0.3},
        [],
        {**BLEND.__dict__, "score_spread": 0.0},
        {**BLEND.__dict__, "angle_spread": 0.0},
        {**BLEND.__dict__, "angle_spread": None},
        {**OLD_BLEND.to_json(), "angle_mean": 0.2},
    ],
)
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
