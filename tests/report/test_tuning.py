"""A study on a terminal, in figures and on the page: the published point and the choice are marked."""

import pytest

from canal.report.figures import save
from canal.report.page import write_report
from canal.report.study_figures import front_rows, lambda_by_l, pareto_front, tuning_figures, tuning_table
from tests.report.test_figures import test_nothing_is_clipped_and_no_tick_labels_overlap as check_layout
from tests.report.test_figures import texts
from tests.report.test_page import Page
from tests.report.test_terminal import rendered
from tests.support.reports import make_reports
from tests.support.studies import RULE, make_tuned


@pytest.fixture(scope="module")
def drawn():
    return tuning_figures(make_tuned())


def test_the_table_holds_the_front_with_both_points_marked():
    said = rendered(tuning_table(make_tuned()))
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    (published,) = [line.split() for line in lines if "published" in line]
    assert published == ["0", "0.1", "200", "61.0", "95.0", "0.733", "published,", "beaten"]
    (chosen,) = [line.split() for line in lines if line.split()[-1:] == ["chosen"]]
    assert chosen[:4] == ["6", "0.871", "100", "64.0"]
    assert [row["number"] for row in front_rows(make_tuned())] == [1, 6, 0, 4]
    assert "166 validation cells" in said
    assert "142 probe cells of pbmc" in said
    assert "another run" not in said


def test_what_is_out_of_the_ordinary_is_said():
    rule = {"name": "harmonic_mean", "min_retention": 0.99, "below": True}
    odd = make_tuned(rule=rule, reproducible=False, because=["max_minutes ended it after 3 of 8 trials"])
    said = rendered(tuning_table(odd))
    assert "no trial keeps 99 % of the past" in said
    assert "max_minutes ended it" in said


def test_it_is_said_that_the_published_point_was_kept_for_want_of_certainty():
    unsure = make_tuned(chosen=0, rule=RULE | {"least_gain": 1.0, "passed_over": 6})
    said = " ".join(rendered(tuning_table(unsure), width=200).split())
    assert "trial 6 looks better than the published point by too little to be sure (least_gain 1)" in said
    assert "166 validation cells of its own (types count alike: no surer than 63.7 cells)" in said
    assert "looks better" not in rendered(tuning_table(make_tuned()))


def test_settings_that_are_tuned_as_well_have_their_column():
    document = make_tuned()
    for trial in document["trials"]:
        trial["settings"]["label_smoothing"] = 0.125
    document["choice"]["label_smoothing"] = 0.125
    said = rendered(tuning_table(document), width=110)
    assert "label_smoothing" in said
    assert said.count("0.125") == 4


def test_figures_mark_the_published_point_and_the_choice(drawn):
    assert set(drawn) == {"pareto_front", "lambda_by_l", "optimisation", "importances"}
    for name in ("pareto_front", "lambda_by_l", "optimisation"):
        words = texts(drawn[name])
        assert "published: λ = 0.1, L = 1,000 (here 200)" in words
        assert "chosen: λ = 0.871, L = 100" in words
    assert "0" in texts(drawn["lambda_by_l"])
    assert "What mattered in 5 finished trials" in texts(drawn["importances"])


def test_figures_are_whole(drawn):
    check_layout(drawn)


def test_figures_are_the_same_bytes_again(tmp_path):
    for draw in (lambda_by_l, pareto_front):
        first, again = (save(draw(make_tuned()), tmp_path / f"{name}.png").read_bytes() for name in "ab")
        assert first == again


def test_one_finished_trial_is_enough_for_the_figures(tmp_path):
    one = make_tuned()
    few = {**one, "trials": one["trials"][:1], "front": [0], "chosen": 0, "importances": {}}
    found = tuning_figures(few)
    assert "importances" not in found
    check_layout(found)


def test_the_page_shows_the_study(tmp_path):
    newest = make_reports(tuned=make_tuned("tumour-myeloid"))[-1]
    text = write_report([newest], tmp_path / "index.html").read_text(encoding="utf-8")
    words = Page(text).text
    assert "How λ and L were chosen" in words
    assert "A study of 8 trials of 4 epochs (5 to their end, 2 ended early, 1 failed)" in words
    assert "0 published beaten 0.1 200" in words
    assert text.count("How λ and L were chosen") == 1
    assert "Value of the trials over λ and L." in text
