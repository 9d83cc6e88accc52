"""The command line: help for everything, one message for what is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from canal.cli import app
from canal.core.errors import CanalError
from tests.support.installed import messages

COMMANDS = [
    ("versions",),
    ("show",),
    ("annotate",),
    ("novel",),
    ("explain",),
    ("markers",),
    ("validate",),
    ("report",),
    ("init",),
    ("plan",),
    ("run",),
    ("upgrade",),
    ("lineage",),
    ("impact",),
    ("diff",),
    ("who",),
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_argument_has_help_and_an_example(command):
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    assert "Example: canal" in said.stdout
    inner: Any = typer.main.get_group(app)
    for name in command:
        inner = inner.commands[name]
    assert inner.help
    silent = [each.name for each in inner.params if not getattr(each, "help", None) and each.name != "help"]
    assert silent == []


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
