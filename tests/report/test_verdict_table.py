"""The verdict on the terminal."""

import io

from rich.console import Console

from canal.quality.verdict import RuleResult
from canal.report.gate_tables import map_table, verdict_table
from tests.quality.test_verdict import a_verdict


def shown(verdict, everything=False, **options):
    stream = io.StringIO()
    Console(file=stream, width=180, **options).print(verdict_table(verdict, everything))
    return stream.getvalue()


FAILED = RuleResult(
    "labels_in_map", "error", False, "known", "2 of 9 cells", ("[bold]odd[/] (2 cells)",), "map them"
)
WARNED = RuleResult("drift", "warning", False, "calm", "3 genes", ("CD3D (PSI 0.30)",), "look")


def test_a_table_says_what_was_found_and_what_to_do():
    text = shown(a_verdict(FAILED, WARNED))
    for part in (
        "stage second",
        "known",
        "2 of 9 cells with a label that the map lacks (at most 0): [bold]odd[/] (2 cells)",
        "map them",
        "CD3D (PSI 0.30)",
    ):
        assert part in text
    assert "refused: 1 error, 1 warning in 3 rules; 9 cells of 1 type" in text


def test_what_does_not_hold_comes_first_and_what_holds_is_one_line():
    verdict = a_verdict(WARNED, FAILED)
    held = [rule.rule for rule in verdict.rules if rule.passed]
    text = shown(verdict)
    assert text.index("map them") < text.index("look") < text.index("1 rule holds")
    assert not any(name in text for name in held)
    whole = shown(verdict, everything=True)
    assert all(whole.index("look") < whole.index(name) for name in held)
    assert "1 rule holds" not in whole


def test_a_file_gets_no_colours():
    assert "\x1b" not in shown(a_verdict(FAILED))


def test_errors_are_red_and_warnings_yellow():
    options = {"force_terminal": True, "color_system": "standard"}
    assert "\x1b[1;31m" in shown(a_verdict(FAILED), **options)
    assert "\x1b[33m" in shown(a_verdict(WARNED), **options)
    assert "\x1b[33m" not in shown(a_verdict(FAILED), **options)


def test_passing_says_so():
    assert "passed: 0 errors, 0 warnings" in shown(a_verdict())


def test_a_name_of_a_rule_and_few_examples_fit_a_narrow_terminal():
    genes = tuple(f"GENE{i} (PSI 0.30)" for i in range(10))
    wide = RuleResult("tokens_like_before", "warning", False, "calm " * 9, "10 genes", genes, "look " * 9)
    stream = io.StringIO()
    Console(file=stream, width=80).print(verdict_table(a_verdict(wide)))
    said = " ".join(stream.getvalue().split())
    assert "tokens_like_before" in said
    assert "GENE4" in said
    assert "GENE5" not in said
    assert said.count("look") == 9, "the last column is cut"


def test_thousands_of_labels_are_left_to_the_sheet():
    one = {"cells": 1, "n_cells": 1, "proposed": "B", "by": "model", "model_type": "B", "model_share": 1.0}
    labels = [{**one, "label": f"{i:04} " + "x" * 3000, "unassigned": 0, "ambiguous": ""} for i in range(900)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(map_table({"ambiguous": 0, "labels": labels}))
    said = console.export_text()
    assert len(said.splitlines()) < 200
    assert "and 840 more labels: the sheet (-o SHEET.csv) lists all of them" in said
