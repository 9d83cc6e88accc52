"""From whatever a query calls its genes to the names that a model knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from canal.annotation.aliases import read_aliases
from canal.annotation.pairs import Pairs, read_pairs
from canal.annotation.query import Query
from canal.data.h5ad_tables import EXAMPLES, listed
from canal.digests import file_digest
from canal.errors import DataError
from canal.quality.symbols import ENSEMBL, MOUSE, kinds_of

Species = Literal["auto", "human", "mouse"]

NAME_COLUMNS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "gene_short_name"),
    *("symbol", "symbols", "hgnc_symbol", "Gene", "gene_ids", "gene_id", "ensembl_id", "Accession"),
)
"""Columns of var in which programs keep the other name of a gene."""

AMBIGUOUS = "ambiguous"
"""What names that aliases left alone are recorded as."""

_LOOKED_AT = 2000
_ENOUGH = 0.8
"""Share of the model's genes from which on the names are those it knows, and no column is looked into."""


@dataclass(frozen=True)
class Naming:
    """What a user says of a query's gene names.

    Attributes
    ----------
    species : str
        auto, human or mouse.
    orthologs : Path or None
        Table: mouse gene, human symbol.
    aliases : Path or None
        Table: outdated symbol, today's symbol; or HGNC's: see `canal.annotation.aliases`.
    gene_map : Path or None
        Table: Ensembl id, symbol.
    """

    species: Species = "auto"
    orthologs: Path | None = None
    aliases: Path | None = None
    gene_map: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for, tables by name and SHA-256; empty where nothing was."""
        tables = {"orthologs": self.orthologs, "aliases": self.aliases, "gene_map": self.gene_map}
        told: dict[str, Any] = {} if self.species == "auto" else {"species": self.species}
        for name, path in tables.items():
            if path is not None and path.is_file():
                told[name] = {
                    "name": path.name.encode("utf-8", "replace").decode(),
                    "sha256": file_digest(path),
                }
        return told


def rename(query: Query, panel: Sequence[str], naming: Naming, chosen: bool) -> tuple[Query, dict[str, Any]]:
    """Return the query with its genes called as the model calls them, and how many were found by what.

    A gene that has the model's name keeps it. For the model's genes that are then still missing, in this
    order: another column of var (unless one was ``chosen``), orthologs, the gene map, ids without their
    version, names that differ in case alone, aliases where they are unambiguous. So nothing shadows an exact
    name.

    Raises
    ------
    DataError
        If the genes are a mouse's and the model's are not, without a table of orthologs; or a table cannot
        be read.
    """
    tables = {name: read_pairs(path) for name, path in _tables(naming)}
    aliases = None if naming.aliases is None else read_aliases(naming.aliases)
    names = [name.strip() for name in query.genes]
    told: dict[str, Any] = {}
    if not chosen:
        names, column = _from_column(query, names, panel)
        told |= {"column": column} if column else {}
    _refuse_mouse(query, names, panel, naming)
    for how, step in _steps(tables, panel, names):
        found = _filled(names, panel, step)
        told |= {how: len(found)} if found else {}
        names = [found.get(name, name) for name in names]
    if aliases is not None:
        renames = aliases.renames(names, panel)
        told |= {"aliases": len(renames.found)} if renames.found else {}
        told |= {AMBIGUOUS: list(renames.ambiguous)} if renames.ambiguous else {}
        names = [renames.found.get(name, name) for name in names]
    return replace(query, genes=names), told


def doubt(told: Mapping[str, Any]) -> str:
    """Return what to say of names that a table of aliases does not make clear, or ``""``."""
    names = told.get(AMBIGUOUS, ())
    return (
        f"{len(names)} symbols may be a gene of the model that is missing, and may be another, too, so they "
        f"were left alone: {listed(names, EXAMPLES)}"
        if names
        else ""
    )


def _tables(naming: Naming) -> Iterable[tuple[str, Path]]:
    for name in ("orthologs", "gene_map"):
        if (path := getattr(naming, name)) is not None:
            yield name, path


Step = Callable[[str], Sequence[str]]


def _steps(
    tables: dict[str, Pairs], panel: Sequence[str], names: Sequence[str]
) -> Iterable[tuple[str, Step]]:
    """Yield the ways to another name, each with the names that it leads to."""

    def look_up(pairs: Pairs) -> Step:
        bare = {_bare(name): values for name, values in pairs.items()}
        return lambda name: pairs.get(name) or bare.get(_bare(name), ())

    def by(key: Callable[[str], str]) -> Step:
        known: dict[str, list[str]] = {}
        for gene in panel:
            known.setdefault(key(gene), []).append(gene)
        return lambda name: known.get(key(name), ())

    for how in ("orthologs", "gene_map"):
        if how in tables:
            yield how, look_up(tables[how])
    yield "versions", by(_bare)
    yield "case", by(str.upper)


def _filled(names: Sequence[str], panel: Sequence[str], step: Step) -> dict[str, str]:
    """Return for names that lead to a missing gene of the panel that gene."""
    missing, known = set(panel) - set(names), set(panel)
    if not missing:
        return {}
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name and name not in known and (target := next((t for t in step(name) if t in missing), None)):
            found[name] = target
    return found


def _bare(name: str) -> str:
    """Return an Ensembl id without its version; any other name as it is."""
    head, dot, version = name.partition(".")
    return head if dot and version.isdigit() and head.startswith("ENS") else name


def _from_column(query: Query, names: list[str], panel: Sequence[str]) -> tuple[list[str], str]:
    """Return better names from a known column of var, and its name; else the names and ``""``."""
    wanted = {gene.upper() for gene in panel}
    best, best_names, column = _overlap(names, wanted), names, ""
    if best >= _ENOUGH * len(wanted):
        return names, ""
    for candidate in (name for name in NAME_COLUMNS if name in query.columns):
        values = [value.strip() for value in query.columns[candidate]()]
        if (overlap := _overlap(values, wanted)) > best:
            best, column = overlap, candidate
            best_names = [value or own for value, own in zip(values, names, strict=True)]
    return best_names, column


def _overlap(names: Iterable[str], wanted: set[str]) -> int:
    return len(wanted & {_bare(name.upper()) for name in names})


def _refuse_mouse(query: Query, names: Sequence[str], panel: Sequence[str], naming: Naming) -> None:
    mouse = naming.species == "mouse" or (naming.species == "auto" and _of_mouse(names))
    if not mouse or naming.orthologs is not None or _of_mouse(panel):
        return
    said = "--species mouse was given" if naming.species == "mouse" else "These look like mouse symbols"
    raise DataError(
        f"{query.name}: {said}, such as {listed(names[:EXAMPLES])}, and the model knows human genes such as "
        f"{listed(list(panel)[:EXAMPLES])}: give --species mouse --orthologs FILE, a table of mouse and "
        "human genes parted by a tab (or --species human if they are human after all)"
    )


def _of_mouse(names: Sequence[str]) -> bool:
    looked = [name for name in names if name][:_LOOKED_AT]
    kinds = Counter(kinds_of(looked))
    of_mouse = kinds[MOUSE] + sum(name.startswith("ENSMUSG") for name in looked)
    return 2 * of_mouse > len(looked) and kinds[ENSEMBL] + kinds[MOUSE] > 0
