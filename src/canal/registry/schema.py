"""The published JSON schemas of key.json and record.json (draft 2020-12), and what breaks them."""

from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from canal.core.errors import RegistryError
from canal.core.files import read_json

Name = Literal["key", "record"]
NAMES: tuple[str, ...] = get_args(Name)

_SHOWN = 160


def schema(name: str) -> dict[str, Any]:
    """Return the published schema of ``key`` or ``record``.

    Raises
    ------
    RegistryError
        If there is none of that name.
    """
    if name not in NAMES:
        raise RegistryError(f"no schema {name[:80]!r}; there are {', '.join(NAMES)}")
    return _read(name)


def schema_complaints(name: str, document: Any) -> list[str]:
    """Return one sentence for each place where a document breaks the schema, in the order of the places.

    ``name`` is key, record or evaluation.
    """
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(_read(name)).iter_errors(document)
    return [_told(error) for error in sorted(errors, key=lambda one: list(map(str, one.absolute_path)))]


@cache
def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path(__file__).with_name("schemas") / f"{name}.json")
    return found


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error.absolute_path) or "the document"
    message = error.message if len(error.message) <= _SHOWN else f"{error.message[:_SHOWN]}..."
    return f"{place}: {message}"
