"""A project's own suites of Great Expectations beside the gate's rules: results, refusals, pages, actions."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import ANY

import great_expectations as gx
import pytest

from canal.config.sections import Gate
from canal.core.digests import file_digest
from canal.core.errors import GateError
from canal.data.prepare import prepare
from canal.quality.gate import judge_file
from canal.quality.own_rules import own_tables, read_own_rules
from canal.quality.verdict import read_verdict
from tests.support.cases import SETTINGS, StageCase
from tests.support.cells import make_adata

pytestmark = pytest.mark.xdist_group("gate")

E: Any = gx.expectations


def write_suite(folder, table, *expectations):
    """Write a suite as Great Expectations itself writes it."""
    folder.mkdir(exist_ok=True)
    suite = gx.ExpectationSuite(name=table, expectations=list(expectations))
    (folder / f"{table}.json").write_text(json.dumps(suite.to_json_dict()))


def judged(folder, docs=None, case=None):
    """Judge a small stage in a project whose suites are in ``folder / "gate"``."""
    case = case or StageCase()
    subject = dataclasses.replace(case.subject(folder), own_rules=folder / "gate")
    return judge_file(subject, SETTINGS, Gate(**case.gate), docs)


def own(verdict):
    """Return the results of the project's own rules by their name."""
    return {rule.rule: rule for rule in verdict.rules if ": " in rule.rule}


def with_obs(case, **columns):
    for name, values in columns.items():
        case.adata.obs[name] = values
    return case


def test_a_suite_over_cells_genes_and_types_is_part_of_the_verdict(tmp_path):
    case = with_obs(StageCase(), percent_mito=[40.0, 35.0] + [5.0] * 88, site=["lab 1"] * 90)
    write_suite(
        tmp_path / "gate",
        "cells",
        E.ExpectColumnValuesToBeBetween(column="percent_mito", max_value=20, severity="warning"),
        E.ExpectColumnValuesToBeBetween(column="n_genes", min_value=10, mostly=0.95),
        E.ExpectColumnMeanToBeBetween(column="depth", min_value=1e6, severity="warning"),
        E.ExpectColumnValuesToBeInSet(column="site", value_set=["lab 1"]),
    )
    write_suite(
        tmp_path / "gate",
        "genes",
        E.ExpectColumnDistinctValuesToContainSet(column="symbol", value_set=["CD3D", "MKI67"]),
    )
    write_suite(tmp_path / "gate", "types", E.ExpectColumnValuesToBeBetween(column="cells", min_value=31))
    verdict = judged(tmp_path, case=case)
    rules = own(verdict)
    assert not verdict.passed
    assert {name: (rule.severity, rule.passed) for name, rule in rules.items()} == {
        "cells: percent_mito column values to be between": ("warning", False),
        "cells: n_genes column values to be between": ("error", True),
        "cells: depth column mean to be between": ("warning", False),
        "cells: site column values to be in set": ("error", True),
        "genes: symbol column distinct values to contain set": ("error", False),
        "types: cells column values to be between": ("error", False),
    }
    mito = rules["cells: percent_mito column values to be between"]
    assert mito.found == "2 of 90 cells"
    assert mito.examples == ("cell1-0000 (40)", "cell1-0001 (35)")
    assert mito.expected == "column values to be between (column percent_mito, max_value 20)"
    assert "gate/cells.json" in mito.hint
    assert set(rules["types: cells column values to be between"].examples) == {
        "B (30)",
        "NK (30)",
        "Treg (30)",
    }
    assert float(rules["cells: depth column mean to be between"].found) == pytest.approx(
        case.adata.X.sum(axis=1).mean(), rel=1e-4
    )
    assert verdict.own_rules["cells.json"] == file_digest(tmp_path / "gate" / "cells.json")
    verdict.write(tmp_path / "verdict.json")
    assert read_verdict(tmp_path / "verdict.json") == verdict


def test_a_rule_may_bring_its_name_its_words_and_its_severity(tmp_path):
    write_suite(
        tmp_path / "gate",
        "types",
        E.ExpectTableRowCountToBeBetween(
            min_value=9,
            description="nine types",
            notes="ask the pathologist",
            meta={"rule": "enough_types", "severity": "warning"},
        ),
    )
    verdict = judged(tmp_path)
    rule = own(verdict)["types: enough_types"]
    assert (rule.severity, rule.passed, rule.expected) == ("warning", False, "nine types")
    assert (rule.found, rule.hint) == ("3", "ask the pathologist")
    assert verdict.passed


def test_a_project_without_suites_gives_the_verdict_of_one_without_a_folder(tmp_path):
    verdict = judged(tmp_path)
    assert own(verdict) == {}
    assert "own_rules" not in verdict.document()
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "README.md").write_text("no suite yet")
    assert judged(tmp_path) == verdict


def test_a_column_of_the_file_that_is_also_one_of_ours_has_another_name(tmp_path):
    case = with_obs(StageCase(adata=make_adata({"B": 60}, seed=1)), n_genes=[1] * 60, passed=[True] * 60)
    write_suite(
        tmp_path / "gate",
        "cells",
        E.ExpectColumnValuesToBeInSet(column="obs_n_genes", value_set=[1]),
        E.ExpectColumnValuesToBeBetween(column="n_genes", min_value=2),
        E.ExpectColumnValuesToBeInSet(column="passed", value_set=[True]),
        E.ExpectColumnValuesToBeInSet(column="cell_type", value_set=["B"]),
    )
    assert {rule.passed for rule in own(judged(tmp_path, case=case)).values()} == {True}


def test_cells_without_a_value_are_told(tmp_path):
    case = with_obs(StageCase(), score=[None] * 40 + [1.0] * 50)
    write_suite(tmp_path / "gate", "cells", E.ExpectColumnValuesToBeBetween(column="score", max_value=2))
    (rule,) = own(judged(tmp_path, case=case)).values()
    assert (rule.passed, rule.found) == (True, "0 of 90 cells, 40 of them without a value")


def test_the_same_rule_twice_has_two_names_and_a_stage_without_cells_is_judged(tmp_path):
    rule = E.ExpectColumnValuesToBeBetween(column="cells", min_value=1)
    for table in ("cells", "genes", "types"):
        write_suite(tmp_path / "gate", table, E.ExpectTableRowCountToBeBetween(min_value=1))
    write_suite(tmp_path / "gate", "types", rule, rule)
    case = StageCase()
    case.adata = case.adata[:0].copy()
    verdict = judged(tmp_path, case=case)
    assert not verdict.passed
    assert {name: one.found for name, one in own(verdict).items()} == {
        "cells: table row count to be between": "0",
        "genes: table row count to be between": "120",
        "types: cells column values to be between": "0 of 0 types",
        "types: cells column values to be between (2)": "0 of 0 types",
    }


BROKEN = {
    "no JSON": ("cells.json", "{", r"gate/cells.json is no readable JSON"),
    "no list": ("cells.json", '{"expectations": {}}', "a list of objects under 'expectations'"),
    "an unknown table": ("cell.json", "{}", "gate/cell.json: expected a suite over one of the tables"),
    "an unknown expectation": (
        "genes.json",
        '{"expectations": [{"type": "expect_wonders", "kwargs": {}}]}',
        r"gate/genes.json, expectation 1 \(expect_wonders\): .*not found",
    ),
    "a wrong argument": (
        "types.json",
        '{"expectations": [{"type": "expect_column_values_to_be_between", "kwargs": {"clm": "x"}}]}',
        r"gate/types.json, expectation 1 \(expect_column_values_to_be_between\): .*field required",
    ),
    "arguments that are no object": (
        "types.json",
        '{"expectations": [{"type": "expect_column_to_exist", "kwargs": ["x"]}]}',
        "expected objects as kwargs and meta",
    ),
    "an unknown severity": (
        "types.json",
        '{"expectations": [{"type": "expect_column_to_exist", "severity": "bad"}]}',
        "severity 'bad'; expected critical, warning or info",
    ),
    "an unknown action": (
        "checkpoint.json",
        '{"actions": [{"type": "pigeon", "name": "x"}]}',
        r"gate/checkpoint.json, action 1 \(pigeon\)",
    ),
}


@pytest.mark.parametrize(("name", "text", "told"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_suite_is_refused_with_its_file_and_expectation(tmp_path, name, text, told):
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / name).write_text(text)
    with pytest.raises(GateError, match=told):
        read_own_rules(tmp_path / "gate")


def test_a_column_that_is_not_there_is_refused_with_the_one_that_is_meant(tmp_path):
    write_suite(tmp_path / "gate", "types", E.ExpectColumnValuesToBeBetween(column="cels", min_value=1))
    with pytest.raises(
        GateError, match=r"types.json, expectation 1 .*'cels'; it has .*; did you mean 'cells'\?"
    ):
        judged(tmp_path)


@pytest.mark.parametrize("condition", ['@pd.io.common.os.system("touch x")', "batch.__class__ == 1"])
def test_a_condition_by_which_pandas_would_run_code_is_refused(tmp_path, condition):
    wanted = E.ExpectColumnValuesToBeBetween(
        column="n_genes", min_value=1, row_condition=condition, condition_parser="pandas"
    )
    write_suite(tmp_path / "gate", "cells", wanted)
    with pytest.raises(GateError, match=r"cells.json, expectation 1 .*row_condition holds @ or __"):
        read_own_rules(tmp_path / "gate")


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    write_suite(tmp_path / "gate", "types", E.ExpectColumnMeanToBeBetween(column="cell_type", min_value=1))
    with pytest.raises(GateError, match="types.json, expectation 1 .*could not be evaluated"):
        judged(tmp_path)


def test_what_great_expectations_itself_fails_on_is_refused(tmp_path):
    """GX 1.24 cannot store the result of this expectation."""
    ranges = {"quantiles": [0.5], "value_ranges": [[1, 100]]}
    rule = E.ExpectColumnQuantileValuesToBeBetween(column="cells", quantile_ranges=ranges)
    write_suite(tmp_path / "gate", "types", rule)
    with pytest.raises(GateError, match=r"gate/types.json: .*cannot validate it .*expect_column_quantile"):
        judged(tmp_path)


def words_of(page):
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_pages_name_genes_and_the_sizes_of_their_tables_and_call_a_warning_passed(tmp_path):
    write_suite(
        tmp_path / "gate",
        "genes",
        E.ExpectColumnValuesToBeBetween(column="share", min_value=2, severity="warning"),
    )
    verdict = judged(tmp_path, tmp_path / "docs")
    assert verdict.passed
    index = words_of(tmp_path / "docs" / "index.html")
    assert "gate: passed" in index
    assert "genes: passed" in index
    (page,) = (tmp_path / "docs" / "validations" / "genes").rglob("*.html")
    told = words_of(page)
    assert "Status: Succeeded" in told
    assert "of 120 total rows" in told
    assert "0.05555555555555555 1 CD8A" in told


class _Heard(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(json.loads(body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """Give a webhook on this machine, which keeps what it is told."""
    server: Any = HTTPServer(("127.0.0.1", 0), _Heard)
    server.heard = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def checkpoint(folder, *actions):
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.json").write_text(json.dumps({"name": "lab", "actions": list(actions)}))


SLACK = {
    "type": "slack",
    "name": "tell the lab",
    "slack_webhook": "${LAB_WEBHOOK}",
    "notify_on": "all",
    "renderer": {
        "class_name": "SlackRenderer",
        "module_name": "great_expectations.render.renderer.slack_renderer",
    },
}


def test_actions_of_the_checkpoint_run_once_the_pages_are_kept(tmp_path, server, monkeypatch):
    monkeypatch.setenv("LAB_WEBHOOK", f"http://127.0.0.1:{server.server_port}/x")
    checkpoint(tmp_path / "gate", SLACK)
    write_suite(tmp_path / "gate", "types", E.ExpectTableRowCountToBeBetween(min_value=9))
    judged(tmp_path)
    assert server.heard == []  # a trial announces nothing
    judged(tmp_path, tmp_path / "docs")
    (message,) = server.heard
    said = json.dumps(message)
    assert "types" in said
    assert "gate" in said
    assert "tell the lab - second - Failure" in said


def test_an_action_that_fails_is_told_without_its_address_and_changes_no_verdict(tmp_path, capfd):
    checkpoint(tmp_path / "gate", {"type": "api", "name": "hook", "url": "http://127.0.0.1:9/secret"})
    verdict = judged(tmp_path, tmp_path / "docs")
    assert verdict.passed
    out, err = capfd.readouterr()
    assert "second: action hook (api) failed" in err
    assert "secret" not in out + err


def test_what_the_docs_show_is_what_the_gate_takes(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (actions,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "checkpoint.json").write_text(actions)
    monkeypatch.chdir(tmp_path)
    exec(program, {})  # noqa: S102 - the page's own program
    verdict = judged(tmp_path, case=with_obs(StageCase(), donor=["d1"] * 89 + [None]))
    assert {name: (rule.severity, rule.passed, rule.hint) for name, rule in own(verdict).items()} == {
        "cells: n_genes column values to be between": ("error", False, ANY),
        "cells: donor column values to not be null": ("warning", False, "ask the clinic"),
        "types: two_donors": ("warning", False, ANY),
    }
    assert read_own_rules(tmp_path / "gate").actions[0].name == "tell the lab"


def test_columns_of_the_docs_are_those_of_the_tables(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    write_suite(tmp_path / "gate", "cells", E.ExpectTableRowCountToBeBetween(min_value=1))
    subject = dataclasses.replace(StageCase().subject(tmp_path), own_rules=tmp_path / "gate")
    prepare(subject.raw, "second", subject.source, SETTINGS, tmp_path / "prepared")
    rules = read_own_rules(tmp_path / "gate")
    tables = own_tables(rules, subject, tmp_path / "prepared" / "cells.h5ad")
    for name, table in tables.items():
        (line,) = re.findall(rf"^\| `gate/{name}\.json` .*$", page, re.MULTILINE)
        own_columns = [column for column in table.columns if not column.startswith("obs_")]
        assert all(f"`{column}`" in line for column in own_columns), name
