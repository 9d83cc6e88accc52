"""Label maps: which cell type a published label stands for, as a person wrote it down.

It is the sheet of `canal stage map`, in which every label has to be decided, or a CSV of two columns, with
their names above them or not, in which a label without a type is left out.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from canal.annotation.harmonise import DROP, ONTOLOGY_ID, plain, quoted_names
from canal.annotation.sheet import read_lines
from canal.core.errors import ConfigError, DataError, no_such_file
from canal.data.prepare import is_no_type
from canal.io.arrays import EXAMPLES
from canal.io.writer import original

NEEDED = ("label", "cell_type")
"""Columns of a sheet that decide; the others say what the proposals rest on."""


@dataclass(frozen=True)
class LabelMap:
    """The decisions of a sheet: a cell type or None (left out) by label, and ids by cell type."""

    types: Mapping[str, str | None]
    ontology: Mapping[str, str]


def read_label_map(path: Path) -> LabelMap:
    """Read a sheet of `canal stage map`, or a CSV of label and cell type (empty: the label is dropped).

    Raises
    ------
    ConfigError
        If there is no such file, or it is neither.
    DataError
        If it is a sheet in which a label is undecided; see `read_map_sheet`.
    """
    if not path.is_file():
        raise ConfigError(no_such_file(path, "`canal stage map` writes a label map"))
    if is_map_sheet(path):
        return read_map_sheet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"label map {path} cannot be read as a CSV file in UTF-8 ({error}): save it as such"
        ) from error
    wrong = [row for row in rows if len(row) != 2 or not row[0].strip()]
    if wrong or not rows:
        problem = f"{len(wrong)} other line(s), such as {wrong[0]}" if wrong else "an empty file"
        raise ConfigError(
            f"label map {path} must hold lines of two columns, label,cell type, or be a sheet of "
            f"`canal stage map`; found {problem}"
        )
    return LabelMap({label.strip(): cell_type.strip() or None for label, cell_type in rows}, {})


def read_map_sheet(sheet: Path) -> LabelMap:
    """Read a sheet in which a person decided the cell type of every label.

    Raises
    ------
    DataError
        If a label is undecided or stands twice, a cell type is a word for no type, an id is none of the Cell
        Ontology, or a type has two ids or two types have one.
    """
    lines = read_lines(sheet, NEEDED, "canal stage map FILE.h5ad", optional=("ontology_id", "label_id"))
    may_be_empty = set(_header(sheet)) == set(NEEDED)  # a person's own table, and no sheet to be filled in
    types: dict[str, str | None] = {}
    undecided, twice, no_types = [], [], []
    for line in lines:
        label, given = original(line["label"]).strip(), original(line["cell_type"]).strip()
        twice += [label] if label in types else []
        undecided += [label] if not given and not may_be_empty else []
        dropped = given.casefold() in (DROP, "null") or (may_be_empty and not given)
        no_types += [f"{given!r} of {label!r}"] if given and not dropped and is_no_type(given) else []
        types[label] = None if dropped else given
    if undecided:
        number = f"{len(undecided)} of {len(types)} labels"
        raise DataError(
            f"{sheet}: {number} are undecided: {quoted_names(undecided)}. Fill "
            f"in the column cell_type of each: a cell type, or `{DROP}` to leave its cells out"
        )
    if twice:
        raise DataError(f"{sheet}: labels with more than one line: {quoted_names(twice)}; keep one of each")
    if no_types:
        raise DataError(
            f"{sheet}: no cell types: {', '.join(no_types[:EXAMPLES])}; write `{DROP}` to leave cells out"
        )
    return LabelMap(types, _ontology(sheet, lines))


def _ontology(sheet: Path, lines: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the ids of the types that a sheet keeps.

    A type that is called as its label has the label's id, unless the line gives it another, or labels of
    other types have that id, too.
    """
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    kept = [(original(line["cell_type"]).strip(), line["label_id"].strip(), line) for line in lines]
    kept = [one for one in kept if one[0].casefold() not in (DROP, "null", "")]
    n_types = Counter(own for _, own in {(cell_type, own) for cell_type, own, _ in kept})
    for cell_type, own, line in kept:
        itself = plain(cell_type) == plain(original(line["label"])) and n_types[own] == 1
        term = line["ontology_id"].strip() or (own if itself and ONTOLOGY_ID.fullmatch(own) else "")
        if not term or term.casefold() == "unknown":
            continue
        if not ONTOLOGY_ID.fullmatch(term):
            problem = f"ontology_id {term[:40]!r} of {cell_type!r}; expected an id of the Cell Ontology"
            raise DataError(f"{sheet}: {problem}, such as CL:0000236, or nothing")
        if ids.setdefault(cell_type, term) != term:
            problem = f"{cell_type!r} has two ontology ids, {ids[cell_type]} and {term}: a type has one"
            raise DataError(f"{sheet}: {problem}; write the same in each of its lines")
        if names.setdefault(term, cell_type) != cell_type:
            problem = f"{term} is the ontology id of two types, {names[term]!r} and {cell_type!r}"
            raise DataError(f"{sheet}: {problem}: write `unknown` where it does not belong")
    return ids


def is_map_sheet(path: Path) -> bool:
    """Return whether a CSV file has the header of a sheet, rather than lines of label and cell type."""
    try:
        return set(NEEDED) <= set(_header(path))
    except (OSError, UnicodeDecodeError):
        return False


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig") as stream:
        return re.split(r"[,;\t]", stream.readline().strip().replace('"', ""))
