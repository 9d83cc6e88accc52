"""verdict.json, and what a trainer demands of it."""

import json

import pytest

from canal.core.errors import GateError
from canal.quality.verdict import Profile, RuleResult, Verdict, parse_verdict, read_verdict, require_passing

SHA = "5" * 64


def a_verdict(*rules):
    return Verdict(
        stage="second",
        source="kang",
        source_sha256="1" * 64,
        prepared_sha256=SHA,
        declaration_digest="2" * 64,
        split_sha256=None,
        counts={"cells": 9, "types": {"B": 9}},
        rules=(RuleResult("has_cells", "error", True, "at least 1 cell", "9 cells"), *rules),
        profile=Profile("3" * 64, 9, 2.0, ((9, 0, 0, 0, 0, 0),)),
    )


def broken(severity):
    return RuleResult("balance", severity, False, "calm", "a storm", ("B (9 cells)",), "wait")


def test_a_verdict_is_read_as_it_was_written(tmp_path):
    verdict = a_verdict(broken("warning"))
    verdict.write(tmp_path / "a" / "verdict.json")
    assert read_verdict(tmp_path / "a" / "verdict.json") == verdict
    document = json.loads((tmp_path / "a" / "verdict.json").read_text())
    assert document["format"] == 1
    assert document["passed"] is True
    assert document["rules"][1]["examples"] == ["B (9 cells)"]


def test_only_errors_refuse():
    assert a_verdict(broken("warning")).passed
    assert not a_verdict(broken("error")).passed


def test_a_passing_verdict_for_these_bytes_lets_through(tmp_path):
    verdict = a_verdict(broken("warning"))
    verdict.write(tmp_path / "verdict.json")
    for given in (verdict, verdict.document(), tmp_path / "verdict.json"):
        assert require_passing(given, SHA, "second") == verdict


def test_a_failed_rule_is_named_with_what_to_do():
    with pytest.raises(
        GateError, match=r"(?s)second did not pass.*balance: expected calm; found a storm.*wait"
    ):
        require_passing(a_verdict(broken("error")), SHA, "second")


def test_other_bytes_are_refused():
    with pytest.raises(GateError, match=r"prepared file 555555555555…, found 666666666666…"):
        require_passing(a_verdict(), "6" * 64, "second")


def test_another_stages_verdict_is_refused():
    with pytest.raises(GateError, match="verdict of stage third, found that of second"):
        require_passing(a_verdict(), SHA, "third")


def test_a_missing_verdict_is_refused(tmp_path):
    with pytest.raises(GateError, match="no verdict"):
        require_passing(tmp_path / "verdict.json", SHA, "second")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "rules": 3}'])
def test_what_is_no_verdict_is_refused(tmp_path, text):
    (tmp_path / "verdict.json").write_text(text)
    with pytest.raises(GateError, match="run the stage's gate again"):
        read_verdict(tmp_path / "verdict.json")


def test_another_format_is_refused():
    with pytest.raises(GateError, match="format 2, this canal reads 1"):
        parse_verdict(a_verdict().document() | {"format": 2})


def test_an_edited_verdict_is_refused():
    with pytest.raises(GateError, match="says passed: True, its rules say False"):
        parse_verdict(a_verdict(broken("error")).document() | {"passed": True})
