"""Gene names: unique symbols of a file, and users' gene lists and tables of ids, orthologs and aliases."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from canal.config.sections import Species
from canal.core.errors import DataError, no_such_file
from canal.core.files import read_json, regular_file
from canal.io.h5ad import NotGenes, open_h5ad

EXAMPLES = 5


@dataclass(frozen=True)
class GeneMap:
    """Unique symbols in the order of their first column, and how columns become symbols."""

    symbols: tuple[str, ...]
    selector: csr_matrix
    """(n_columns, n_symbols) float32: 1 where a column contributes to a symbol."""
    repairs: dict[str, Any]

    def apply(self, block: csr_matrix) -> csr_matrix:
        """Return ``block`` (n, n_columns) by symbol (n, n_symbols): sorted, without stored zeros."""
        result = csr_matrix(block @ self.selector)
        result.sort_indices()
        result.eliminate_zeros()
        return result


def map_genes(
    names: Sequence[str], duplicates: Literal["refuse", "sum"], none: NotGenes | None = None
) -> GeneMap:
    """Return the map from columns named ``names`` to unique symbols.

    Blanks around a name go, its case stays; a column without a name is dropped. Of columns with one name the
    first is kept (``refuse``: the gate refuses the source and says why) or all are added up (``sum``).
    ``none`` holds the columns that are not genes, whose names are ``""``.
    """
    cleaned = [name.strip() for name in names]
    counts = Counter(name for name in cleaned if name)
    position = {name: i for i, name in enumerate(counts)}
    seen: set[str] = set()
    pairs = []
    for column, name in enumerate(cleaned):
        if name and (duplicates == "sum" or name not in seen):
            pairs.append((column, position[name]))
            seen.add(name)
    columns, targets = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    selector = csr_matrix(
        (np.ones(len(pairs), dtype=np.float32), (columns, targets)), shape=(len(names), len(counts))
    )
    repairs: dict[str, Any] = {}
    if unnamed := sum(not name for name in cleaned) - (none.n if none else 0):
        repairs["unnamed_genes_dropped"] = {"n": unnamed}
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        done = "summed" if duplicates == "sum" else "first kept"
        repairs["duplicated_genes"] = {"n": len(repeated), "examples": repeated[:EXAMPLES], "done": done}
    if none and none.kinds:
        repairs["features_that_are_no_genes"] = {"n": none.n, "kinds": dict(none.kinds), "done": "left out"}
    return GeneMap(tuple(counts), selector, repairs)


# The genes of a published model: a list of symbols in the order of its rows.

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
        raise DataError(no_such_file(path, "give a file with one gene symbol a line, or an h5ad file"))
    if path.suffix == ".h5ad":
        with open_h5ad(path) as file:
            names: list[Any] = file.var_names("X")
    elif path.suffix == ".json":
        try:
            found = read_json(path)
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}") from error
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise DataError(f"{path} must hold a list of gene symbols, found {type(found).__name__}")
        names = [name.strip() for name in found]
    else:
        names = _lines(path)
    _check(path, names)
    return tuple(names)


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


# Users' tables of two columns: old and new symbols, ids and symbols, mouse and human genes.

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
    return _parse_pairs(path, read_text(path))


MOUSE_TABLE = Path(__file__).with_name("mouse_orthologs.tsv.gz")
"""Mouse and human symbols of one-to-one orthologs; its first lines tell source, licence and making."""


def mouse_orthologs() -> Pairs:
    """Return for each mouse symbol the symbol of its one human ortholog, from canal's own table.

    Raises
    ------
    DataError
        If the table is missing or damaged.
    """
    return _own_pairs(MOUSE_TABLE, "mouse genes", "a table of mouse and human genes with --orthologs FILE")


HUMAN_TABLE = Path(__file__).with_name("human_genes.tsv.gz")
"""Ensembl ids and symbols of human genes; its first lines tell source, licence and making."""


def human_symbols() -> Pairs:
    """Return for each Ensembl id of a human gene its symbol, from canal's own table: GENCODE's of release 48.

    Raises
    ------
    DataError
        If the table is missing or damaged.
    """
    return _own_pairs(HUMAN_TABLE, "human genes", "a table of ids and symbols with --gene-map FILE")


def _own_pairs(table: Path, of: str, instead: str) -> Pairs:
    try:
        text = gzip.decompress(table.read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"canal's own table of {of}, {table.name}, is missing or damaged ({error}): install canal again, "
            f"or give {instead}"
        ) from error
    return _parse_pairs(table, text)


@cache
def known_symbols(species: Species) -> frozenset[str]:
    """Return the symbols of a species in canal's own table: genes with one ortholog in the other, 16,000.

    They are two thirds to nine tenths of what a usual file names, and a quarter of a whole reference, which
    has as many pseudogenes and RNAs.

    Raises
    ------
    DataError
        If the table is missing or damaged.
    """
    pairs = mouse_orthologs()
    return frozenset(pairs if species == "mouse" else (one for names in pairs.values() for one in names))


def _parse_pairs(path: Path, text: str) -> Pairs:
    lines = text.splitlines()
    comma = "," if path.suffix == ".csv" else "\t"
    pairs: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip().strip('"') for field in line.split(comma)]
        if len(fields) < 2 or not fields[0]:
            by = "a comma" if comma == "," else "a tab"
            raise DataError(f"{path}: line {number} has no two columns separated by {by}: {line[:80]!r}")
        if fields[1]:
            pairs.setdefault(fields[0], []).append(fields[1])
    if not pairs:
        raise DataError(f"{path}: no pairs found; expected two columns separated by a tab")
    return {key: tuple(values) for key, values in pairs.items()}


def read_text(path: Path) -> str:
    """Return a table's text; raises `DataError` if it cannot be read as one."""
    try:
        return regular_file(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; expected a table of two columns separated by a tab") from error


# Outdated gene symbols: the genes that a symbol may mean.

_SYMBOL, _PREVIOUS, _ALIAS = "symbol", "prev_symbol", "alias_symbol"
_PARTED = "|"

Meanings = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Renames:
    """The renamings of a query's genes by a table of symbols.

    Attributes
    ----------
    found : dict
        A name of the query -> the missing gene of the model that it is.
    ambiguous : tuple of str
        Names that might be a missing gene, and might not; they are left alone.
    """

    found: dict[str, str]
    ambiguous: tuple[str, ...]


@dataclass(frozen=True)
class Aliases:
    """For every symbol the genes that it stands for, by today's symbols.

    Attributes
    ----------
    official : dict
        Genes of which it is today's symbol or a previous one.
    other : dict
        Genes of which it is an alias; that counts only where it is no symbol of any.
    """

    official: Meanings
    other: Meanings

    def meanings(self, name: str) -> frozenset[str]:
        """Return the genes that a symbol may be."""
        return self.official.get(name) or self.other.get(name) or frozenset()

    def renames(self, names: Iterable[str], panel: Sequence[str]) -> Renames:
        """Return which of a query's names are genes of ``panel`` that it seems to lack.

        Either may be outdated: the model's name as well as the query's. Both must stand for one gene alone,
        the same, and no other name of the query or missing gene of the model for it, too.
        """
        there, known = dict.fromkeys(names), set(panel)
        missing = [gene for gene in panel if gene not in there]
        wanted = Counter(meaning for gene in missing for meaning in self.meanings(gene))
        own = {meaning: gene for gene in missing for meaning in self.meanings(gene)}
        candidates = {
            name: meanings
            for name in there
            if name and name not in known and (meanings := self.meanings(name)) & wanted.keys()
        }
        given = Counter(meaning for meanings in candidates.values() for meaning in meanings)
        found, ambiguous = {}, []
        for name, meanings in candidates.items():
            gene = own[next(iter(meanings & wanted.keys()))]
            clear = len(meanings) == 1 == len(self.meanings(gene))
            if clear and all(given[one] == wanted[one] == 1 for one in meanings):
                found[name] = gene
            else:
                ambiguous.append(name)
        return Renames(found, tuple(ambiguous))


def read_aliases(path: Path) -> Aliases:
    """Return a table of symbols: HGNC's, or two columns, an outdated symbol and today's.

    HGNC's has a first line that names ``symbol`` and ``prev_symbol`` or ``alias_symbol`` among its columns,
    several symbols in one field being parted by ``|``. Columns are parted by a tab, in ``.csv`` by a comma.

    Raises
    ------
    DataError
        If the file cannot be read as text, or a line lacks what it needs.
    """
    rows = csv.reader(read_text(path).splitlines(), delimiter="," if path.suffix == ".csv" else "\t")
    try:
        head = [name.strip().lower() for name in next(rows, [])]
        if _SYMBOL not in head or not {_PREVIOUS, _ALIAS} & set(head):
            pairs = [(old, new) for old, several in read_pairs(path).items() for new in several]
            return Aliases(_meanings([*pairs, *((new, new) for _, new in pairs)]), {})
        return _of_hgnc(path, head, rows)
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num} cannot be read ({error})") from error


def _of_hgnc(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Aliases:
    found: dict[str, list[tuple[str, str]]] = {_SYMBOL: [], _PREVIOUS: [], _ALIAS: []}
    for number, row in enumerate(rows, start=2):
        fields = dict(zip(head, row, strict=False))
        if not any(row):
            continue
        if not (symbol := fields.get(_SYMBOL, "").strip()):
            raise DataError(f"{path}: line {number} has no {_SYMBOL}; columns are {', '.join(head)[:200]}")
        for column, pairs in found.items():
            names = (name.strip() for name in fields.get(column, "").split(_PARTED))
            pairs += [(name, symbol) for name in names if name]
    if not found[_PREVIOUS] and not found[_ALIAS]:
        raise DataError(f"{path}: no line has a value in {_PREVIOUS} or {_ALIAS}, so nothing can be renamed")
    return Aliases(_meanings([*found[_SYMBOL], *found[_PREVIOUS]]), _meanings(found[_ALIAS]))


def _meanings(pairs: Iterable[tuple[str, str]]) -> Meanings:
    found: dict[str, set[str]] = {}
    for name, gene in pairs:
        found.setdefault(name, set()).add(gene)
    return {name: frozenset(genes) for name, genes in found.items()}
