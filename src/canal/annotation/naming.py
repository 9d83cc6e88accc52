"""Match a query's gene names to a model's genes by columns, ids, orthologs and aliases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from canal.annotation.columns import check_choice
from canal.annotation.query import Query
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.data.genes import (
    HUMAN_TABLE,
    MOUSE_TABLE,
    Pairs,
    human_symbols,
    mouse_orthologs,
    read_aliases,
    read_pairs,
)
from canal.io.arrays import EXAMPLES, listed
from canal.quality.symbols import ENSEMBL, MOUSE, kinds_of

Species = Literal["auto", "human", "mouse"]

NAME_COLUMNS = (
    *("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "gene_short_name"),
    *("symbol", "symbols", "hgnc_symbol", "Gene", "gene_ids", "gene_id", "ensembl_id", "Accession"),
)
"""Columns of var in which programs store symbols or ids of genes."""

AMBIGUOUS = "ambiguous"
"""Key of the record under which ambiguous names are listed."""

OWN_TABLE = "mouse_table"
"""Key of the record under which canal's own table of orthologs stands, where it translated mouse genes."""

OWN_GENES = "human_table"
"""Key of the record under which canal's own table of human Ensembl ids stands, where it was used."""

_LOOKED_AT, _ENOUGH = 2000, 0.8
"""Share of the model's genes that the index must hold for columns of var not to be tried."""


@dataclass(frozen=True)
class Naming:
    """The options about a query's gene names.

    Attributes
    ----------
    species : str
        auto, human or mouse.
    orthologs : Path or None
        Table: mouse gene, human symbol; by default canal's own, of one-to-one orthologs.
    aliases : Path or None
        Table: outdated symbol, today's symbol; or HGNC's: see `canal.data.genes`.
    gene_map : Path or None
        Table: Ensembl id, symbol.
    """

    species: Species = "auto"
    orthologs: Path | None = None
    aliases: Path | None = None
    gene_map: Path | None = None

    def __post_init__(self) -> None:
        check_choice("species", self.species, get_args(Species))
        for name in ("orthologs", "aliases", "gene_map"):
            if not isinstance(value := getattr(self, name), str | PathLike | None):
                raise DataError(f"{name}: expected the path of a table, found {type(value).__qualname__}")
            object.__setattr__(self, name, None if value is None else Path(value))

    def to_json(self) -> dict[str, Any]:
        """Return the options that were set, tables by name and SHA-256."""
        tables = {"orthologs": self.orthologs, "aliases": self.aliases, "gene_map": self.gene_map}
        document: dict[str, Any] = {} if self.species == "auto" else {"species": self.species}
        for name, path in tables.items():
            if path is not None and path.is_file():
                document[name] = {
                    "name": path.name.encode("utf-8", "replace").decode(),
                    "sha256": file_digest(path),
                }
        return document


def rename(query: Query, panel: Sequence[str], naming: Naming, chosen: bool) -> tuple[Query, dict[str, Any]]:
    """Return the query with the model's gene names, and how many genes each method of renaming found.

    A gene that has the model's name keeps it. The model's genes that are still missing are looked for, in
    this order, by: another column of var (unless one was ``chosen``), orthologs, the gene map, ids without
    version, case-insensitive names, names without decoration or punctuation (see `_undecorated` and
    `_plain`), and aliases; the last two only where unambiguous. An exact name always takes precedence.

    Raises
    ------
    DataError
        If the query has mouse genes, the model human ones, and canal's own table of orthologs has none of
        both; or if a table cannot be read.
    """
    tables = {name: read_pairs(path) for name, path in _tables(naming)}
    aliases = None if naming.aliases is None else read_aliases(naming.aliases)
    names = [name.strip() for name in query.genes]
    renamed: dict[str, Any] = {}
    if not chosen:
        names, column = _from_column(query, names, panel)
        renamed |= {"column": column} if column else {}
    mouse = naming.species == "mouse" or (naming.species == "auto" and _of_mouse(names))
    if mouse and naming.orthologs is None and not _of_mouse(panel):
        tables["orthologs"] = mouse_orthologs()
        _refuse_unknown_mice(query, names, panel, naming, tables["orthologs"])
        renamed |= {OWN_TABLE: _about(MOUSE_TABLE)}
    elif naming.gene_map is None and _of_ids(names) and not _of_ids(panel):
        tables["gene_map"] = human_symbols()
        renamed |= {OWN_GENES: _about(HUMAN_TABLE)}
    for method, step in _exact_steps(tables, panel, names):
        targets = _filled(names, panel, step)
        renamed |= {method: len(targets)} if targets else {}
        names = [targets.get(name, name) for name in names]
    ambiguous: list[str] = []
    for method, step in _ambiguous_steps(tables, panel):
        targets, unclear = _unambiguous(names, panel, step)
        renamed |= {method: len(targets)} if targets else {}
        ambiguous += unclear
        names = [targets.get(name, name) for name in names]
    if aliases is not None:
        renames = aliases.renames(names, panel)
        renamed |= {"aliases": len(renames.found)} if renames.found else {}
        ambiguous += renames.ambiguous
        names = [renames.found.get(name, name) for name in names]
    renamed |= {AMBIGUOUS: list(dict.fromkeys(ambiguous))} if ambiguous else {}
    return replace(query, genes=names), renamed


def _about(table: Path) -> dict[str, str]:
    return {"name": table.name, "sha256": file_digest(table)}


def ambiguity_warning(renamed: Mapping[str, Any]) -> str:
    """Return a warning about names that may be more than one gene, or ``""``."""
    names = renamed.get(AMBIGUOUS, ())
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


def _exact_steps(
    tables: dict[str, Pairs], panel: Sequence[str], names: Sequence[str]
) -> Iterable[tuple[str, Step]]:
    """Yield each method of renaming with a function from a name to its candidates."""

    def look_up(pairs: Pairs) -> Step:
        bare = {_bare(name): values for name, values in pairs.items()}
        return lambda name: pairs.get(name) or bare.get(_bare(name), ())

    def by(key: Callable[[str], str]) -> Step:
        known: dict[str, list[str]] = {}
        for gene in panel:
            known.setdefault(key(gene), []).append(gene)
        return lambda name: known.get(key(name), ())

    for table in ("orthologs", "gene_map"):
        if table in tables:
            yield table, look_up(tables[table])
    yield "versions", by(_bare)
    yield "case", by(str.upper)


def _ambiguous_steps(tables: dict[str, Pairs], panel: Sequence[str]) -> Iterable[tuple[str, Step]]:
    """Yield methods of renaming that may map two names of a query to one gene."""
    known = set(panel)
    pairs = {_bare(name): values for name, values in tables.get("gene_map", {}).items()}

    def undecorated(name: str) -> Sequence[str]:
        forms = [form for part in _undecorated(name) for form in (part, _bare(part))]
        return [target for form in forms for target in (form, *pairs.get(form, ())) if target in known]

    plain: dict[str, list[str]] = {}
    for gene in panel:
        plain.setdefault(_plain(gene), []).append(gene)
    yield "parts_of_names", undecorated
    yield "punctuation", lambda name: plain.get(_plain(name), ())


_QUOTES = "\"'`"
_GENOME = re.compile(
    r"(?:hg19|hg38|GRCh37|GRCh38|T2T|CHM13)[A-Za-z0-9.-]*_+(?=[A-Za-z0-9])|(?:hg19|hg38|GRCh3[78])[-:]+"
)
_ID = r"ENSG\d{6,}(?:\.\d+)?"
_WITH_ID = re.compile(
    rf"(?P<symbol>.+?)\s*[ _|:;.(\[-]\s*(?P<id>{_ID})\s*[)\]]?|(?P<id2>{_ID})\s*[ _|:;-]\s*(?P<symbol2>.+)"
)


def _undecorated(name: str) -> list[str]:
    """Return candidate names without quotes, genome prefix or appended id; empty for an undecorated name.

    ``"LYZ"``, ``hg19_LYZ``, ``GRCh38_LYZ``, ``LYZ (ENSG00000090382)``, ``LYZ_ENSG00000090382`` (CELLxGENE
    where genes share a symbol) and ``ENSG00000090382_LYZ`` give LYZ.
    """
    bare = name.strip(_QUOTES).strip()
    bare = _GENOME.sub("", bare, count=1) if _GENOME.match(bare) else bare
    match = _WITH_ID.fullmatch(bare) if "ENSG" in bare else None
    if match is None:
        return [] if bare == name else [bare]
    symbol, own_id = match["symbol"] or match["symbol2"], match["id"] or match["id2"]
    return [symbol.strip(_QUOTES).strip(), own_id]


def _plain(name: str) -> str:
    """Return a name as R's make.names spells it, dots for all else but letters and digits.

    ``HLA.DRA`` and ``HLA-DRA`` (and Seurat's dash for ``_``) are then alike, ``X7SK`` and ``7SK``, too.
    """
    plain = re.sub(r"[^0-9A-Za-z]", ".", name)
    return f"X{plain}" if plain[:1].isdigit() else plain


def _unambiguous(names: Sequence[str], panel: Sequence[str], step: Step) -> tuple[dict[str, str], list[str]]:
    """Return the names that map one to one to missing genes of the panel, and the ambiguous names."""
    missing, known = set(panel) - set(names), set(panel)
    reached: dict[str, list[str]] = {}
    several: list[str] = []
    for name in dict.fromkeys(names) if missing else ():
        if not name or name in known or not (targets := dict.fromkeys(step(name))):
            continue
        if len(targets) > 1 and missing & targets.keys():
            several.append(name)
        for target in targets.keys() & missing if len(targets) == 1 else ():
            reached.setdefault(target, []).append(name)
    unique = {own[0]: target for target, own in reached.items() if len(own) == 1}
    shared = [name for own in reached.values() if len(own) > 1 for name in own]
    return unique, [*several, *shared]


def _filled(names: Sequence[str], panel: Sequence[str], step: Step) -> dict[str, str]:
    """Return the names that map to a missing gene of the panel, each with that gene."""
    missing, known = set(panel) - set(names), set(panel)
    if not missing:
        return {}
    targets: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name and name not in known and (target := next((t for t in step(name) if t in missing), None)):
            targets[name] = target
    return targets


def _bare(name: str) -> str:
    """Return an Ensembl id without its version; any other name as it is."""
    head, dot, version = name.partition(".")
    return head if dot and version.isdigit() and head.startswith("ENS") else name


def _from_column(query: Query, names: list[str], panel: Sequence[str]) -> tuple[list[str], str]:
    """Return the names in a column of var that fits better, and its name; else the names and ``""``."""
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


def _refuse_unknown_mice(
    query: Query, names: Sequence[str], panel: Sequence[str], naming: Naming, orthologs: Pairs
) -> None:
    """Raise if the table translates none of a query's genes into one of the model's."""
    known = set(panel)
    if any(target in known for name in names for target in orthologs.get(name, ())):
        return
    reason = "--species mouse was given" if naming.species == "mouse" else "These look like mouse genes"
    raise DataError(
        f"{query.name}: {reason}, such as {listed(names[:EXAMPLES])}, and the model knows human genes such "
        f"as {listed(list(panel)[:EXAMPLES])}; canal's own table of {len(orthologs):,} one-to-one orthologs "
        "leads from none of them to one of the model's. It knows symbols, such as Cd79a: name a column of "
        "var that holds them with --gene-column, or give --species mouse --orthologs FILE, a tab-separated "
        "table of mouse and human genes (BioMart of Ensembl exports one); --species human if they are human "
        "after all"
    )


def mouse_warning(renamed: Mapping[str, Any]) -> str:
    """Return a warning that canal's own table translated mouse genes, or ``""``."""
    if OWN_TABLE not in renamed:
        return ""
    return (
        f"mouse genes were read as their human orthologs: {renamed.get('orthologs', 0):,} of the model's "
        "genes by canal's own table; a model of human cells knows a mouse's less well (--orthologs FILE "
        "gives another table, --species human says that the genes are human)"
    )


def _of_mouse(names: Sequence[str]) -> bool:
    looked = [name for name in names if name][:_LOOKED_AT]
    kinds = Counter(kinds_of(looked))
    of_mouse = kinds[MOUSE] + sum(name.startswith("ENSMUSG") for name in looked)
    return 2 * of_mouse > len(looked) and kinds[ENSEMBL] + kinds[MOUSE] > 0


def _of_ids(names: Sequence[str]) -> bool:
    """Whether most names are Ensembl ids of human genes."""
    looked = [name for name in names if name][:_LOOKED_AT]
    return 2 * sum(re.fullmatch(_ID, name) is not None for name in looked) > len(looked)
