"""The reference is what the code says: each command and each key of params.yaml stands in it, described."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from canal.cli import app
from canal.config import decisions, params, sections, stage_sections
from canal.config.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "tools" / "reference_pages.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.mark.parametrize(("page", "made"), [("commands", "commands_page"), ("params", "params_page")])
def test_a_page_is_what_the_code_says(page, made):
    written = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert written == getattr(reference, made)(), "run python tools/reference_pages.py"


def test_every_command_and_every_key_is_described():
    assert reference.undescribed() == []


def shown(at, words=("canal",)):
    """Yield the words of every command that `--help` shows, also of groups that are commands themselves."""
    for name, command in getattr(at, "commands", {}).items():
        if not command.hidden:
            if not hasattr(command, "commands") or command.invoke_without_command:
                yield " ".join((*words, name))
            yield from shown(command, (*words, name))


def test_no_command_is_missing():
    page = reference.commands_page()
    headings = re.findall(r"^## (canal .*)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(shown(typer.main.get_command(app)))
    assert len(headings) > 40


def test_no_option_of_annotate_is_missing():
    part = reference.commands_page().split("\n## canal annotate\n")[1].split("\n## ")[0]
    root: Any = typer.main.get_command(app)
    named = {
        name for one in root.commands["annotate"].params for name in one.opts if name.startswith("-")
    } - {"--help"}
    assert named == {name for name in re.findall(r"`(--?[a-z-]+)`", part) if name != "--help"}


def test_no_key_of_any_section_is_missing():
    """The models are looked for in their modules, not by the way from one to another that the page takes."""
    page = reference.params_page()
    keys = {key.rsplit(".", 1)[-1] for key in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)}
    models = [
        model
        for module in (params, sections, stage_sections, decisions)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel
    ]
    assert len(set(models)) > 25
    sections_told = set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert {name for model in models for name in model.model_fields} <= keys | sections_told


def test_every_file_of_a_project_is_listed(tmp_path):
    """`Layout` alone knows the names of files and folders, and the page has a row for each."""
    layout = Layout(tmp_path)
    paths = []
    for name, member in vars(Layout).items():
        if isinstance(member, property):
            paths.append(getattr(layout, name))
        elif callable(member) and not name.startswith("_"):
            paths.append(member(layout, *["x"] * (member.__code__.co_argcount - 1)))
    first = {path.relative_to(tmp_path).parts[0] for path in paths if path != tmp_path}
    assert len(first) > 20
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert {name for name in first if not re.search(rf"`{re.escape(name)}[`/]", rows)} == set()
