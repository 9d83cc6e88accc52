"""Editing params.yaml for a person: a stage added or relearned, a backbone imported; comments stay."""

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.config.yaml_file import parse_config, parse_yaml
from canal.core.errors import ConfigError
from canal.core.files import new_file


def with_stage(
    text: str, name: str, source: Mapping[str, Any], parent: str, fixed: bool = False, grow: int = 0
) -> str:
    """Return params.yaml's text with one more source and one more stage, both called ``name``.

    The stage is tuned where params.yaml has a section ``tuning``, unless it is to be ``fixed``; it may add
    ``grow`` genes to its parent's panel.

    Raises
    ------
    ConfigError
        If the name is taken or no name, or the result would break a rule.
    """
    config = parse(text)
    for section in ("sources", "stages"):
        if name in getattr(config, section):
            raise ConfigError(f"{section}.{name} exists already; choose another name")
    text = _append(text, "sources", {name: dict(source)})
    entry = {name: {"source": name, "parent": parent}}
    growing = {"panel": {"grow": grow}} if grow else {}
    text = _append(text, "stages", {name: entry[name] | growing})
    text = _append(text, "finetune", entry, "fixed" if fixed or config.tuning is None else "tuned")
    parse(text)
    return text


def with_branch(text: str, name: str) -> tuple[str, list[str]]:
    """Return params.yaml's text with a new branch from stage ``name`` on, and the stages to be relearned.

    A stage's descendants learned from it, so they get a new branch too.

    Raises
    ------
    ConfigError
        If there is no such stage.
    """
    config = parse(text)
    if name != BACKBONE and name not in config.stages:
        raise ConfigError(f"no stage {name!r}; there are {', '.join((BACKBONE, *config.stages))}")
    touched = [
        stage for stage in config.stages if name == BACKBONE or name in (*config.ancestors(stage), stage)
    ]
    yaml = _round_trip()
    document = yaml.load(text)
    for stage in touched:
        document["stages"][stage]["branch"] = config.stages[stage].branch + 1
    if name == BACKBONE:
        document["backbone"]["branch"] = config.backbone.branch + 1
        touched = [BACKBONE, *touched]
    return _dumped(document), touched


def with_import(text: str, path: str, key: str) -> str:
    """Return params.yaml's text with the imported backbone in folder ``path``, whose key has digest ``key``.

    Raises
    ------
    ConfigError
        If the result would break a rule: an imported backbone excludes some settings of pre-training.
    """
    from ruamel.yaml.comments import CommentedMap

    document = _round_trip().load(text)
    _put(document.setdefault("backbone", CommentedMap()), "imported", {"path": path, "key": key})
    text = _dumped(document)
    parse(text)
    return text


def with_basis(text: str, path: str, digest: str) -> str:
    """Return params.yaml's text with the adopted basis in folder ``path``.

    Raises
    ------
    ConfigError
        If the result would break a rule.
    """
    document = _round_trip().load(with_memory(text))
    _put(document["memory"], "basis", {"path": path, "digest": digest})
    text = _dumped(document)
    parse(text)
    return text


def _put(section: Any, name: str, entry: dict[str, str]) -> None:
    """Set an entry of a section of a round-trip document; a new one stands at the top.

    What follows the section's last line (a blank, a comment) belongs to the next section.
    """
    if name in section:
        section[name] = entry
    else:
        section.insert(0, name, entry)


def with_memory(text: str) -> str:
    """Return params.yaml's text with a section ``memory``, which DVC compares; one from before sums has none.

    An empty one says what none says, so requests stay as they are.
    """
    if re.search(r"^memory\s*:", text, re.MULTILINE):
        return text
    return f"{text.rstrip()}\n\nmemory: {{}}              # how sums are solved; docs/memory.md\n"


def parse(text: str) -> Config:
    """Return the configuration that a params.yaml text describes."""
    return parse_config(parse_yaml(text, "params.yaml"))


def save(path: Path, text: str) -> None:
    """Replace params.yaml, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def last_stage(config: Config) -> str:
    """Return the stage that the next one is learned on by default: the last one listed."""
    return list(config.stages)[-1]


def _append(text: str, section: str, entry: Mapping[str, Any], group: str = "") -> str:
    """Insert an entry at the end of a top-level mapping, or of a mapping ``group`` in it.

    Every other line stays as it is.
    """
    lines = text.splitlines(keepends=True)
    if lines and lines[-1][-1] != "\n":
        lines[-1] += "\n"
    start, end = _block(lines, section, range(len(lines)), "")
    indent = "  "
    if group:
        start, end = _block(lines, group, range(start + 1, end), indent)
        lines[start] = re.sub(r":\s*\{\s*\}", ":", lines[start])
        indent = "    "
    added = [f"{indent}{line}\n" for line in _dumped(entry).splitlines()]
    return "".join([*lines[:end], *added, *lines[end:]])


def _block(lines: list[str], name: str, within: range, indent: str) -> tuple[int, int]:
    """Return the line of a mapping's name and the line behind its last entry; it may be empty: ``{}``.

    Blanks and comments that follow the last entry belong to what comes next.
    """
    opening = re.compile(rf"{indent}{name}:\s*(\{{\s*\}}\s*)?(#.*)?$")
    start = next((i for i in within if opening.match(lines[i])), None)
    if start is None:
        raise ConfigError(
            f"params.yaml: `{name}:` must stand on a line of its own, indented by {len(indent)}, "
            "to be edited by `canal stage add`"
        )
    deeper = f"{indent} "
    end = start + 1
    for i in range(start + 1, within.stop):
        if lines[i].strip() and not lines[i].startswith(deeper) and not lines[i].lstrip().startswith("#"):
            break
        if lines[i].startswith(deeper) and lines[i].strip():
            end = i + 1
    return start, end


def _round_trip() -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as ``null``, as people do; ruamel leaves its place empty."""

    null = "tag:yaml.org,2002:null"
    Representer.add_representer(type(None), lambda to, _: to.represent_scalar(null, "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 10_000
    yaml.preserve_quotes = True
    return yaml


def _dumped(document: Any) -> str:
    stream = StringIO()
    _round_trip().dump(document, stream)
    return stream.getvalue()
