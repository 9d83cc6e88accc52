"""Outdated gene symbols: which gene a symbol stands for, and how the model calls a query's genes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from canal.annotation.pairs import read_pairs, read_text
from canal.core.errors import DataError

_SYMBOL, _PREVIOUS, _ALIAS = "symbol", "prev_symbol", "alias_symbol"
_PARTED = "|"

Meanings = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Renames:
    """What a table of symbols does to a query.

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
        asked = {
            name: meanings
            for name in there
            if name and name not in known and (meanings := self.meanings(name)) & wanted.keys()
        }
        given = Counter(meaning for meanings in asked.values() for meaning in meanings)
        found, ambiguous = {}, []
        for name, meanings in asked.items():
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
            return _of_pairs(path)
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
        raise DataError(f"{path}: no line has {_PREVIOUS} or {_ALIAS}: there is nothing to go by")
    return Aliases(_meanings([*found[_SYMBOL], *found[_PREVIOUS]]), _meanings(found[_ALIAS]))


def _of_pairs(path: Path) -> Aliases:
    pairs = [(old, new) for old, several in read_pairs(path).items() for new in several]
    return Aliases(_meanings([*pairs, *((new, new) for _, new in pairs)]), {})


def _meanings(pairs: Iterable[tuple[str, str]]) -> Meanings:
    found: dict[str, set[str]] = {}
    for name, gene in pairs:
        found.setdefault(name, set()).add(gene)
    return {name: frozenset(genes) for name, genes in found.items()}
