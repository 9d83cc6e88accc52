"""Annotation records: the provenance of a labelled file (model, options, input), and the project's log.

A record is stored in the output as ``uns["canal"]``, or under the key that was chosen instead, and, as the
same text on one line, in the project's log. It is a text and no mapping, since an h5ad file could not hold
all of it otherwise: names of types may have a ``/``, and JSON's null, empty lists and lists of mappings have
no place there. Its id is a digest of its content, so an edited record is detected. A CSV file cannot hold a
record: its record is in the log alone, and names the file by its digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.columns import KEY, is_key
from canal.core.digests import canonical_json, json_digest
from canal.core.errors import DataError
from canal.io.arrays import listed

if TYPE_CHECKING:
    from canal.io.h5ad import H5adFile

RECORD_KEY = KEY
"""The key of the record in uns by default, and always in the metadata of a Parquet table."""

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


def key_of(record: Mapping[str, Any]) -> str:
    """Return the key under which a record's labels stand: ``canal``, or ``--key-added``."""
    return str(record.get("options", {}).get("key_added", KEY))


def read_record(file: H5adFile, key: str | None = None) -> Record:
    """Return the record of a labelled h5ad file.

    Parameters
    ----------
    file
        The file.
    key
        Under which key its labels stand; by default ``canal``, else the only one that has a record.

    Raises
    ------
    DataError
        If the file has no record, several of which none is under ``canal``, or one of an unknown format.
    """
    return find_record(str(file.path), file.members("uns"), file.text_in_uns, key)


def find_record(
    name: str, keys: Iterable[str], text_of: Callable[[str], str | None], key: str | None = None
) -> Record:
    """Return the record among the members of uns; see `read_record`.

    Parameters
    ----------
    name
        What a message calls the file.
    keys, text_of
        The names in uns, and a function that gives the text under one of them, None for anything else.
    key
        As in `read_record`.
    """
    names = list(keys)
    if key is None and KEY not in names:
        held = record_keys(names, text_of)
        if len(held) > 1:
            raise DataError(
                f"{name}: uns holds annotation records under {listed(held)}: choose one with --key-added "
                "(Python: key)"
            )
        key = held[0] if held else None
    chosen = KEY if key is None else key
    text = text_of(chosen) if chosen in names else None
    if text is None:
        others = record_keys(names, text_of)
        hint = f"; there are records under {listed(others)}" if others else ""
        under = "" if chosen == KEY else f" under {chosen!r}"
        raise DataError(
            f"{name}: uns holds no annotation record{under}: `canal annotate` did not write this file, or "
            f"another program rewrote it without uns{hint}"
        )
    record = parse_record(text)
    if isinstance(record, str):
        raise DataError(f"{name}: uns['{chosen}'] is no annotation record: {record}")
    if key_of(record) != chosen:
        raise DataError(
            f"{name}: uns['{chosen}'] is the record of labels under {key_of(record)!r}: it was moved; label "
            "the file again with `canal annotate`"
        )
    return record


def record_keys(keys: Iterable[str], text_of: Callable[[str], str | None]) -> list[str]:
    """Return the names in uns under which an annotation record stands, sorted."""
    texts = {key: text_of(key) for key in sorted(keys) if is_key(key)}
    records = {key: parse_record(text) for key, text in texts.items() if text is not None}
    return [key for key, one in records.items() if isinstance(one, dict) and key_of(one) == key]


def _finite(number: str) -> float:
    """Return a number of JSON; raises `ValueError` for NaN and what no float can hold."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return value


_READER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parse_record(text: str) -> Record | str:
    """Return the record in a text, or a message that says what is wrong with the text."""
    try:
        record = _READER.decode(text)
        (canonical_json(record) if "\\u" in text else text).encode()  # raises for lone surrogates
    except (ValueError, RecursionError):
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
    yield "options.key_added", is_key(record["options"].get("key_added", KEY))
    yield "cell_types", all(isinstance(n, int) for n in record["cell_types"].values())
    for name in ("name", "sha256") if "input" in record else ():
        yield f"input.{name}", isinstance(record["input"].get(name), str)
    if "output" in record:
        yield "output.sha256", isinstance(record["output"].get("sha256"), str)


@dataclass(frozen=True)
class Log:
    """A project's log: its records, oldest first, and the number of unreadable lines.

    ``edited`` are the places of records that were edited after they were written; see `genuine`.
    """

    records: tuple[Record, ...]
    unreadable: int
    edited: frozenset[int] = frozenset()

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
    parsed = [(parse_record(line), line) for line in lines if line.strip()]
    read = [(record, line) for record, line in parsed if not isinstance(record, str)]
    edited = frozenset(place for place, one in enumerate(read) if not _sealed(*one))
    return Log(tuple(record for record, _ in read), len(parsed) - len(read), edited)


def _sealed(record: Record, line: str) -> bool:
    """Whether a record is unedited, by its line: as it was written, the line is the text of its digest."""
    own = f'"id":"{record.get("id")}",'
    if hashlib.sha256(line.replace(own, "", 1).encode()).hexdigest()[:_ID_DIGITS] == record.get("id"):
        return True
    return genuine(record) is not False


def _id(record: Mapping[str, Any]) -> str:
    return json_digest({name: value for name, value in record.items() if name != "id"})[:_ID_DIGITS]
