"""Every rule of the policy holds where it should, and fails alone where it should."""

import copy

import pytest

from canal.config.sections import Policy
from canal.core.errors import PolicyError
from canal.registry.promotion.comparing import Comparison, Sampling, StageComparison, compare_answers
from canal.registry.promotion.policy import Evidence, blocking_rulings, judge, override

SAMPLING = Sampling(0.95, 500, 0)
EVALUATION = {
    "stage": "second",
    "row": {"first": 0.9, "second": 0.9},
    "per_stage": {"second": {"n": 50}},
    "not_measured": {},
    "novelty": {"h_score": 0.5},
    "calibration": {"ece": 0.1, "low": 0.05, "high": 0.15, "n": 100},
}


def pair(n, lost):
    return compare_answers(["B"] * n, ["B"] * n, ["T"] * lost + ["B"] * (n - lost), SAMPLING)


def comparison(lost=0, lost_of_type=0, not_compared=None):
    one = StageComparison(pair(200, lost), {"B": pair(40, lost_of_type)}, {"NK": 4})
    gone = not_compared or {}
    return Comparison(1, 2, {"first": one, "second": one}, gone, ("first", *gone))


def evidence(**changes):
    document = {
        "evaluation": copy.deepcopy(EVALUATION),
        "verdict": {"passed": True, "prepared_sha256": "d"},
        "record": {"git_commit": "c" * 40, "dirty": False},
        "key": {"data": {"prepared_sha256": "d"}},
        "findings": [],
        "comparison": comparison(),
    }
    return Evidence(**document | changes)


def changed(**changes):
    return evidence(evaluation=EVALUATION | changes)


def test_a_good_version_passes_and_few_cells_are_said():
    rulings = judge(Policy(), evidence())
    assert blocking_rulings(rulings) == []
    few = next(ruling for ruling in rulings if ruling.value == "too few to judge")
    assert "NK (4)" in few.note


def test_the_first_promotion_skips_what_compares_and_says_so():
    rulings = judge(Policy(), evidence(comparison=None))
    assert blocking_rulings(rulings) == []
    assert any("first promotion" in ruling.note for ruling in rulings)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("accuracy", changed(row={"second": 0.69})),
        ("accuracy", changed(row={"second": None}, not_measured={"second": "few cells"})),
        ("h_score", changed(novelty={"h_score": 0.05})),
        ("h_score", changed(novelty={"h_score": None})),
        ("ece", changed(calibration={"ece": 0.3, "low": 0.2, "high": 0.4, "n": 9})),
        ("ece", changed(calibration=None)),
        ("gate", evidence(verdict={"passed": False, "prepared_sha256": "d"})),
        ("gate", evidence(verdict={"passed": True, "prepared_sha256": "other"})),
        ("audit", evidence(findings=["version 2: bank/bank.h5ad changed"])),
        ("clean", evidence(record={"git_commit": "c" * 40, "dirty": True})),
        ("clean", evidence(record={"git_commit": None, "dirty": True})),
        ("retention:first", evidence(comparison=comparison(lost=40))),
        ("retention:first/B", evidence(comparison=comparison(lost_of_type=12))),
        ("retention:old", evidence(comparison=comparison(not_compared={"old": "cells are gone"}))),
    ],
)
def test_each_rule_fails_alone_and_can_be_overridden(rule, given):
    rulings = judge(Policy(), given)
    assert [ruling.rule for ruling in blocking_rulings(rulings)] == [rule]
    passed = override(rulings, [rule])
    assert blocking_rulings(passed) == []
    assert [ruling.rule for ruling in passed if ruling.overridden] == [rule]


def test_retention_judges_the_interval_not_the_mean():
    """Sixteen of 200 lost is less than a tenth, but it is not shown that no more are lost."""
    ruling = next(
        one
        for one in judge(Policy(), evidence(comparison=comparison(lost=16)))
        if one.rule == "retention:first"
    )
    assert not ruling.passed
    assert "change -0.080 [-0.1" in ruling.note


def test_overriding_what_passes_changes_nothing_and_an_unknown_rule_is_refused():
    rulings = judge(Policy(), evidence())
    assert override(rulings, ["accuracy"]) == rulings
    with pytest.raises(PolicyError, match="no rule 'nonsense'.*gate, audit, clean, accuracy"):
        override(rulings, ["nonsense"])


def test_a_pattern_overrides_each_rule_by_its_own_name():
    rulings = judge(Policy(), evidence(comparison=comparison(lost=40, lost_of_type=12)))
    passed = override(rulings, ["retention:*"])
    assert blocking_rulings(passed) == []
    assert [one.rule for one in passed if one.overridden] == ["retention:first", "retention:first/B"]


def test_only_stages_that_the_champion_learned_are_to_be_kept():
    rules = [ruling.rule for ruling in judge(Policy(), evidence())]
    assert "retention:first" in rules
    assert not [rule for rule in rules if rule.startswith("retention:second")]
