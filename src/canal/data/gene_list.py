"""The genes of a published model: a list of symbols in the order of its rows."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from canal.core.errors import DataError
from canal.core.files import read_json
from canal.data.h5ad import open_h5ad

EXAMPLES = 5
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_gene_list(path: Path) -> tuple[str, ...]:
    """Return the symbols in a file, in its order.

    Parameters
    ----------
    path
        .h5ad: the var_names. .json: a list of strings. .csv, .tsv and any other text: one symbol a line and
        nothing beside it, for a second column could as well be the one that was meant.

    Raises
    ------
    DataError
        If the file is missing or of another form, holds no symbol or an empty one, or one more than once.
    """
    if not path.is_file():
        raise DataError(f"{path} not found; give a file with one gene symbol a line, or an h5ad file")
    if path.suffix == ".h5ad":
        with open_h5ad(path) as file:
            names: list[Any] = file.var_names("X")
    elif path.suffix == ".json":
        names = _json_names(path)
    else:
        names = _lines(path)
    _check(path, names)
    return tuple(names)


def _json_names(path: Path) -> list[Any]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path} must hold a list of gene symbols, found {type(found).__name__}")
    return [name.strip() for name in found]


def _lines(path: Path) -> list[str]:
    delimiter = _DELIMITERS.get(path.suffix, "\t")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no text of gene symbols ({error})") from error
    while rows and not rows[-1]:
        rows.pop()
    wide = [number for number, row in enumerate(rows, start=1) if len(row) > 1]
    if wide:
        raise DataError(
            f"{path}: expected one gene symbol a line, found {len(wide)} line(s) of several columns, such as "
            f"line {wide[0]}; keep the column of symbols alone"
        )
    return [row[0].strip() if row else "" for row in rows]


def _check(path: Path, names: list[str]) -> None:
    empty = [number for number, name in enumerate(names, start=1) if not name]
    if empty or not names:
        found = f"{len(empty)} empty one(s), the first is number {empty[0]}" if empty else "none"
        raise DataError(f"{path}: expected gene symbols, found {found}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} gene symbol(s) occur more than once, such as "
            f"{', '.join(repeated[:EXAMPLES])}; each row of the gene embedding needs a name of its own"
        )
