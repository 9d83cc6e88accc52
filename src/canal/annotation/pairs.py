"""Tables of two columns that a user brings: old and new symbols, ids and symbols, mouse and human genes."""

from __future__ import annotations

from pathlib import Path

from canal.core.errors import DataError
from canal.core.files import regular_file

Pairs = dict[str, tuple[str, ...]]


def read_pairs(path: Path) -> Pairs:
    """Return for each entry of the first column those of the second, in the file's order.

    Columns are parted by a tab (in ``.csv`` by a comma); further columns, blank lines and lines that begin
    with ``#`` are skipped.

    Raises
    ------
    DataError
        If the file cannot be read as text, or a line has no two entries.
    """
    lines = read_text(path).splitlines()
    comma = "," if path.suffix == ".csv" else "\t"
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip().strip('"') for field in line.split(comma)]
        if len(fields) < 2 or not fields[0]:
            by = "a comma" if comma == "," else "a tab"
            raise DataError(f"{path}: line {number} has no two columns parted by {by}: {line[:80]!r}")
        if fields[1]:
            found.setdefault(fields[0], []).append(fields[1])
    if not found:
        raise DataError(f"{path}: there is no pair in it; expected two columns parted by a tab")
    return {key: tuple(values) for key, values in found.items()}


def read_text(path: Path) -> str:
    """Return a table's text; raises `DataError` if it cannot be read as one."""
    try:
        return regular_file(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a table of two columns parted by a tab") from error
