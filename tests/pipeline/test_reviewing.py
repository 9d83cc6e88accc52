"""The page of a version: what a reviewer reads before it serves, from real versions of a learned project."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from shutil import rmtree
from typing import Any
from zipfile import ZipFile

import pytest
from markupsafe import escape
from ruamel.yaml import YAML
from typer.testing import CliRunner
from vl_convert import vegalite_to_vega

from canal.app import cell_layout
from canal.app.cell_layout import CellMap, lay_out
from canal.app.models import LoadedModels
from canal.app.promoting import Decision, judge_version, promote
from canal.app.reviewing import TRAINING, Sides, review, sides, write_decision, write_pages
from canal.cli import app
from canal.core.errors import RegistryError
from canal.registry.manifest.card import LOW_RECALL, Card
from canal.report.version_page import promotable, verdict, write_version_page
from tests.pipeline.test_bundles import other_project

pytestmark = pytest.mark.pipeline


@pytest.fixture
def project(line):
    return line.project()


def spec(text, place):
    found = re.search(rf'data-place="{place}">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_a_page_says_what_the_version_does_better_and_whether_it_may_serve(project, tmp_path):
    page, document = write_pages(project, tmp_path / "report", training=True)
    text = page.read_text()
    assert (document["version"]["number"], document["against"]["number"]) == (2, 1)
    assert document["against"]["role"] == "parent"
    assert "labels_like_parent" in [one["rule"] for one in document["gate"]["rules"]]
    assert "labels_like_parent" in text
    assert document["rulings"] == judge_version(project, "2").to_json()["rulings"]
    assert str(escape(promotable(document))) in text
    most = r"\(\w+ [+−]\d+\.\d points \[.+\]\)"
    assert re.match(rf"Better on (none of 2 stages|\d of 2 stages {most}); worse on ", verdict(document))
    assert len(page.read_bytes()) < 3_000_000
    assert (page.parent / TRAINING).is_file()
    # Nothing is fetched: no address in what a browser would load.
    head = text[: text.index("<script>")] + text[text.rindex('"use strict"') :]
    assert not re.findall(r"(?:src|href)=\"(?!#|training\.html)[^\"]*", head)
    assert "@import" not in head


def test_its_numbers_are_those_of_the_evaluation(project, tmp_path):
    document, mapped = review(project, sides(project))
    evaluation = document["evaluation"]
    for one in document["types"]:
        recall = evaluation["per_stage"][one["stage"]]["recall"][one["cell_type"]]
        assert (one["n"], one["recall"]) == (recall["n"], pytest.approx(recall["recall"]))
        assert 0 <= one["low"] <= one["recall"] + 1e-9 <= one["high"] + 2e-9 <= 1 + 2e-9
    for stage, one in evaluation["per_stage"].items():
        labels = one["confusion"]["labels"]
        for row, truth in enumerate(labels):
            for column, predicted in enumerate(labels):
                counted = [
                    answer["n"]
                    for answer in document["answers"]
                    if (answer["side"], answer["stage"]) == ("after", stage)
                    and (answer["truth"], answer["predicted"]) == (truth, predicted)
                ]
                assert sum(counted) == one["confusion"]["counts"][row][column]
    # A changed cell is lost, gained, or wrong both times; the comparison counts the first two.
    for stage, pair in document["comparison"]["stages"].items():
        changed = [one for one in document["changed"] if one["stage"] == stage]
        assert sum(one["n"] for one in changed if one["before"] == one["truth"]) == pair["lost"]
        assert sum(one["n"] for one in changed if one["after"] == one["truth"]) == pair["gained"]
    assert [row["version"] for row in document["lineage"]] == [2, 1, 1]
    kept = {name: sum(row["n"] for row in rows) for name, rows in document["kept"].items()}
    assert len(mapped["cells"]) == kept["probe"]
    assert {"truth", "before", "after", "x", "y"} <= set(mapped["cells"][0])
    write_version_page(document, mapped, "", tmp_path / "one.html")
    again, cells = review(project, sides(project))
    write_version_page(again, cells, "", tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_the_champion_is_compared_with_its_parent_and_others_with_it(project):
    assert (sides(project, "1").other, sides(project, "1").version.number) == (None, 1)
    promote(project, judge_version(project, "1", ["*"], "few"), Decision("A. Person", "first"))
    assert (sides(project).role, sides(project).other.number) == ("champion", 1)
    document, _ = review(project, sides(project, "champion"))
    assert promotable(document).startswith("It serves: ")
    assert verdict(document).startswith("The first of its lineage: ")
    assert [one["who"] for one in document["decisions"]["served"]] == ["A. Person"]
    with pytest.raises(RegistryError, match="cannot be compared with itself"):
        sides(project, "2", "2")
    with pytest.raises(RegistryError, match="no version"):
        sides(project, "7")


def test_what_promotion_refuses_is_refused_on_the_page_too(project):
    """Of an erased parent nothing can be shown to be kept, and altered predictions are none."""
    first, second = project.store.version("1"), project.store.version("2")
    erased = replace(first, erased=True)
    document, _ = review(project, Sides(second, erased, "parent"))
    (kept,) = [one for one in document["rulings"] if one["rule"] == "retention:first"]
    assert (kept["value"], kept["passed"]) == ("not measured", False)
    assert "were erased" in kept["note"]
    path = project.store.artifacts(first) / "metrics" / "predictions.csv"
    path.write_text(path.read_text() + "x,first,B,B,1.0,0.1,False\n")
    with pytest.raises(RegistryError, match=r"predictions\.csv"):
        review(project, sides(project, "1"))


@pytest.mark.chaos
def test_an_imported_version_has_a_page(line, tmp_path):
    line.canal("export", "2", "-o", str(tmp_path / "second.zip"))
    with ZipFile(tmp_path / "second.zip") as archive:
        said = archive.read("README.md").decode()
    assert "# canal-annotator 2: second" in said
    assert "training cells" in said
    other = other_project(line, tmp_path / "other")
    other.canal("import", str(tmp_path / "second.zip"))
    (version,) = other.project().store.versions()
    card = (other.project().store.artifacts(version) / "README.md").read_text()
    assert card.partition("## Intended use")[2].partition("## Version")[0] in said
    page, document = write_pages(other.project(), tmp_path / "report")
    assert document["version"]["imported"]
    assert (document["against"], document["training"]) == (None, None)
    assert "imported" in page.read_text()
    assert [row["version"] for row in document["lineage"]] == [1]


def test_the_model_card_has_the_header_that_hubs_read_and_every_limit(project, tmp_path):
    document, _ = review(project, sides(project))
    document["sources"][-1] |= {"licence": "CC0", "citation": "A [link](x) <b>"}
    card = Card("canal-annotator 2", "second", "0" * 64, document["evaluation"], document["sources"])
    text = card.write(tmp_path / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    found = YAML(typ="safe").load(header)
    assert (found["library_name"], found["license"]) == ("canal-cells", "CC0")
    assert found["canal"]["key"] == "0" * 64
    assert r"A \[link\](x) \<b\>" in body
    for one in document["types"]:
        limit = f"{one['cell_type']} of {one['stage']}:"
        assert (limit in body) == (one["recall"] < LOW_RECALL)
    threshold = document["evaluation"]["novelty"]["threshold"]
    assert f"above {threshold:.3f} are called Unassigned" in body
    for one in document["sources"]:
        assert f"{one['cells']:,} training cells" in body
        assert sum(one["types"].values()) == one["cells"] > 0


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def test_names_stay_names(project, tmp_path):
    """Whatever a user called a type, a stage or a reason: it is text, in the page and in its charts."""
    document, mapped = review(project, sides(project))
    renamed = json.loads(json.dumps([document, mapped]).replace('"Mono"', json.dumps(HOSTILE)))
    ended = {"entry": 2, "kind": "rollback", "time": "2026-01-02T00:00:00", "who": "B", "why": "T cells"}
    made = {"entry": 1, "kind": "promote", "time": "2026-01-01T00:00", "who": HOSTILE, "why": HOSTILE}
    renamed[0]["decisions"]["served"] = [{**made, "until": ended}]
    page = write_version_page(*renamed, "", tmp_path / "page.html")
    text = page.read_text()
    assert "<img src=x" not in text
    assert "Rolled back 2026-01-02T00:00 by B: T cells." in text
    assert text.count("<script") == text.count("</script>")
    values = json.dumps(spec(text, "confusion"))
    assert json.dumps(HOSTILE)[1:-1] in values


def test_a_page_says_what_would_have_to_change(project, tmp_path):
    document, mapped = review(project, sides(project))
    words = {"rule": "accuracy", "value": "0.100", "bound": ">= 0.700", "note": "of 40 cells"}
    failed: dict[str, Any] = {**words, "passed": False, "overridden": False}
    document["rulings"] = [failed, {**failed, "rule": "audit", "passed": True}]
    text = write_version_page(document, mapped, "", tmp_path / "page.html").read_text()
    assert promotable(document) == "It may not be promoted: 1 of 2 rules of the policy hold, 1 fails."
    assert "accuracy: 10.0 %, asked for &gt;= 70.0 % (of 40 cells)" in text


def test_promotion_writes_the_page_of_what_it_decided(line):
    """A refusal says what would have to change, a promotion who serves; neither fails by its page."""
    project = line.project()
    page = line.root / "report" / "index.html"
    done = CliRunner().invoke(
        app, ["promote", "2", "--by", "A", "--why", "w", "--json", "--root", str(line.root)]
    )
    assert done.exit_code == 1
    assert json.loads(done.stdout)["page"] == str(page)
    assert "Before it may serve, this would have to change" in page.read_text()
    assert "canal report 2" in page.read_text()  # no layout is kept yet: no map
    write_pages(project, line.root / "report", "2")
    decided = ("--by", "A. Person", "--why", "all types", "--override", "*", "--too-few", "few")
    line.canal("promote", "2", *decided)
    text = page.read_text()
    assert "It serves: " in text
    assert "by A. Person: all types" in text
    assert ">overridden<" in text
    assert 'data-place="map"' in text
    assert (page.parent / "README.md").is_file()
    judgement = judge_version(project, "1", ["*"], "few")
    page.unlink()
    page.parent.rename(line.root / "elsewhere")
    page.parent.write_text("no folder")
    assert write_decision(project, judgement) is None


def test_cells_are_answered_and_laid_out_once(project, monkeypatch):
    version = project.store.version("2")
    loaded, folder = LoadedModels(project), project.store.artifacts(version)
    assert not CellMap.is_laid_out(project, version)
    lay_out(project, "second")  # as the step that evaluates does, of more cells
    assert not CellMap.is_laid_out(project, version)
    monkeypatch.setattr(cell_layout, "_WORTH", 1)
    lay_out(project, "second")
    assert CellMap.is_laid_out(project, version)
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "of", lambda *_: pytest.fail("the model is asked again"))
        kept = CellMap(loaded, version, folder).document(None)
    rmtree(project.layout.layouts)
    assert not CellMap.is_laid_out(project, version)
    first = CellMap(loaded, version, folder).document(None)
    assert first == kept
    assert CellMap.is_laid_out(project, version)
    made = sorted(project.layout.layouts.iterdir(), key=lambda one: one.suffix)
    assert [one.suffix for one in made] == [".npy", ".npz"]
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "of", lambda *_: pytest.fail("the model is asked again"))
        assert CellMap(loaded, version, folder).document(None) == first
    for one in made:
        one.write_bytes(b"no layout")  # as a crash of the disk may leave it
    assert CellMap(loaded, version, folder).document(None) == first
    assert CellMap(loaded, version, folder).document(project.store.version("1"))["cells"][0]["before"]


def test_sides_study_and_cost_are_sections(project, tmp_path):
    document, mapped = review(project, sides(project))
    assert document["cost"]["seconds"].keys() >= {"finetune", "evaluate"}
    assert document["cost"]["bytes"]["model"] > 0
    alone = {"network": {"first": 0.9, "second": 0.8}, "sums": {"first": 0.7, "second": None}}
    settings = {"distillation": 0.1, "bank_size": 1000}
    trial = {
        "state": "complete",
        "settings": settings,
        "harmonic_mean": 0.8,
        "accuracy": 0.8,
        "retention": 0.9,
    }
    document["evaluation"]["alone"] = alone
    document["tuned"] = {
        "choice": settings,
        "chosen": 1,
        "front": [1],
        "states": {"complete": 2, "pruned": 0, "failed": 0},
        "trials": [
            {**trial, "number": 0, "published": True, "value": 0.7},
            {**trial, "number": 1, "published": False, "value": 0.8},
        ],
    }
    text = write_version_page(document, mapped, "", tmp_path / "page.html").read_text()
    assert "the network alone 85.0\u00a0%, the sums alone 70.0\u00a0%" in text
    assert "Trial 1 of 2 was chosen: value 0.700 → 0.800" in text
    assert {one["trial"] for one in spec(text, "study")["data"]["values"]} == {"chosen", "published settings"}
    assert "It took " in text
    for place in re.findall(r'data-place="(\w+)"', text):
        assert re.search(rf'id="chart-{place}" role="img" aria-label="[^"]{{20,}}"', text), place


def test_charts_are_specifications_that_vega_lite_reads(project, tmp_path):
    page, _ = write_pages(project, tmp_path / "report")
    text = page.read_text()
    places = re.findall(r'data-place="(\w+)"', text)
    assert len(places) >= 5
    for place in places:
        assert "marks" in vegalite_to_vega(spec(text, place)), place
