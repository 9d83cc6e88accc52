"""How strange a new data set and lacking genes make cells: on the small project, and what the tables say."""

import json

import pytest
import strange


@pytest.mark.pipeline
def test_each_version_is_asked_about_later_stages_and_with_genes_gone(learned, capsys):
    line, _ = learned
    strange.main(["--root", str(line.root), "--json"])
    (found,) = json.loads(capsys.readouterr().out).values()
    assert list(found) == ["first", "second"]
    assert list(found["first"]["later"]) == ["second"]
    assert found["second"]["later"] == {}
    asked = found["first"]["later"]["second"]
    cells = line.project().split("second")
    assert asked["n_known"] + asked["n_unknown"] == (cells["set"] == "test").sum()
    for one in found.values():
        none, *some = one["lacking"]
        assert none["counted"] == none["left_out"] <= 0.5
        assert [each["share"] for each in some] == [0.1, 0.25, 0.5]


def test_the_tables_say_what_was_found(capsys):
    rule = {"false_unassigned": 0.25, "noticed": None, "auroc": None}
    later = {"n_known": 4, "n_unknown": 0, "genes_missing": 7}
    later |= dict.fromkeys(strange.SCORES, rule)
    lacking = [{"share": share, "counted": 0.5, "left_out": share} for share in strange.SHARES]
    found = {"one": {"n_cells": 9, "lacking": lacking, "later": {"two": later}}}
    for table in strange.tables("small", found):
        strange.Console(width=130).print(table)
    said = capsys.readouterr().out
    assert "50 / 25" in said
    assert "two, 7 genes missing" in said
    assert "25 / 25 / 25 / 25" in said
    assert "- / -" in said
