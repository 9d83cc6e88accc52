"""Read tables of cells and genes in text (csv, tsv, also .gz), cells in rows or columns, in bounded memory.

A table is read once, a block of lines at a time, into a sparse matrix in a temporary file; everything else is
read from there.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from scipy.sparse import csr_matrix

from canal.core.errors import CanalError, DataError
from canal.core.files import regular_file
from canal.io.arrays import EXAMPLES, ROW, listed
from canal.io.blocks import Matrix
from canal.io.hdf5 import open_hdf5
from canal.io.matrices import Csc, Csr
from canal.io.tenx import Barcoded, Features, only_x
from canal.io.writer import H5adWriter

SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
"""Names of text tables end so, or so and with .gz: nothing else tells a table from another text."""

_GZIP = b"\x1f\x8b"
_SEPARATORS = (",", "\t")
_QUOTE = '"'
_VALUES = 1 << 21
"""Values in memory at a time: 16 MiB, and a few times that while text becomes numbers."""
_BYTES = 1 << 26
"""Bytes of lines in memory at a time, and of one line: a million cells in a row take some 20 MiB."""
_ALWAYS, _TIMES = 1 << 28, 64
"""Bytes of names that any file may hold, and how many more for each byte of it."""
_GENE_ID = re.compile(r"ENS[A-Z]*G\d{6,}")
_SHOWN = 40
"""Most characters of a value in a message."""


def named_as_text(path: Path) -> bool:
    """Return whether the name of a file ends like that of a table in text."""
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def is_text_table(path: Path) -> bool:
    """Return whether a file is a table in text, by the end of its name; HDF5 never is."""
    if not named_as_text(path) or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(8) != b"\x89HDF\r\n\x1a\n"
    except OSError:
        return True  # opening it says why


@contextmanager
def open_text_table(path: Path, panel: Collection[str] = ()) -> Iterator[TextTable]:
    """Open a table of cells and genes.

    The first line names the columns, the first column the rows. Where rows are cells is told by the names:
    the side on which more of ``panel`` are found holds the genes; without any, the side with Ensembl ids;
    else columns are genes.

    Parameters
    ----------
    path
        The table, comma- or tab-separated, plain or compressed by gzip.
    panel
        The model's genes.

    Raises
    ------
    DataError
        If the table is empty, a line has another number of fields than the first, a value is no number (the
        message names line and column), a cell has no name or one that occurs twice, a quotation mark is
        missing or stray, or it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="canal-") as folder:
        turned = Path(folder) / "cells.h5"
        with _told(path), closing(_Lines(path)) as lines:
            columns, rows = _convert(lines, turned)
        _check_quotes(path, [*columns, *rows])
        genes, cells, by_gene, assumed = _sides(path, columns, rows, panel)
        _check_cells(path, cells)
        with open_hdf5(turned) as file:
            kind = Csc if by_gene else Csr
            yield TextTable(path, kind(file["X"], path, (len(cells), len(genes))), cells, genes, assumed)


class TextTable(Barcoded):
    """An open table of cells and genes; it has one matrix, X."""

    def __init__(
        self, path: Path, matrix: Matrix, cells: Sequence[str], genes: Sequence[str], assumed: str
    ) -> None:
        super().__init__(path, cells, Features(path, genes, {}))
        self._matrix, self.assumed = matrix, assumed

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix, cells by genes."""
        only_x(self.path, layer)
        return self._matrix


def _sides(
    path: Path, columns: list[str], rows: list[str], panel: Collection[str]
) -> tuple[list[str], list[str], bool, str]:
    """Return (genes, cells, whether rows are genes, a sentence about what was assumed)."""
    known = {name.upper() for name in panel}
    sides = {"columns": columns, "rows": rows}
    hits = {side: len(known & {name.upper() for name in names}) for side, names in sides.items()}
    what = f"of the model's {len(known):,} genes"
    if not any(hits.values()):
        what = "Ensembl ids"
        hits = {side: sum(bool(_GENE_ID.match(name)) for name in names) for side, names in sides.items()}
    by_gene = hits["rows"] > hits["columns"]
    found = f"{hits['columns']:,} {what} are names of columns, {hits['rows']:,} of rows"
    how = "genes by cells (the table is transposed)" if by_gene else "cells by genes"
    genes, cells = (rows, columns) if by_gene else (columns, rows)
    return genes, cells, by_gene, f"{path.name}: {found}, so it was read as {how}"


def _check_quotes(path: Path, names: Sequence[str]) -> None:
    """Raise where a quotation mark is left in a name; one around all of it is some programs' way."""
    bare = (name[1:-1] if len(name) > 1 and name[0] == name[-1] == _QUOTE else name for name in names)
    stray = [name for name, inner in zip(names, bare, strict=True) if _QUOTE in inner]
    if stray:
        raise DataError(
            f"{path}: expected quotation marks around names alone, found {len(stray):,} names with one "
            f"inside, such as {listed([one[:_SHOWN] for one in stray], EXAMPLES)}: a mark is missing or one "
            "too many"
        )


def _check_cells(path: Path, cells: Sequence[str]) -> None:
    if nameless := [str(number) for number, name in enumerate(cells, start=1) if not name]:
        raise DataError(
            f"{path}: expected a name for each cell, found {len(nameless):,} of {len(cells):,} cells "
            f"without, such as cell number {listed(nameless, EXAMPLES)}: name them"
        )
    if len(set(cells)) == len(cells):
        return
    seen: set[str] = set()
    twice = [name for name in cells if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    raise DataError(
        f"{path}: expected each cell's name once, found {len(twice):,} names of cells again, such as "
        f"{listed(twice, EXAMPLES)}: the table may be of several samples: give their cells different names"
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a table is read and converted into a `DataError` that names it."""
    try:
        yield
    except CanalError:
        raise
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as a table in UTF-8 ({error}); it is damaged, was cut short, or is of "
            "another format: fetch it again, or save it as CSV in UTF-8"
        ) from error
    except Exception as error:  # zlib has errors of its own, and HDF5 tells a full disk by RuntimeError, too
        raise DataError(
            f"{path}: cannot be read, or the temporary folder {tempfile.gettempdir()} has no space for its "
            f"values ({error}): free space, name another folder with TMPDIR, or fetch the file again"
        ) from error


# One pass over the lines: names are kept, values go into the temporary file.


def _convert(lines: _Lines, turned: Path) -> tuple[list[str], list[str]]:
    """Write the values of a table as CSR, its rows as they come; return the names of columns and rows."""
    path, head = lines.path, next(lines, None)
    if head is None:
        raise DataError(f"{path}: the table is empty: expected a first line with the names of genes")
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path}: there are no cells: the table has one line alone")
    separator = max(_SEPARATORS, key=head.count)
    if separator not in head:
        found = "semicolons" if ";" in head else "neither"
        raise DataError(
            f"{path}: expected columns parted by commas or tabs, found {found} in the first line "
            f"({head[:_SHOWN]!r}): save the table as CSV with commas and decimal points"
        )
    columns = _header(path, head, first, separator)
    rows: list[str] = []
    each = max(1, _VALUES // len(columns))
    with H5adWriter(turned, len(columns)) as writer:
        for block in _blocks(lines, first, each):
            names, values = _numbers(lines, block, columns, separator)
            rows += names
            writer.append(csr_matrix(values))
    return columns, rows


class _Lines(Iterator[str]):
    """The lines of a table that are not blank, without their ends; ``number`` is the last one's place."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        with regular_file(path).open("rb") as stream:
            packed = stream.read(2) == _GZIP
        self._stream = cast("IO[bytes]", (gzip.open if packed else open)(path, "rb"))
        self._left = self._most = _ALWAYS + _TIMES * path.stat().st_size

    def __next__(self) -> str:
        while True:
            line = self._stream.readline(_BYTES + 1)
            self.number += 1
            if not line:
                raise StopIteration
            if len(line) > _BYTES:
                raise DataError(
                    f"{self.path}: line {self.number:,} has more than {_BYTES:,} bytes: no table of cells"
                )
            if b"\0" in line:
                raise DataError(
                    f"{self.path}: line {self.number:,} holds zero bytes, so the file is no text: save it as "
                    "CSV in UTF-8"
                )
            if text := line.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n"):
                return text

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def keep(self, name: str) -> str:
        """Return the name of a row, and raise where all names together are far larger than the file."""
        self._left -= ROW + len(name)
        if self._left < 0:
            raise DataError(
                f"{self.path}: names of rows take more than {self._most:,} bytes: the file is damaged, or "
                "made to fill the memory"
            )
        return name


_Numbered = tuple[int, str]


def _blocks(lines: _Lines, first: str, each: int) -> Iterator[list[_Numbered]]:
    """Yield up to ``each`` lines, with their numbers; fewer where they are long. ``first`` was read."""
    block, size = [(lines.number, first)], len(first)
    for line in lines:
        if len(block) >= each or size + len(line) > _BYTES:
            yield block
            block, size = [], 0
        block.append((lines.number, line))
        size += len(line)
    yield block


def _fields(path: Path, line: str, separator: str) -> list[str]:
    """Return the fields of a line; raises `DataError` where quotation marks do not enclose whole fields."""
    if _QUOTE not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error as error:
        at = max(0, line.index(_QUOTE) - _SHOWN // 4)
        raise DataError(
            f"{path}: expected quotation marks around whole fields, found one that is missing or too many "
            f"({error}) in the line with {line[at : at + _SHOWN]!r}: write the table anew"
        ) from error


def _header(path: Path, head: str, first: str, separator: str) -> list[str]:
    """Return the names of columns; R's write.table leaves out the name of the column of names."""
    names, n_fields = _fields(path, head, separator), len(_fields(path, first, separator))
    columns = names if len(names) == n_fields - 1 else names[1:]
    if not columns:
        raise DataError(f"{path}: the first line names no genes: expected a column of names, then one a gene")
    if all(_is_number(name) for name in columns):
        raise DataError(
            f"{path}: the first line holds numbers alone, such as {columns[0]!r}: expected the names of "
            "genes there, and names of cells in the first column"
        )
    return [name.strip() for name in columns]


def _numbers(
    lines: _Lines, block: Sequence[_Numbered], columns: Sequence[str], separator: str
) -> tuple[list[str], np.ndarray]:
    """Return the names of rows and their values, float32 ``(n_rows, n_columns)``."""
    import pandas as pd

    names, rests = [], []
    for number, line in block:
        if _QUOTE in line:
            name, *fields = _fields(lines.path, line, separator)
            n, rest = len(fields), separator.join(fields)
        else:
            name, _, rest = line.partition(separator)
            n = rest.count(separator) + 1
        if n != len(columns):
            raise DataError(
                f"{lines.path}: line {number:,} has {n:,} values, the first line names {len(columns):,} "
                "columns: the file was cut short or edited; write the table anew"
            )
        names.append(lines.keep(name.strip()))
        rests.append(rest)
    # As one column: pandas takes far longer for thousands of short ones.
    text = io.StringIO("\n".join(rests).replace(separator, "\n"))
    how: dict[str, Any] = {"header": None, "names": ["value"], "sep": separator, "quoting": csv.QUOTE_NONE}
    try:
        table = pd.read_csv(text, **how, dtype=np.float64, na_filter=False, skip_blank_lines=False)
    except ValueError as error:
        raise _no_number(lines.path, block, columns, separator, error) from error
    if len(table) != len(block) * len(columns):
        raise _no_number(lines.path, block, columns, separator, ValueError("a line without values"))
    with np.errstate(over="ignore"):
        return names, table["value"].to_numpy().reshape(len(block), -1).astype(np.float32)


def _no_number(
    path: Path, block: Sequence[_Numbered], columns: Sequence[str], separator: str, error: ValueError
) -> DataError:
    """Return the error that names line and column of the first value that is no number."""
    for number, line in block:
        _, *fields = _fields(path, line, separator)
        for place, value in enumerate(islice(fields, len(columns))):
            if not _is_number(value):
                found = repr(value[:_SHOWN]) if value.strip() else "nothing"
                return DataError(
                    f"{path}: expected a number in line {number:,}, column {place + 2:,} "
                    f"({columns[place]!r}), found {found}: a table has names in its first line and column "
                    "alone; leave other columns out, and write 0 where nothing was counted"
                )
    return DataError(f"{path}: a value is no number ({error})")


def _is_number(value: str) -> bool:
    """Return whether a value is a finite number as pandas reads one; Python also takes 1_000."""
    try:
        return math.isfinite(float(value)) and value.isascii() and "_" not in value
    except ValueError:
        return False
