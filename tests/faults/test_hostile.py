"""Hostile names and reasons are refused, or shown as the text they are, wherever people may write."""

import pytest
from typer.testing import CliRunner

from canal.cli import app
from canal.config.yaml_file import parse_config
from canal.core.errors import CanalError
from tests.support.cells import make_document

NAMES = [
    "../x",
    "/etc/passwd",
    "a\x00b",
    "x" * 5000,
    "'; DROP TABLE model_versions; --",
    "<script>alert(1)</script>",
    "a\nb",
    "${HOME}",
    "%s%n",
    "-rf",
    "[bold]",
    "\u202egnp",
    "con ",
    "",
]
WORDS = [name for name in NAMES if name not in ("a\x00b", "x" * 5000, "a\nb", "\u202egnp", "")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("section", ["stages", "sources"])
def test_stages_and_sources_with_hostile_names_are_refused(section, name):
    document = make_document()
    document[section][name] = dict(document[section]["second"])
    with pytest.raises(CanalError, match=section):
        parse_config(document)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "command",
    [
        ["show"],
        ["promote", "--by", "A", "--why", "b"],
        ["retire", "--by", "A", "--why", "b"],
        ["compare"],
        ["audit"],
        ["lineage"],
        ["impact"],
        ["export", "-o", "x.zip"],
        ["import"],
        ["who"],
        ["annotate", "-o", "x.h5ad"],
        ["validate"],
        ["novel"],
        ["explain"],
        ["stage", "relearn"],
        ["stage", "map"],
    ],
    ids=lambda command: command[0],
)
def test_a_hostile_argument_is_refused_without_a_traceback(tmp_path, monkeypatch, command, name):
    """A project with parameters and an empty registry: nothing may be made of the name."""
    from ruamel.yaml import YAML

    monkeypatch.chdir(tmp_path)
    YAML().dump(make_document(), tmp_path / "params.yaml")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = CliRunner().invoke(app, [*command, "--", name])
    assert done.exit_code != 0
    assert done.exception is None or isinstance(done.exception, SystemExit | CanalError), done.exception
    assert "Traceback" not in done.output
    after = sorted(path.name for path in tmp_path.iterdir() if path.name != ".canal")
    assert after == before


@pytest.mark.parametrize("text", WORDS)
def test_odd_words_in_the_ledger_are_shown_as_they_are(text):
    from io import StringIO

    from rich.console import Console

    from canal.report.registry_tables import ledger_table, rulings_table

    entry = {
        "seq": 1, "time": "2026-01-01T00:00:00+00:00", "kind": "promote", "model": "m", "version": 1,
        "aliases": {"champion": 1}, "who": text, "why": text, "details": {"overrides": [text]},
    }  # fmt: skip
    ruling = {"rule": text, "value": text, "bound": text, "passed": False, "overridden": False, "note": text}
    other = {"version": 2, "stage": text}
    judgement = {"version": 1, "stage": text, "champion": 2, "compared_with": other, "rulings": [ruling]}
    for table in (ledger_table([entry]), rulings_table(judgement)):
        stream = StringIO()
        Console(file=stream, width=400).print(table)
        assert text in stream.getvalue()
