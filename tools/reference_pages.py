"""Two pages of the documentation from the code: every command, and every key of params.yaml.

    python tools/reference_pages.py            # writes commands.md and params.md into docs/reference
    python tools/reference_pages.py --check    # fails where a page is not what the code says

A command is described by its help, a key by the docstring below its field in `canal.config`.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from canal.cli import app
from canal.config.params import Config

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_TAGS = re.compile(r"\[/?(?:bold|dim|italic|cyan|red|green|yellow)\]")
"""Colours of rich in the texts of commands."""

_METAVARS = {int: "NUMBER", float: "NUMBER", Path: "PATH"}

_COMMANDS = """\
# Command line

Every command of canal, written from its own help by `make reference`. Exit codes: 0 done, 1 refused
(one message says why), 2 wrong arguments. What is written to the terminal beside a result goes to
the error stream, so `--json` can be piped. [Reference](../reference.md) has what
`canal annotate` writes, the `make` commands and the environment variables.
"""
_PARAMS = """\
# params.yaml

Every key of `params.yaml`, written from the models that read it by `make reference`. An unknown
key, a wrong type or a name that points nowhere is refused with the path of its key. Every key has a
default but those of sources and stages. DVC compares whole sections, so those that its steps name
must be there, if only as `{}`: `canal init` writes all of them, and `canal run` adds what an older
file lacks. Once a stage is learned, a key that decided what it learned is not changed behind its
back: the run is refused and says what differs
([The past is not retrained](../concepts.md#the-past-is-not-retrained)).
"""


# Commands --------------------------------------------------------------------------------------------


def commands(at: Any = None, words: str = "canal") -> Iterator[tuple[str, Any]]:
    """Yield the words and the click command of every command that is not hidden, in the order of help."""
    at = typer.main.get_command(app) if at is None else at
    for name in at.list_commands(None):
        command = at.commands[name]
        if command.hidden:
            continue
        grouped = hasattr(command, "commands")
        if not grouped or command.invoke_without_command:
            yield f"{words} {name}", command
        if grouped:
            yield from commands(command, f"{words} {name}")


def commands_page() -> str:
    """Return the page of the command line: an overview by panel, then a part for each command."""
    panels: dict[str, list[str]] = {}
    root: Any = typer.main.get_command(app)
    parts: list[str] = []
    for words, command in commands(root):
        first = root.commands[words.split()[1]]
        panel = _text(getattr(first, "rich_help_panel", None)) or "Commands"
        row = f"| [`{words}`](#{words.replace(' ', '-')}) | {_cell(_sentence(command.help))} |"
        panels.setdefault(panel, []).append(row)
        parts.append(_command(words, command))
    overview = [
        f"## {panel}\n\n| command | does |\n| --- | --- |\n" + "\n".join(rows)
        for panel, rows in panels.items()
    ]
    return "\n".join([_COMMANDS, "\n\n".join(overview), "", "\n".join(parts)]).rstrip() + "\n"


def _command(words: str, command: Any) -> str:
    """Return the part of a page about one command."""
    arguments = [one for one in command.params if one.param_type_name == "argument" and not one.hidden]
    options = [
        one
        for one in command.params
        if one.param_type_name == "option" and not one.hidden and one.name != "help"
    ]
    usage = " ".join([words, *map(_argument, arguments)])
    lines = [f"## {words}", "", f"`{usage}`", "", _paragraphs(command.help), ""]
    for title, params in (("argument", arguments), ("option", options)):
        if params:
            lines += [f"| {title} | default | is |", "| --- | --- | --- |"]
            lines += [f"| {_names(one)} | {_default(one)} | {_cell(_help(one))} |" for one in params]
            lines.append("")
    if examples := examples_of(command):
        lines += ["Examples:", "", *(f"- `{example}`" for example in examples), ""]
    return "\n".join(lines)


def examples_of(command: Any) -> list[str]:
    """Return the examples at the end of a command's help, one a line or parted by blanks."""
    told = re.sub(r"^\s*Examples?:\s*", "", _text(command.epilog))
    told = re.sub(r" *\\+\n\s*", " ", _TAGS.sub("", told)).replace("\\[", "[")
    return [one for line in told.splitlines() for one in re.split(r"\s{3,}", line.strip()) if one]


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).strip("[]")
    name = f"{name}..." if param.nargs == -1 and not name.endswith("...") else name
    return name if param.required else f"[{name}]"


def _names(param: Any) -> str:
    """Return how a parameter is written, with what it takes."""
    if param.param_type_name == "argument":
        return f"`{_argument(param)}`"
    names = ", ".join(f"`{name}`" for name in sorted(param.opts, key=lambda name: not name.startswith("--")))
    if param.secondary_opts:
        names += f" or {', '.join(f'`{name}`' for name in param.secondary_opts)}"
    if param.is_flag:
        return names
    takes = f"`{param.metavar}`" if param.metavar else _takes(param.type_descriptor.annotation)
    return f"{names} {takes}" + (" (repeatable)" if param.multiple else "")


def _takes(annotation: Any) -> str:
    """Return what an option takes, by its type in Python."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{one.value}`" for one in annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{one}`" for one in sorted(get_args(annotation)))
    return f"`{_METAVARS.get(annotation, 'TEXT')}`"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if param.default is None or callable(param.default) or param.default in ((), [], False, ""):
        return ""
    if param.default is True:
        return "on"
    return f"`{param.default}`"


def _help(param: Any) -> str:
    told = _text(param.help)
    variable = getattr(param, "envvar", None)
    return f"{told} Environment variable: `{variable}`." if variable else told


# Parameters ------------------------------------------------------------------------------------------


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring below each field of a model says of it."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    found: dict[str, str] = {}
    for field, below in zip(body, body[1:], strict=False):
        said = (
            below.value.value
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            else None
        )
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, str):
            found[field.target.id] = " ".join(said.split())
    return found


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """Yield the path, the field and the description of every key below a model, in the order of the code."""
    told = described(model)
    for name, field in model.model_fields.items():
        here = f"{path}{name}"
        yield here, field, told.get(name, "")
        if (below := _model(field.annotation)) is not None:
            within, inner = below
            yield from keys(inner, here + within)


def params_page() -> str:
    """Return the page of params.yaml: plain keys of the top level, then a part for each section."""
    told, alone, parts = described(Config), [], []
    for name, field in Config.model_fields.items():
        below = _model(field.annotation)
        if below is None:
            alone.append((name, field, told.get(name, "")))
            continue
        within, inner = below
        about = [f"## {name}", "", _paragraphs(inner.__doc__), ""]
        parts.append("\n".join([*about, _keys_table([*keys(inner, name + within)])]))
    top = "\n".join(["## At the top level", "", _keys_table(alone)])
    return "\n".join([_PARAMS, top, *parts]).rstrip() + "\n"


def _keys_table(rows: list[tuple[str, FieldInfo, str]]) -> str:
    lines = ["| key | takes | default | is |", "| --- | --- | --- | --- |"]
    for path, field, told in rows:
        takes = _type(field.annotation) + _bounds(field)
        lines.append(f"| `{path}` | {takes} | {_value(field)} | {_cell(told)} |")
    return "\n".join([*lines, ""])


def _model(annotation: Any) -> tuple[str, type[BaseModel]] | None:
    """Return what stands between the keys of a section and its own, and its model; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ".", annotation
    for one in get_args(annotation):
        if (found := _model(one)) is not None:
            between = {dict: ".NAME.", tuple: "[]."}.get(get_origin(annotation), found[0])
            return between, found[1]
    return None


def _type(annotation: Any) -> str:
    """Return what a key takes, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:  # sorted: typing keeps one `Literal | None` for all orders, that which came first
        return " or ".join(f"`{one}`" for one in sorted(inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in inner if one is not NoneType))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"map of {_type(inner[0])} to {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _WORDS.get(annotation, str(annotation))


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(one, name):,}"
        for one in field.metadata
        for name, sign in _BOUNDS.items()
        if isinstance(getattr(one, name, None), int | float)
    ]
    return f", {', '.join(found)}" if found else ""


def _value(field: FieldInfo) -> str:
    """Return a default as params.yaml would have it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if value in ((), {}, ""):
        return "empty"
    return f"`{value}`"


# Both ------------------------------------------------------------------------------------------------


def _text(told: Any) -> str:
    """Return a text of click or typer: typer hands on a placeholder where nothing was given."""
    return inspect.cleandoc(told) if isinstance(told, str) else ""


def _sentence(told: Any) -> str:
    paragraph = " ".join(_text(told).split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", paragraph)[0]


def _paragraphs(told: Any) -> str:
    blocks = [" ".join(block.split()) for block in _text(told).split("\n\n")]
    return "\n\n".join(textwrap.fill(_escaped(block), 100) for block in blocks if block)


def _cell(told: str) -> str:
    return _escaped(" ".join(told.split())).replace("|", "\\|")


def _link(named: re.Match[str]) -> str:
    """Return a link to a page, by the page's own title."""
    first = (PAGES.parent / named[1]).read_text(encoding="utf-8").partition("\n")[0]
    return f"[{first.removeprefix('# ')}](../{named[1]})"


def _escaped(told: str) -> str:
    """Return a text as Markdown: no tags of rich, one backtick for code, no HTML outside of it."""
    told = _TAGS.sub("", told).replace("``", "`")
    told = re.sub(r"(?:canal's )?\bdocs/(\w+\.md)", _link, told)
    parts = told.split("`")
    parts[::2] = [re.sub(r"([<*_])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def undescribed() -> list[str]:
    """Return the commands, parameters and keys that nothing describes."""
    found = [words for words, command in commands() if not _text(command.help)]
    for words, command in commands():
        shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
        found += [f"{words} {one.name}" for one in shown if not _text(getattr(one, "help", None))]
    return found + [path for path, _, told in keys(Config) if not told]


def main() -> None:
    """Write both pages, or compare them with what they should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is out of date"
    )
    check = parser.parse_args().check
    if missing := undescribed():
        sys.exit(f"reference: nothing describes {', '.join(missing)}")
    old = []
    for name, text in (("commands.md", commands_page()), ("params.md", params_page())):
        page = PAGES / name
        if check:
            old += (
                []
                if page.is_file() and page.read_text(encoding="utf-8") == text
                else [f"docs/reference/{name}"]
            )
        else:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
    if old:
        sys.exit(f"reference: {' and '.join(old)} differ from the code: run python tools/reference_pages.py")


if __name__ == "__main__":
    main()
