"""The sentences that head the page of a version."""

from canal.report.version_page import verdict


def compared(*stages, lost=None):
    """Describe a version beside another, by the change on each stage as (name, low, difference, high)."""
    change = None if lost is None else {"champion": 1.0, "candidate": 0.74, "difference": -0.26, "high": -0.1}
    pairs = {name: {"low": low, "difference": middle, "high": high} for name, low, middle, high in stages}
    return {
        "against": {"number": 1},
        "comparison": {"stages": pairs},
        "types": [
            {"cell_type": "B", "stage": "kang-ctrl", "change": change, "low": 0.6, "high": 0.86},
            {"cell_type": "T", "stage": "kang-ctrl", "change": None, "low": 0.0, "high": 1.0},
        ],
    }


def test_the_verdict_says_where_most_was_gained_and_lost_and_by_how_much():
    stages = [("kang-ctrl", 0.011, 0.032, 0.054), ("pbmc3k", 0.001, 0.002, 0.003)]
    said = verdict(compared(*stages, ("tumour", -0.05, -0.03, -0.01), ("own", -0.01, 0.0, 0.01), lost=True))
    assert said == (
        "Better on 2 of 4 stages (kang-ctrl +3.2 points [+1.1, +5.4]); "
        "worse on 1 (tumour −3.0 points [−5.0, −1.0]); B of kang-ctrl lost: 100 → 74 % [60, 86]."
    )


def test_a_verdict_without_a_shown_change_names_no_stage():
    said = verdict(compared(("own", -0.01, 0.004, 0.01)))
    assert said == "Better on none of 1 stage; worse on none; no type is shown to have lost."
