"""Editing params.yaml for a person: a stage added or relearned, a backbone imported; comments stay."""

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from canal.config import BACKBONE, Config
from canal.errors import ConfigError
from canal.files import new_file
from canal.params import parse_config


def with_stage(text: str, name: str, source: Mapping[str, Any], parent: str) -> str:
    """Return params.yaml's text with one more source and one more stage, both called ``name``.

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
    text = _append(text, "stages", {name: {"source": name, "parent": parent}})
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
    section = document.setdefault("backbone", CommentedMap())
    entry = {"path": path, "key": key}
    if "imported" in section:
        section["imported"] = entry
    else:
        # At the top: what follows the section's last line (a blank, a comment) belongs to the next one.
        section.insert(0, "imported", entry)
    text = _dumped(document)
    parse(text)
    return text


def parse(text: str) -> Config:
    """Return the configuration that a params.yaml text describes."""
    from ruamel.yaml import YAML

    return parse_config(YAML(typ="safe").load(text))


def save(path: Path, text: str) -> None:
    """Replace params.yaml, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def last_stage(config: Config) -> str:
    """Return the stage that the next one is learned on by default: the last one listed."""
    return list(config.stages)[-1]


def _append(text: str, section: str, entry: Mapping[str, Any]) -> str:
    """Insert an entry at the end of a top-level mapping, leaving every other line as it is."""
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if re.match(rf"{section}:\s*(#.*)?$", line)), None)
    if start is None:
        raise ConfigError(
            f"params.yaml: `{section}:` must stand on a line of its own to be edited by `canal stage add`"
        )
    end = start + 1
    for i in range(start + 1, len(lines)):
        if lines[i].strip() and not lines[i][0].isspace() and lines[i][0] != "#":
            break
        if lines[i].strip() and lines[i][0].isspace():
            end = i + 1
    if lines[end - 1][-1] != "\n":
        lines[end - 1] += "\n"
    added = [f"  {line}\n" for line in _dumped(entry).splitlines()]
    return "".join([*lines[:end], *added, *lines[end:]])


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
