"""The command line: help for everything, one message for what is wrong."""

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from canal.app.versions import output_schema
from canal.cli import app
from canal.cli.parsing import shown_examples
from canal.cli.root import PANELS
from canal.core.errors import CanalError
from tests.support.installed import messages

COMMANDS = [
    ("versions",),
    ("show",),
    ("annotate",),
    ("collect",),
    ("novel",),
    ("explain",),
    ("markers",),
    ("validate",),
    ("report",),
    ("init",),
    ("plan",),
    ("run",),
    ("status",),
    ("doctor",),
    ("upgrade",),
    ("lineage",),
    ("impact",),
    ("diff",),
    ("who",),
    ("watch",),
    ("stage", "add"),
    ("stage", "map"),
    ("stage", "relearn"),
    ("backbone", "import"),
    ("tune", "show"),
    ("tune", "run"),
    ("registry", "sync"),
    ("promote",),
    ("compare",),
    ("rollback",),
    ("retire",),
    ("unlearn",),
    ("erase",),
    ("merge",),
    ("share",),
    ("ledger",),
    ("ledger", "anchor"),
    ("ledger", "merge"),
    ("registry", "rebuild"),
    ("audit",),
    ("schema",),
    ("export",),
    ("import",),
    ("keys", "new"),
    ("keys", "show"),
    ("keys", "add"),
    ("sums", "backfill"),
    ("basis", "export"),
    ("basis", "adopt"),
    ("serve",),
    ("ui",),
    ("registry", "ui"),
    ("models", "add"),
    ("models", "list"),
    ("models", "show"),
    ("models", "remove"),
]


def test_every_command_is_listed_here():
    group = typer.main.get_group(app)
    found = {
        (name, *((inner,) if inner else ()))
        for name, command in group.commands.items()
        for inner in (
            *getattr(command, "commands", ()),
            *([""] if getattr(command, "invoke_without_command", True) else ()),
        )
    }
    assert found == set(COMMANDS)


@cache
def shown_help(*command: str) -> str:
    """Return the help of a command on a terminal of 80 columns."""
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert said.exit_code == 0
    return said.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_argument_has_help_and_an_example(command):
    assert re.search(r"^ Examples: *\n   canal ", shown_help(*command), flags=re.MULTILINE)
    inner = command_named(*command)
    assert inner.help
    silent = [each.name for each in inner.params if not getattr(each, "help", None) and each.name != "help"]
    assert silent == []


@cache
def command_tree() -> Any:
    """Return click's tree of commands."""
    return typer.main.get_group(app)


def command_named(*names: str) -> Any:
    """Return a command of click's tree."""
    found = command_tree()
    for name in names:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_of_its_command_and_parses(command):
    shown = shown_examples(command_named(*command).epilog)
    assert shown
    for example in shown:
        words = shlex.split(re.split(r" (?:\||>>) ", example)[0])
        assert tuple(words[1 : 1 + len(command)]) == command
        at, context = command_named(), None
        rest = words[1:]
        while rest and rest[0] in getattr(at, "commands", ()):
            at = at.commands[rest.pop(0)]
        context = at.make_context("canal", rest)  # refuses unknown options, missing and surplus arguments
        assert not context.args


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_stand_on_lines_of_their_own_in_80_columns(command):
    said = shown_help(*command)
    shown = "\n".join(line.rstrip() for line in said.partition("Examples:")[2].strip().splitlines())
    lines = re.sub(r" \\\n +", " ", shown).splitlines()
    assert [line.strip() for line in lines] == shown_examples(command_named(*command).epilog)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_paragraph_of_help_flows_to_the_width_of_the_terminal(command):
    """Lines of 110 columns broke at 80 and again where the source ends them."""
    paragraphs = command_named(*command).help.split("\n\n")
    assert [one for one in paragraphs if "\n" in one] == []


def test_commands_stand_in_panels_each_on_one_line():
    said = shown_help()
    group = command_tree()
    assert sorted(group.list_commands(None)) == sorted(group.commands)
    assert group.list_commands(None)[0] == "annotate"
    assert re.findall(r"─ ([A-Z][a-z ]+) ─", said) == ["Options", *PANELS]
    for panel in re.split(r"╭─ ", said)[2:]:
        names = re.findall(r"^│ (\S+)  ", panel, flags=re.MULTILINE)
        assert len(names) == panel.count("\n│ ")  # a second line has no name


WITHOUT_JSON = {
    ("serve",): "answers over HTTP until it is told to end",
    ("ui",): "shows the board until it is told to end",
    ("registry", "ui"): "runs MLflow's pages until it is told to end",
    ("schema",): "prints JSON by itself",
}


def test_the_first_sentence_of_help_says_what_canal_is():
    said = CliRunner().invoke(app, ["--help"]).stdout
    assert "An annotator of single-cell RNA-seq data" in said
    assert "Declare" not in said


def test_every_command_prints_json_whose_schema_can_be_had():
    with_json = {
        command for command in COMMANDS if any("--json" in one.opts for one in command_named(*command).params)
    }
    assert set(COMMANDS) - with_json == set(WITHOUT_JSON)
    for command in with_json:
        Draft202012Validator.check_schema(output_schema(" ".join(command)))
    said = CliRunner().invoke(app, ["schema", "stage", "add"])
    assert json.loads(said.stdout) == output_schema("stage add")
    with pytest.raises(CanalError, match="there are") as refusal:
        output_schema("no such command")
    assert {*str(refusal.value).rpartition("commands: ")[2].split(", ")} == {
        " ".join(one) for one in with_json
    }


def test_help_imports_nothing_heavy():
    code = (
        "import atexit, sys; sys.argv = ['canal', '--help']\n"
        "from canal.cli import main\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'numpy', 'anndata', 'great_expectations', 'dvc', 'pydantic'}\n"
        "atexit.register(lambda: sys.stderr.write(f'heavy: {sorted(heavy & set(sys.modules))}'))\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "annotate" in done.stdout
    assert done.stderr == "heavy: []"


def test_outside_a_project_there_is_one_clear_message(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "canal.cli", "versions"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = messages(done.stderr)
    assert line.startswith("canal: ")
    assert "params.yaml not found" in line
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_one_line_that_says_how_to_go_on():
    code = (
        "import sys\n"
        "from canal.cli import root\n"
        "def stop(_):\n"
        "    error = KeyboardInterrupt()\n"
        "    error.add_note('--resume continues after the first 20 cells')\n"
        "    raise error\n"
        "root.open_project = stop\n"
        "sys.argv = ['canal', 'registry', 'sync']\n"
        "root.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert messages(done.stderr) == ["canal: interrupted; --resume continues after the first 20 cells"]


def test_what_cannot_be_written_for_want_of_room_is_one_clear_message():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "canal.cli", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "canal: [Errno 28] No space left on device: make room, then run this again\n"


def test_a_project_without_versions_says_what_to_do(tmp_path):
    from tests.support.cells import make_document

    write_params(tmp_path, make_document())
    said = CliRunner().invoke(app, ["annotate", "x.h5ad", "-o", "y.h5ad", "--root", str(tmp_path)])
    assert isinstance(said.exception, CanalError)
    assert "run `canal run` first" in str(said.exception)
    said = CliRunner().invoke(app, ["versions", "--json", "--root", str(tmp_path)])
    assert (said.exit_code, said.stdout.strip()) == (0, "[]")


def write_params(folder, document):
    from ruamel.yaml import YAML

    YAML().dump(document, folder / "params.yaml")
