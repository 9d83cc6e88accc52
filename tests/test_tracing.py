"""lineage, impact and diff as a person runs them, on a registry made by hand."""

import json

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import CanalError, LedgerError
from canal.registry.ledger.ledger import Draft, Ledger
from tests.support.registry_made import two_stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return two_stages(tmp_path_factory.mktemp("made") / "project")


@pytest.fixture
def run(made):
    def invoke(*arguments):
        said = CliRunner().invoke(app, [*arguments, "--root", str(made.root)])
        assert said.exit_code == 0, said.exception
        return said.stdout

    return invoke


def refused(made, *arguments):
    said = CliRunner().invoke(app, [*arguments, "--root", str(made.root)])
    assert isinstance(said.exception, CanalError)
    return str(said.exception)


def squeezed(text):
    return " ".join(text.split())


def test_a_lineage_is_a_tree_json_graphviz_or_a_page(made, run, tmp_path):
    tree = run("lineage", "candidate")
    assert "learned on canal-annotator 1 (first)" in tree
    assert "raw bytes  sha256 222222222222" in tree
    document = json.loads(run("lineage", "2", "--json"))
    assert document["format"] == 1
    assert {
        "id": f"bytes:{'1' * 64}",
        "kind": "bytes",
        "label": "raw bytes",
        "facts": {"sha256": "1" * 64},
    } in (document["nodes"])
    assert run("lineage", "2", "--dot").startswith("digraph lineage {")
    assert run("lineage", "2", "--html", str(tmp_path / "page.html")) == ""
    assert "canal-annotator 2 (second)" in (tmp_path / "page.html").read_text()


def test_a_lineage_forward_says_how_each_version_touched_the_cells(run):
    text = squeezed(run("lineage", "--data", "second"))
    assert "Versions that have seen second (5 cells)" in text
    assert "trained on 3 cells; replayed 1 cell" in text
    text = squeezed(run("lineage", "--cell", "first:B-5"))
    assert "tested measured on 1 cell" in text
    document = json.loads(run("lineage", "--cell", "first:B-1", "--json"))
    assert [one["grade"] for one in document["versions"]] == ["learned"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give exactly one of"),
        (("2", "--cell", "x"), "give exactly one of"),
        (("--data", "first", "--dot"), "name a version"),
        (("9",), "no version '9'"),
        (("--cell", "\x1b[2J" + "x" * 5000), "no registered version knows a cell"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence(made, arguments, message):
    said = refused(made, "lineage", *arguments)
    assert message in said
    assert "\x1b" not in said
    assert len(said) < 400


def test_names_in_titles_are_neither_markup_nor_steer_the_terminal():
    from io import StringIO

    from rich.console import Console

    from canal.report.cell_tables import forward_group

    stream = StringIO()
    document = {
        "cell": "a:[red]x\x1b[2J",
        "source": None,
        "cells": 1,
        "same_content": ["\x1b"],
        "reserve": 1,
        "versions": [],
    }
    Console(file=stream, width=80, force_terminal=True, color_system=None).print(forward_group(document))
    assert "[red]x" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    text = squeezed(stream.getvalue())
    assert "(1 cell): none in reserve: 1 cell beyond split.max_cells_per_type" in text


def test_impact_prints_what_is_touched_and_the_way_out(run):
    text = squeezed(run("impact", "first", "--batch", "donor-1"))
    assert "aliases of versions that learned from them: candidate (version 2), champion (version 1)" in text
    assert 'batches: ["donor-1"]' in text
    assert "canal stage relearn backbone --commit" in text
    assert "files that they labelled: none on record" in text
    document = json.loads(run("impact", "second", "--cell", "Mono-2", "--json"))
    assert document["same_content"] == ["first:T-2"]
    assert {step["kind"] for step in document["steps"]} <= {"run", "edit", "know"}


def test_diff_prints_what_changed(made, run):
    text = squeezed(run("diff", "1", "2"))
    for words in (
        "version 2 was learned on version 1",
        "1 type appears: Mono",
        "1 type loses recall on test cells, 2 cells in all: T of first -50.0",
        "parameters: the same",
        "bytes.source 111111111111 222222222222",
        "T 5 100.0 50.0 -50.0",
        "Mono 5 - 75.0 -",
    ):
        assert words in text
    assert json.loads(run("diff", "1", "2", "--json"))["file"] is None
    assert "both version 2" in refused(made, "diff", "2", "candidate")
    assert "--cells lists the cells of a file" in refused(made, "diff", "1", "2", "--cells", "x.csv")


def test_versions_and_show_say_for_ever_what_was_overridden(tmp_path):
    made = two_stages(tmp_path / "project")
    version = made.project.store.version("1")
    ledger = Ledger(made.project.layout.ledger)
    for kind, why, details in (
        ("promote", "needed today", {"overrides": ["h_score"], "rulings": []}),
        ("retire", "donor withdrew", {}),
    ):
        draft = Draft(kind, version.model, 1, version.key, version.record, "A. Person", why, details=details)
        ledger.append(ledger.next(draft))

    def run(*arguments):
        return CliRunner().invoke(app, [*arguments, "--root", str(made.root)])

    rows = {row["version"]: row for row in json.loads(run("versions", "--json").stdout)}
    assert (rows[1]["overrides"], rows[1]["retired"]) == (["h_score"], True)
    assert (rows[2]["overrides"], rows[2]["retired"]) == ([], False)
    shown = squeezed(run("show", "1").stdout)
    assert "A. Person: needed today (ledger entry 1); overridden: h_score" in shown
    assert "A. Person: donor withdrew (ledger entry 2)" in shown
    assert "promoted despite h_score" in squeezed(run("versions").stdout)
    path = made.project.layout.ledger
    path.write_text(path.read_text().replace("h_score", "ece____"))
    assert isinstance(run("versions").exception, LedgerError)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("file/x.html", "file: File exists"),
        (".", ": Is a directory"),
        ("/proc/x.html", "into /proc: No such"),
    ],
)
def test_where_nothing_can_be_written_is_one_message(made, tmp_path, monkeypatch, capsys, target, said):
    from canal.cli import root

    def leave(code):
        raise SystemExit(code)

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(root, "leave", leave)
    path = str(tmp_path / target)
    monkeypatch.setattr("sys.argv", ["canal", "lineage", "2", "--html", path, "--root", str(made.root)])
    with pytest.raises(SystemExit, match="1"):
        root.main()
    told = capsys.readouterr().err
    assert told.startswith("canal: cannot ")
    assert said in told
