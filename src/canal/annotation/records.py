"""Annotation records: what a labelled file says of the model that labelled it, and the log of all of them.

A record stands in the output as ``uns["canal"]`` and, the same text on one line, in the project's log. Its id
is a digest of all else in it, so that a record that was edited is noticed. A CSV file has no place for it:
its record stands in the log alone, and names the file by its digest.
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

NOTE = "canal"
"""The name of the record in uns."""

FORMAT = 2
_READ = (1, 2)
"""Formats that are understood: the first had neither id nor time nor the input's digest."""

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


def of_output(note: str, sha256: str) -> str:
    """Return a record, as text, that also names the file with this digest as what was written."""
    facts = {name: value for name, value in json.loads(note).items() if name != "id"}
    return canonical_json(make_record({**facts, "output": {"sha256": sha256}}))


def genuine(record: Record) -> bool | None:
    """Return whether a record is as it was written; None for the first format, which cannot tell."""
    return None if "id" not in record else record["id"] == _id(record)


def read_record(file: H5adFile) -> Record:
    """Return the record of a labelled h5ad file.

    Raises
    ------
    DataError
        If there is none, or it is of a format this canal does not know.
    """
    try:
        text = file.note(NOTE)
    except DataError as error:
        raise DataError(
            f"{file.path}: uns holds no annotation record, so `canal annotate` did not write this file, or a "
            "program that wrote it again left uns out"
        ) from error
    record = parse_record(text)
    if isinstance(record, str):
        raise DataError(f"{file.path}: uns['{NOTE}'] is no annotation record: {record}")
    return record


def parse_record(text: str) -> Record | str:
    """Return the record that a text is, or what is wrong with it."""
    try:
        record = parse_json(text)
        canonical_json(record).encode()  # no NaN, and no half of a character, which nothing could show
    except ValueError:
        return "it is not JSON"
    if not isinstance(record, dict) or any(name not in record for name in _NEEDED):
        return f"it lacks some of {', '.join(_NEEDED)}"
    if record.get("format") not in _READ:
        return f"this canal reads formats {', '.join(map(str, _READ))}, found {record.get('format')!r}"
    there = {name: shape for name, shape in _SHAPES.items() if name in record}
    wrong = [name for name, shape in there.items() if not isinstance(record[name], shape)]
    if not wrong:
        wrong = [name for name, fine in _details(record) if not fine]
    return f"{', '.join(wrong)}: not what is expected there" if wrong else record


def _details(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield what is looked up or counted by, and whether it can be."""
    yield "model.key", isinstance(record["model"].get("key", ""), str)
    yield "cell_types", all(isinstance(n, int) for n in record["cell_types"].values())
    for name in ("name", "sha256") if "input" in record else ():
        yield f"input.{name}", isinstance(record["input"].get(name), str)
    if "output" in record:
        yield "output.sha256", isinstance(record["output"].get("sha256"), str)


@dataclass(frozen=True)
class Log:
    """What the log of a project holds: its records, oldest first, and how many lines are none."""

    records: tuple[Record, ...]
    unreadable: int

    def of_versions(self, keys: set[str]) -> list[Record]:
        """Return the records of the models with these keys."""
        return [record for record in self.records if record["model"].get("key") in keys]

    def of_output(self, sha256: str) -> Record | None:
        """Return the latest record of a CSV file with this digest, if there is one."""
        made = [one for one in self.records if "output" in one and one["output"]["sha256"] == sha256]
        return made[-1] if made else None


def read_log(path: Path) -> Log:
    """Return the log in ``path``; a file that is not there is an empty log."""
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
