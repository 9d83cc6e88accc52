"""Annotation records: the provenance of a labelled file (model, options, input), and the project's log.

A record is stored in the output as ``uns["canal"]`` and, as the same text on one line, in the project's log.
Its id is a digest of its content, so an edited record is detected. A CSV file cannot hold a record: its
record is in the log alone, and names the file by its digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import DataError
from canal.core.files import parse_json

if TYPE_CHECKING:
    from canal.io.h5ad import H5adFile

RECORD_KEY = "canal"
"""The key of the record in uns."""

FORMAT = 2
_READ = (1, 2)
"""Formats that can be read: the first had neither id nor time nor the input's digest."""

_ID_DIGITS = 32
_NEEDED = ("model", "options", "cell_types", "n_cells")
_SHAPES = {
    "id": str,
    "time": str,
    "input": dict,
    "output": dict,
    "model": dict,
    "options": dict,
    "cell_types": dict,
    "n_cells": int,
}

Record = dict[str, Any]


def make_record(facts: Mapping[str, Any]) -> Record:
    """Return ``facts`` as a record, with its format and its id."""
    record = {"format": FORMAT, **facts}
    return {**record, "id": _id(record)}


def with_output_digest(record: str, sha256: str) -> str:
    """Return a record (as text) with the digest of the output added."""
    facts = {name: value for name, value in json.loads(record).items() if name != "id"}
    return canonical_json(make_record({**facts, "output": {"sha256": sha256}}))


def genuine(record: Record) -> bool | None:
    """Return whether a record is unedited, by its id; None for the first format, which has no id."""
    return None if "id" not in record else record["id"] == _id(record)


def read_record(file: H5adFile) -> Record:
    """Return the record of a labelled h5ad file.

    Raises
    ------
    DataError
        If the file has no record, or one of an unknown format.
    """
    try:
        text = file.note(RECORD_KEY)
    except DataError as error:
        raise DataError(
            f"{file.path}: uns holds no annotation record: `canal annotate` did not write this file, or "
            "another program rewrote it without uns"
        ) from error
    record = parse_record(text)
    if isinstance(record, str):
        raise DataError(f"{file.path}: uns['{RECORD_KEY}'] is no annotation record: {record}")
    return record


def parse_record(text: str) -> Record | str:
    """Return the record in a text, or a message that says what is wrong with the text."""
    try:
        record = parse_json(text)
        canonical_json(record).encode()  # raises for NaN and for lone surrogates
    except ValueError:
        return "it is not JSON"
    if not isinstance(record, dict) or any(name not in record for name in _NEEDED):
        return f"it lacks some of {', '.join(_NEEDED)}"
    if record.get("format") not in _READ:
        return f"this canal reads formats {', '.join(map(str, _READ))}, found {record.get('format')!r}"
    shapes = {name: shape for name, shape in _SHAPES.items() if name in record}
    wrong = [name for name, shape in shapes.items() if not isinstance(record[name], shape)]
    if not wrong:
        wrong = [name for name, valid in _details(record) if not valid]
    return f"{', '.join(wrong)}: not what is expected there" if wrong else record


def _details(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield nested fields that other code relies on, and whether each is valid."""
    yield "model.key", isinstance(record["model"].get("key", ""), str)
    yield "cell_types", all(isinstance(n, int) for n in record["cell_types"].values())
    for name in ("name", "sha256") if "input" in record else ():
        yield f"input.{name}", isinstance(record["input"].get(name), str)
    if "output" in record:
        yield "output.sha256", isinstance(record["output"].get("sha256"), str)


@dataclass(frozen=True)
class Log:
    """A project's log: its records, oldest first, and the number of unreadable lines."""

    records: tuple[Record, ...]
    unreadable: int

    def of_versions(self, keys: set[str]) -> list[Record]:
        """Return the records of the models with these keys."""
        return [record for record in self.records if record["model"].get("key") in keys]

    def of_output(self, sha256: str) -> Record | None:
        """Return the latest record of a CSV file with this digest, if there is one."""
        records = [one for one in self.records if "output" in one and one["output"]["sha256"] == sha256]
        return records[-1] if records else None


def read_log(path: Path) -> Log:
    """Return the log in ``path``; a missing file is an empty log."""
    if not path.is_file():
        return Log((), 0)
    lines = path.read_text(encoding="utf-8", errors="replace").split(
        "\n"
    )  # not splitlines: names may hold U+2028
    parsed = [parse_record(line) for line in lines if line.strip()]
    records = tuple(record for record in parsed if not isinstance(record, str))
    return Log(records, len(parsed) - len(records))


def _id(record: Mapping[str, Any]) -> str:
    return json_digest({name: value for name, value in record.items() if name != "id"})[:_ID_DIGITS]
