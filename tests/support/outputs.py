"""The JSON that commands print, compared with what `canal schema` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator

from canal.app.versions import output_schema
from canal.cli.root import command_line


def complaints(command: str, document: Any) -> list[str]:
    """Return where a command's output differs from its schema; entries beyond the schema's count, too."""
    errors = Draft202012Validator(_closed(output_schema(command))).iter_errors(document)
    return [
        f"{command}: {list(one.absolute_path)}: {[each.message[:200] for each in one.context or [one]]}"
        for one in errors
    ]


def words_of(arguments: Sequence[str]) -> str:
    """Return a command's own words among its arguments, as `canal schema` takes them."""
    is_group = arguments[0] in {group.name for group in command_line.registered_groups}
    return " ".join(one for one in arguments[: 1 + is_group] if not one.startswith("-"))


def _closed(schema: Any) -> Any:
    """Return a schema by which an object has no entries but the named ones."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items()}
    return closed | (
        {"additionalProperties": False} if "properties" in schema and "required" in schema else {}
    )
