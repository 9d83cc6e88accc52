"""params.yaml read and checked: one line for each problem, each beginning with the path of its key."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from canal.config.params import Config
from canal.config.sections import DanglingNameError
from canal.core.errors import ConfigError
from canal.core.messages import shown_address

_MARKS = ("<<<<<<< ", ">>>>>>> ")
_ADDRESSES = ("url", "storage")
"""Keys whose values may hold a password."""
_LARGEST, _DEEPEST = 200_000, 50
"""Values in a YAML text, aliases written out, and how deep they may lie: params.yaml has hundreds."""


def parse_yaml(text: str | bytes, name: str) -> Any:
    """Return what a YAML text says, after counting what its aliases unfold to.

    Parameters
    ----------
    text
        UTF-8, as bytes or decoded.
    name
        What a message calls it.

    Raises
    ------
    ConfigError
        If it is no YAML, nests or unfolds far beyond what a person writes, or an alias is in what it names.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        _count(YAML(typ="safe").parse(text), name)
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        check_merged(text, name)
        raise ConfigError(f"{name} is no valid YAML: {error}") from error
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        # Values that are none of what they look like, as the date 2001-99-99, raise what Python raises.
        raise ConfigError(f"{name} holds a value that cannot be read: {str(error)[:200]}") from error


def check_merged(text: str | bytes, name: str) -> None:
    """Refuse a text in which git left two sides of a merge that a person has to choose from.

    Raises
    ------
    ConfigError
        Naming the lines.
    """
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).splitlines()
    marked = [str(number) for number, line in enumerate(lines, start=1) if line.startswith(_MARKS)]
    if marked:
        raise ConfigError(
            f"{name} holds two sides of an unsettled merge (git's marks <<<<<<< and >>>>>>> in lines "
            f"{', '.join(marked[:6])}): keep what is right, take the marks out, then run this again. "
            f"`git checkout --ours {Path(name).name}` keeps your side alone, `--theirs` the other one"
        )


def _count(events: Iterable[Any], name: str) -> None:
    """Raise `ConfigError` where values are too many, aliases written out, or lie too deep."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise ConfigError(f"{name}: the alias *{event.anchor} lies in what it stands for")
            total += sizes.get(event.anchor, 1)
        elif kind == "ScalarEvent":
            total += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_nodes.append((event.anchor, total))
            total += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: total - before} if anchor else {}
        if len(open_nodes) > _DEEPEST:
            raise ConfigError(f"{name}: values lie more than {_DEEPEST} deep, which no key of it needs")
        if total > _LARGEST:
            raise ConfigError(f"{name} holds more than {_LARGEST:,} values, aliases written out")


def _problems(error: ValidationError) -> Iterator[str]:
    """Yield one line a problem, beginning with the path of the key."""
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if part != "[key]")
        if item["type"] == "extra_forbidden":
            yield f"{path}: unknown key"
        elif item["type"] == "missing":
            yield f"{path}: missing"
        elif item["type"] == "value_error" and isinstance(item["ctx"]["error"], DanglingNameError):
            yield str(item["ctx"]["error"])
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = shown_address(str(item["input"])) if path.endswith(_ADDRESSES) else str(item["input"])
            found = "" if item["type"] == "value_error" else f" (found {value[:80]!r})"
            yield f"{path}: {message}{found}"


def parse_config(document: Mapping[str, Any]) -> Config:
    """Check a params document and return it typed.

    Raises
    ------
    ConfigError
        With one line for each problem, each beginning with the path of its key.
    """
    try:
        return Config.model_validate(_tuples(document))
    except ValidationError as error:
        lines = list(_problems(error))
        raise ConfigError(f"params.yaml has {len(lines)} problem(s):\n  " + "\n  ".join(lines)) from error


def _tuples(value: Any) -> Any:
    """Return ``value`` with lists as tuples, as the frozen sections hold them."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def load_config(path: Path) -> Config:
    """Read and check ``params.yaml``.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML mapping, or breaks a rule.
    """
    if not path.is_file():
        raise ConfigError(f"{path} not found: run canal in a project folder, or name one with --root")
    try:
        document = parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(document).__name__}")
    return parse_config(document)
