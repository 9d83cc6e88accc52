"""Every rule of the policy holds where it should, and fails alone where it should."""

import copy

import numpy as np
import pytest
from scipy.stats import binom

from canal.config.decisions import Policy
from canal.core.errors import PolicyError
from canal.registry.ledger.rulings import in_percent
from canal.registry.promotion.comparing import (
    Comparison,
    Sampling,
    StageComparison,
    compare_answers,
    power_of,
)
from canal.registry.promotion.policy import (
    Evidence,
    blocking_rulings,
    judge,
    mean_interval,
    override,
    power_text,
    share_interval,
)
from canal.report.registry_tables import rulings_table
from tests.report.test_terminal import rendered

SAMPLING = Sampling(0.95, 500, 0)


def measured(n, recall):
    by_type = {name: {"n": cells, "recall": share} for name, (cells, share) in recall.items()}
    return {
        "n": n,
        "recall": by_type,
        "balanced_accuracy": sum(share for _, share in recall.values()) / len(recall),
    }


EVALUATION = {
    "stage": "second",
    "row": {"first": 0.9, "second": 0.9},
    "per_stage": {"second": measured(200, {"B": (100, 0.95), "T": (100, 0.85)})},
    "not_measured": {},
    "novelty": {"h_score": 0.5},
    "calibration": {"ece": 0.1, "low": 0.05, "high": 0.15, "n": 100},
}


def pair(n, lost):
    return compare_answers(["B"] * n, ["B"] * n, ["T"] * lost + ["B"] * (n - lost), SAMPLING)


def comparison(lost=0, lost_of_type=0, not_compared=None, n=200, too_few=()):
    one = StageComparison(pair(n, lost), {"B": pair(60, lost_of_type)}, dict(too_few))
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


def test_a_good_version_passes():
    assert blocking_rulings(judge(Policy(), evidence())) == []


def test_too_few_cells_never_hold_and_pass_for_a_reason_alone():
    few = comparison(too_few={"NK": 4, "DC": 49}, lost=40)
    rulings = judge(Policy(), evidence(comparison=few))
    unjudged = ["retention:first/NK", "retention:first/DC"]
    assert [one.rule for one in rulings if one.value == "too few to judge"] == unjudged
    assert [one.rule for one in blocking_rulings(rulings)] == ["retention:first", *unjudged]
    passed = override(rulings, (), too_few=True)
    assert [one.rule for one in passed if one.overridden] == unjudged
    assert [one.rule for one in blocking_rulings(passed)] == ["retention:first"]
    assert [one.rule for one in override(rulings, ["retention:first/NK"]) if one.overridden] == unjudged[:1]


@pytest.mark.parametrize("n", [1, 49, 50])
def test_a_stage_of_few_cells_is_not_judged_however_good(n):
    stage = changed(per_stage={"second": measured(n, {"B": (n, 1.0)})}, row={"second": 1.0})
    rulings = judge(Policy(), stage)
    unjudged = [one.rule for one in rulings if one.value == "too few to judge"]
    assert unjudged == (["accuracy", "balanced_accuracy"] if n < 50 else [])
    assert [one.rule for one in blocking_rulings(rulings)] == unjudged
    old = judge(Policy(), evidence(comparison=comparison(n=n)))
    assert [one.rule for one in blocking_rulings(old)] == (["retention:first"] if n < 50 else [])
    assert blocking_rulings(judge(Policy(min_cells_per_stage=1, min_accuracy=0), stage))[1:] == []


def test_accuracies_are_judged_at_the_lower_end_of_their_interval():
    """0.74 of 100 cells may be 0.65; of 1,000 it is more than 0.7."""
    for n, passed in ((100, False), (1000, True)):
        stage = {"second": measured(n, {"B": (n // 2, 0.74), "T": (n // 2, 0.74)})}
        rulings = {one.rule: one for one in judge(Policy(), changed(per_stage=stage, row={"second": 0.74}))}
        assert rulings["accuracy"].passed == passed
        assert rulings["accuracy"].value == "0.740"
        assert "judged at the lower end of [" in rulings["accuracy"].note
    few_of_a_type = measured(200, {"B": (197, 1.0), "T": (3, 0.0)})
    unsure = judge(Policy(), changed(per_stage={"second": few_of_a_type}))
    assert [one.rule for one in blocking_rulings(unsure)] == ["balanced_accuracy"]


def test_intervals_of_shares():
    """An end below 1 where all are right, and far below it for few cells."""
    low, high = share_interval(95, 100, 0.95)
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert share_interval(10, 10, 0.95)[0] == pytest.approx(0.722, abs=1e-3)
    assert share_interval(0, 10, 0.95) == pytest.approx((0, 0.278), abs=1e-3)
    wide, narrow = mean_interval([(3, 3)] * 4, 0.95), mean_interval([(300, 300)] * 4, 0.95)
    assert wide[0] < 0.75 < 0.99 < narrow[0]


@pytest.mark.parametrize(("n", "gained"), [(10, 0), (50, 0), (50, 5), (200, 0), (200, 20), (5000, 400)])
def test_the_power_of_test_cells_is_that_of_mcnemars_exact_test(n, gained):
    """Drawn again and again, the test finds the loss as often as is said."""
    share = gained / n
    shares = [0.05 + share, share, 0.95 - 2 * share]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=3000)
    lost, won, _ = drawn.T
    p = np.minimum(1, 2 * binom.cdf(np.minimum(lost, won), lost + won, 0.5))  # both tails, which are alike
    found = (lost > won) & (p <= 0.05)
    assert power_of(n, gained, 0.05, 0.95) == pytest.approx(np.mean(found), abs=0.03)


def test_more_cells_see_more_and_a_greater_loss_is_seen_sooner():
    powers = [power_of(n, n // 20, 0.05, 0.95) for n in (1, 20, 100, 500, 2000, 100_000)]
    assert powers == sorted(powers)
    assert (powers[0], powers[-1]) == (0.0, pytest.approx(1.0))
    assert power_of(100, 5, 0.2, 0.95) > power_of(100, 5, 0.1, 0.95) > power_of(100, 5, 0.1, 0.99)
    assert power_of(20, 20, 0.05, 0.95) < 0.5  # every cell gained: no share is above 1


def test_what_so_many_cells_could_show_is_said_in_words():
    notes = {one.rule: one.note for one in judge(Policy(), evidence())}
    assert notes["retention:first"].endswith("; power 0.94")
    assert notes["retention:first/B"].endswith("; power 0.08, too low")
    kept = [one for one in judge(Policy(power=0.05), evidence()) if one.rule.startswith("retention:")]
    assert all(one.note.endswith(("power 0.94", "power 0.08")) for one in kept)


def test_what_power_means_is_said_once_below_the_table():
    """It stood in every row, and the table was hardly anything else."""
    rulings = judge(Policy(), evidence())
    assert sum("power" in one.note for one in rulings) >= 2
    judgement = {
        "version": 2,
        "stage": "second",
        "champion": 1,
        "compared_with": {"version": 1, "stage": "first"},
        "rulings": [one.to_json() for one in rulings],
        "power": power_text(Policy(), rulings),
    }
    lines = rendered(rulings_table(judgement), 300)
    assert lines.count("would show a loss of 5 points; below 0.8 (too low)") == 1
    assert lines.rstrip().splitlines()[-1].startswith("power: the probability that so many test cells")
    del judgement["power"]
    assert "the probability" not in rendered(rulings_table(judgement), 300)


def test_the_first_stage_has_nothing_to_be_compared_with_and_says_so():
    rulings = judge(Policy(), evidence(comparison=None))
    assert blocking_rulings(rulings) == []
    assert any("no version serves yet" in ruling.note for ruling in rulings)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("accuracy", changed(row={"second": 0.69})),
        ("balanced_accuracy", changed(per_stage={"second": measured(200, {"B": (199, 1), "T": (1, 0)})})),
        ("balanced_accuracy", changed(per_stage={"second": {"n": 200}})),
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
        ("retention:first/B", evidence(comparison=comparison(lost_of_type=14))),
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
    assert "change -8.0 [-1" in ruling.note


def test_people_read_shares_in_percent_and_the_ledger_keeps_them():
    rulings = {one.rule: one.to_json() for one in judge(Policy(), evidence(comparison=comparison(lost=16)))}
    share = rulings["accuracy"]["value"]
    assert float(share) <= 1
    assert in_percent(rulings["accuracy"]) == (f"{100 * float(share):.1f} %", ">= 70.0 %")
    assert in_percent(rulings["retention:first"])[1] == "loses <= 10.0 points"
    assert in_percent(rulings["ece"]) == (rulings["ece"]["value"], rulings["ece"]["bound"])
    assert in_percent(rulings["audit"]) == ("0 findings", "none")
    assert in_percent(rulings["clean"])[0] == rulings["clean"]["value"]


def test_overriding_what_passes_changes_nothing_and_an_unknown_rule_is_refused():
    rulings = judge(Policy(), evidence())
    assert override(rulings, ["accuracy"]) == rulings
    with pytest.raises(PolicyError, match="no rule 'nonsense'.*gate, audit, clean, accuracy"):
        override(rulings, ["nonsense"])


def test_a_pattern_overrides_each_rule_by_its_own_name():
    rulings = judge(Policy(), evidence(comparison=comparison(lost=40, lost_of_type=14)))
    passed = override(rulings, ["retention:*"])
    assert blocking_rulings(passed) == []
    assert [one.rule for one in passed if one.overridden] == ["retention:first", "retention:first/B"]


def test_only_stages_that_the_champion_learned_are_to_be_kept():
    rules = [ruling.rule for ruling in judge(Policy(), evidence())]
    assert "retention:first" in rules
    assert not [rule for rule in rules if rule.startswith("retention:second")]
