"""What a file's Unassigned is told to hold, and when a file is told to be shifted as a whole."""

from dataclasses import replace

import numpy as np
import pytest

from canal.annotation.summary import Likeness, shift_warning
from canal.memory.answer import ExactAnnotator
from canal.memory.prediction import Prediction, SumsRule
from canal.report.terminal import annotation_table
from tests.report.test_terminal import rendered
from tests.support.sums import make_exact, make_sums

RULE = SumsRule({"angle": (0.5, 0.1)}, 0.7)
STRAYS = {"first": 0.1, "second": 0.4}


def answer(n_like, n):
    logits = np.zeros((n, 2))
    return Prediction.of(("B", "T"), logits, logits + 0.5, None, np.arange(n) < n_like)


def about(**changes):
    return {"novelty": {"parts": {}, "threshold": 0.5}, "strays": STRAYS, **changes}


def likeness(*answers):
    found = Likeness()
    for one in answers:
        found.add(one)
    return found


@pytest.mark.parametrize(
    ("n_like", "promise", "shares"),
    [
        (10, {}, (0.05, 0.05, 0.05)),
        (0, {}, (0.1, 0.25, 0.4)),
        (5, {}, (0.075, 0.15, 0.225)),
        (10, {"false_unassigned": 0.2}, (0.2, 0.2, 0.2)),
        (5, {"false_unassigned": 0.2}, (0.15, 0.225, 0.3)),
    ],
)
def test_cells_like_the_learned_ones_keep_the_promise_and_others_what_left_out_studies_gave(
    n_like, promise, shares
):
    found = likeness(answer(n_like, 10)).to_json(about(**promise))
    assert found["like_learned"] == n_like / 10
    assert tuple(found["known_unassigned"][name] for name in ("lowest", "usual", "highest")) == shares


def test_blocks_are_counted_together_and_answers_that_cannot_tell_are_not():
    silent = replace(answer(3, 3), of_learned=None)
    assert likeness(answer(1, 4), silent, answer(3, 4)).to_json(about())["like_learned"] == 0.5


@pytest.mark.parametrize("missing", [{"strays": {}}, {"novelty": None}])
def test_nothing_is_said_where_no_study_was_left_out_or_nothing_is_unassigned(missing):
    assert likeness(answer(1, 2)).to_json(about(**missing)) == {}
    assert shift_warning({}, 1.0) == ""


def test_a_file_that_is_shifted_as_a_whole_is_told_with_figures():
    assert shift_warning(likeness(answer(5, 10)).to_json(about()), 0.1) == ""
    text = shift_warning(likeness(answer(4, 10)).to_json(about()), 0.2)
    assert text.startswith("60% of the cells lie outside of the studies that were learned")
    assert "some 17% may be Unassigned (8% to 26%" in text


def told(n_like, unassigned):
    """Return all that is told of ten cells: the table's lines and the warning."""
    study = likeness(answer(n_like, 10)).to_json(about())
    warning = shift_warning(study, unassigned / 10)
    document = {
        "n_cells": 10,
        "cell_types": {"B": 10 - unassigned, "Unassigned": unassigned},
        "values": "counts",
        "values_detected": True,
        "genes": {"found": 20, "panel": 20},
        "warnings": [warning] if warning else [],
        "study": study,
    }
    return " ".join(rendered(annotation_table(document), width=200).split())


def test_an_estimate_never_stands_beside_what_contradicts_it():
    """100 % Unassigned beside "some 25 % may be": the estimate is about cells of known types alone."""
    text = told(0, 10)
    assert "known types some" not in text
    assert "0 % of the cells lie among those of the learned studies warning: 100% of the cells" in text
    assert "100% of the cells are Unassigned, more than known types alone explain" in text
    assert "25% may be Unassigned (10% to 40%" in told(0, 3)


def test_more_unassigned_than_known_types_explain_are_likely_unknown_types():
    assert "were all of known types, some 5 % would be Unassigned: 30.0 % are, so some are likely" in told(
        10, 3
    )
    for n in (0, 0.6):  # hardly more than of a study that was left out speaks of no other type
        text = told(10, n)
        assert "were all of known types, some 5 % would be Unassigned: " in text
        assert "likely" not in text


@pytest.mark.parametrize("promise", [0.05, 0.2])
def test_a_model_keeps_its_promise_and_says_it(tmp_path, promise):
    made = replace(make_exact(make_sums()), novelty=RULE, strays=STRAYS, promise=promise)
    made.save(tmp_path / "exact")
    loaded = ExactAnnotator.load(tmp_path / "exact")
    assert (loaded.promise, loaded.strays, loaded.digest()) == (promise, STRAYS, made.digest())
    expression = np.ones((3, len(made.genes)), dtype=np.float32)
    found = likeness(replace(loaded.predict(expression), of_learned=np.ones(3, dtype=bool)))
    assert found.to_json(loaded.about())["known_unassigned"]["usual"] == promise


def test_a_model_that_says_nothing_of_its_promise_is_stored_as_before(tmp_path):
    made = replace(make_exact(make_sums()), novelty=RULE, strays=STRAYS)
    made.save(tmp_path / "exact")
    assert "false_unassigned" not in (tmp_path / "exact" / "answer.json").read_text()
    assert "false_unassigned" not in made.about()
