"""The Cell Ontology that canal ships: names of cell types, what each is a kind of, and ids of names.

Release v2026-03-26 without obsolete terms and cells of no animal; ``tools/cell_ontology.py`` makes the table,
whose first lines tell source and licence (CC BY 4.0). Diehl et al. 2016, doi:10.1186/s13326-016-0088-7.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from canal.core.errors import DataError

TABLE = Path(__file__).with_name("cell_ontology.tsv.gz")
"""Terms of the Cell Ontology; its first lines tell release, source, licence and making."""

RELEASE = "v2026-03-26"
"""Of the Cell Ontology."""

ROOT = "CL:0000000"
"""The term of which all others are a kind: cell."""

SHORT_NAMES = {
    "cd4 t": "CL:0000624",
    "cd8 t": "CL:0000625",
    "treg": "CL:0000815",
    "gdt": "CL:0000798",
    "mait": "CL:0000940",
    "nk": "CL:0000623",
    "cd14 mono": "CL:0002057",
    "cd16 mono": "CL:0002396",
    "dc": "CL:0000451",
    "pdc": "CL:0000784",
    "mk": "CL:0000556",
    "hspc": "CL:0008001",
}
"""What most labels of blood cells say (those of Seurat's and Azimuth's references), in lower case."""

_SEPARATORS = re.compile(r"[\s_\-]+")
_CELLS = re.compile(r" cells?$")


@dataclass(frozen=True, eq=False)
class Ontology:
    """Terms, and what each is a kind of: a graph without circles.

    Attributes
    ----------
    names : dict
        Id -> name.
    parents : dict
        Id -> the ids that it is directly a kind of (is_a); empty for a root.
    """

    names: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]

    def lineage(self, term: str) -> frozenset[str]:
        """Return a term and all that it is a kind of; empty for an id that is no term here."""
        if term not in self.parents:
            return frozenset()
        found, left = {term}, [term]
        while left:
            new = set(self.parents[left.pop()]) - found
            found |= new
            left.extend(new)
        return frozenset(found)

    def id_of(self, name: str) -> str | None:
        """Return the id of the term with this name; None where no term has it, or several do.

        Case, a plural s, "cell" or "cells" at the end, and blanks, hyphens and underscores for each other do
        not matter. Synonyms are not asked: of all terms, "alpha cell" is one of a neuron of the retina. Of
        short names those of `SHORT_NAMES` are known.
        """
        found = self._by_name.get(_plain(name), ())
        short = SHORT_NAMES.get(_plain(name))
        return found[0] if len(found) == 1 else short if short in self.names else None

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """Id -> the most steps from a root to it: a term is deeper than all that it is a kind of."""
        depth: dict[str, int] = {}
        for term in self.parents:
            left = [term]
            while left:
                above = self.parents[left[-1]]
                if waiting := [one for one in above if one not in depth]:
                    left.extend(waiting)
                else:
                    depth[left.pop()] = max((depth[one] + 1 for one in above), default=0)
        return depth

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for term, name in self.names.items():
            found.setdefault(_plain(name), []).append(term)
        return found


def _plain(name: str) -> str:
    """Return a name without what does not matter to `Ontology.id_of`."""
    words = _CELLS.sub("", _SEPARATORS.sub(" ", name.strip().casefold()))
    return words[:-1] if len(words) > 3 and words.endswith("s") and not words.endswith("ss") else words


@cache
def cell_ontology() -> Ontology:
    """Return the Cell Ontology, from canal's own table.

    Raises
    ------
    DataError
        If the table is missing or damaged.
    """
    try:
        text = gzip.decompress(TABLE.read_bytes()).decode("utf-8")
        rows = [line.split("\t") for line in text.split("\n") if line and not line.startswith("#")]
        names = {term: name for term, name, _ in rows}
        if ROOT not in names:
            raise ValueError(f"no term {ROOT}")
        return Ontology(names, {term: tuple(above.split()) for term, _, above in rows})
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"canal's own table of the Cell Ontology, {TABLE.name}, is missing or damaged ({error}): install "
            "canal again"
        ) from error
