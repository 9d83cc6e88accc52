"""The page of a version in a real browser: `make browser`."""

from __future__ import annotations

import pytest

from canal.app.reviewing import write_pages
from canal.app.versions import backward
from canal.report.lineage_page import write_lineage
from tests.pipeline.conftest import copied

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def written(learned, tmp_path_factory):
    """Give the page of the newest version of a learned project, and its document."""
    line = copied(learned[0], tmp_path_factory.mktemp("page") / "project")
    return write_pages(line.project(), line.root / "report")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_whole_and_readable(written, opened, width, scheme):
    path, document = written
    one = opened(path.as_uri(), width, scheme)
    assert one.errors == []
    assert one.asked == [path.as_uri()]
    assert one.overflow <= 0
    charts = one.page.locator(".chart")
    assert charts.count() >= 5
    for place in range(charts.count()):
        assert charts.nth(place).locator("svg").count() == 1, charts.nth(place).get_attribute("id")
    assert one.violations() == []


def test_tables_sort_and_charts_answer(written, opened):
    path, document = written
    page = opened(path.as_uri()).page
    table = page.locator("#types table")
    table.get_by_role("button", name="Recall").click()
    head = table.locator("th[aria-sort]")
    assert (head.count(), head.get_attribute("aria-sort")) == (1, "ascending")
    shown = [
        float(text.rstrip(" %\u00a0")) for text in table.locator("tbody tr td:nth-child(4)").all_inner_texts()
    ]
    assert shown == sorted(shown)
    table.get_by_role("button", name="Recall").click()
    assert table.locator("tbody tr td:nth-child(4)").first.inner_text().startswith(str(max(shown))[:4])
    chosen = page.locator("#confusion select")
    stages = document["evaluation"]["stages"]
    assert chosen.input_value() == stages[-1]
    before = page.locator("#confusion svg").inner_html()
    chosen.select_option(stages[0])
    page.wait_for_timeout(300)
    assert page.locator("#confusion svg").inner_html() != before
    for place, (_, link) in enumerate([("rules", "Rules"), ("card", "Model card")]):
        page.locator(".index").get_by_text(link, exact=True).click()
        assert page.url.endswith(("#rules", "#card")[place])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_lineage_is_whole_and_its_boxes_lead_to_their_facts(
    learned, opened, tmp_path, width, scheme
):
    path = write_lineage(backward(learned[0].project(), "2"), tmp_path / "lineage.html")
    one = opened(path.as_uri(), width, scheme)
    assert one.errors == []
    assert one.overflow <= 0
    assert one.violations() == []
    box = one.page.locator("svg a.box.version").first
    box.click()
    assert one.page.locator(":target h3").inner_text().startswith("canal-annotator ")


def test_it_prints(written, opened, tmp_path):
    page = opened(written[0].as_uri()).page
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
