"""The page: whole, offline, escaped, and the same again."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from canal.report.documents import StageReport
from canal.report.page import write_report
from tests.support.reports import (
    make_backbone_history,
    make_digest,
    make_evaluation,
    make_history,
    make_reports,
)

pytestmark = pytest.mark.xdist_group("page")  # what its tests share is made once

EVIL = "<script>alert('x')</script>&\"$a_b{{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report" / "index.html"
    assert write_report(make_reports(), path, "canal-annotator", make_backbone_history()) == path
    return path.read_text(encoding="utf-8")


def test_the_headline_holds_the_sums_of_the_newest_model(whole):
    text = Page(whole).text
    assert "Average accuracy 86.9 %" in text
    assert "Forgetting 4.1 points" in text
    assert "Registered versions 3" in text
    assert "Cell types 13" in text


def test_the_matrix_stands_in_a_table(whole):
    rows = re.findall(r"<tr><th>tumour-myeloid</th>.*?</tr>", whole, re.DOTALL)
    assert re.findall(r">([\d.]+)</td>", rows[0])[:4] == ["3", "87.1", "79.0", "94.6"]


def test_trust_is_told_with_and_without_temperature_and_by_type(whole):
    text = Page(whole).text
    assert "Logits are divided by 0.57" in text
    assert "without that the error is 0.14" in text
    assert re.search(r"<tr><th>B</th><td class=\"n\">40</td><td class=\"n\">5\.0", whole)


def test_each_stage_has_its_key_parent_version_and_aliases(whole):
    text = Page(whole).text
    for number in (1, 2, 3):
        assert f"Key {make_digest(number)}" in text
        assert f"version {number}" in text
    assert f"Parent backbone {make_digest(0)}" in text
    assert f"Parent tumour-lymphoid {make_digest(2)}" in text
    assert "candidate" in text
    assert "champion" in text


def test_cells_warnings_and_the_bank_are_listed(whole):
    text = Page(whole).text
    assert "38 of 300 genes drift: S100A8 1.31" in text
    assert "Expected at least 0.80 of 300 panel genes. Absent genes count as zero." in text
    assert "All 111 37 37 185" in text
    assert "MDC new" in text
    assert " DC new" not in text.partition("3 tumour-myeloid version")[2]
    assert "plasma new" in text
    assert " B new" not in text.partition("2 tumour-lymphoid version")[2]
    assert "Example bank it leaves behind" in text


def test_rules_that_do_not_hold_come_first(whole):
    stage = whole.partition('id="stage-2"')[2]
    assert stage.index("panel_coverage") < stage.index("has_cells")


def test_the_page_is_offline_and_needs_no_script(whole):
    page = Page(whole)
    assert "script" not in page.tags
    assert "link" not in page.tags
    addresses = [value for name, value in page.attributes if name in {"src", "href"}]
    assert addresses
    assert all(value.startswith(("data:image/svg+xml;base64,", "#")) for value in addresses)
    assert not re.search(r"https?://|url\(|@import", whole)


def test_the_rules_link_to_great_expectations_pages_where_these_are(tmp_path):
    first, pages = make_reports()[0], tmp_path / ".canal" / "data docs" / "index.html"
    write_report([replace(first, data_docs=pages)], tmp_path / "report" / "index.html")
    links = Page((tmp_path / "report" / "index.html").read_text()).attributes
    assert ("href", "../.canal/data%20docs/index.html") in links


def test_every_figure_says_what_it_shows(whole):
    page = Page(whole)
    described = [value for name, value in page.attributes if name == "alt"]
    assert page.tags.count("img") == len(described) == 1 + 4 * 3 + 6 + 1
    assert all(described)


def test_every_link_on_the_page_leads_somewhere(whole):
    attributes = Page(whole).attributes
    places = {value for name, value in attributes if name == "id"}
    links = {value[1:] for name, value in attributes if name == "href"}
    assert links <= places


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "first.html", tmp_path / "second.html"
    for path in (first, second):
        write_report(make_reports()[:1], path, "canal-annotator", make_backbone_history())
    assert first.read_bytes() == second.read_bytes()


def test_whatever_a_user_named_is_escaped(tmp_path):
    evaluation = make_evaluation(1)
    entry = evaluation["per_stage"].pop("pbmc")
    entry["recall"] = {EVIL: {"n": 3, "recall": 0.5}}
    entry["confusion"] = {"labels": [EVIL], "counts": [[3]]}
    evaluation.update(stage=EVIL, stages=[EVIL], labels=[EVIL], row={EVIL: 0.9}, per_stage={EVIL: entry})
    evaluation.update(probe={}, not_measured={EVIL: EVIL})
    evaluation["novelty"]["holdouts"][0]["type"] = EVIL
    rule = dict.fromkeys(("rule", "expected", "found", "hint"), EVIL)
    report = StageReport(
        name=EVIL,
        evaluation=evaluation,
        history=make_history(1),
        verdict={
            "passed": False,
            "rules": [{**rule, "severity": "error", "passed": False, "examples": [EVIL]}],
        },
        key={"parent": EVIL},
        key_digest=EVIL,
        cells={EVIL: {"train": 3}},
        bank={EVIL: {EVIL: 3}},
        version=1,
        aliases=[EVIL],
    )
    text = write_report([report], tmp_path / "index.html", EVIL).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count("alert('x')") >= 15
    assert "{{ 7 * 7 }}" in page.text


def test_a_stage_with_the_least_that_is_known(tmp_path):
    evaluation = make_evaluation(2)
    evaluation["per_stage"].pop("pbmc")
    evaluation.update(not_measured={"pbmc": "its source is not available"}, matrix=[[0.9], [None, 0.8]])
    report = StageReport("tumour-lymphoid", evaluation, make_history(2))
    text = Page(write_report([report], tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "not measured: its source is not available" in text
    assert "Registered versions 0" in text
    assert "Example bank" not in text
    assert "What came in" not in text
    assert "Key " not in text.partition("Terms")[0]


def test_a_page_before_the_first_stage(tmp_path):
    text = Page(write_report([], tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "No stage has been learned and measured yet. canal run does both." in text
