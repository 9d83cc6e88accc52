"""params.yaml read and checked: one line for each problem, each beginning with the path of its key."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from canal.config import Config
from canal.errors import ConfigError
from canal.section import DanglingNameError


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
            found = "" if item["type"] == "value_error" else f" (found {str(item['input'])[:80]!r})"
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
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        raise ConfigError(f"{path} not found: run canal in a project folder, or name one with --root")
    try:
        document = YAML(typ="safe").load(path)
    except YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(document).__name__}")
    return parse_config(document)
