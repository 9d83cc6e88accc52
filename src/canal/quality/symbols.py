"""Whose gene symbols a file has: by their spelling and by canal's table of genes, and the rules about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from canal.config.sections import Species
from canal.data.genes import known_symbols
from canal.quality.rule import Rule, among, describe_known, describe_names, not_among

if TYPE_CHECKING:
    from canal.config.sections import Gate
    from canal.quality.verdict import Subject

_ENSEMBL = re.compile(r"ENS[A-Z]{0,4}[GT]\d{6,}(\.\d+)?")
_MOUSE = re.compile(
    r"[A-Z][a-z]+\d*[a-z0-9.-]*|[A-Z]\d+[a-z][a-z0-9-]*|(mt|H2)-[A-Z][A-Za-z0-9]+|\d{7}[A-Z]\d{2}Rik"
)
_HUMAN_MIXED = re.compile(r"C(\d+|X|Y)orf\d+|hsa-.*")
_OTHER = re.compile(
    r"[a-z][a-z0-9:._@-]*|Y[A-P][LR]\d{3}[CW](-[A-Z])?|CG\d{3,5}|(FBgn|WBGene)\d+|AT[1-5CM]G\d{5}"
)
HUMAN, MOUSE, ENSEMBL, OTHER = "human", "mouse", "Ensembl id", "other"

_MANY_GENES = 1000
"""Genes of a file from which on its symbols are looked up in canal's table: a small panel may name probes."""

MOSTLY_OF_SPECIES = 0.5
"""Share of a file's symbols that must look right; references leave some genes without a symbol."""


def kind_of(symbol: str) -> str:
    """Return whose spelling a symbol has.

    ``HUMAN``, ``MOUSE`` (``Cd3e``, ``mt-Co1``, ``1700001C02Rik``), ``ENSEMBL`` (``ENSG00…``), or ``OTHER``:
    all in small letters, as a fish's or a fly's (``cd3e``, ``zgc:12``), or the systematic name of a gene of
    yeast, fly, worm or thale cress (``YAL001C``, ``CG10000``, ``FBgn0000003``, ``AT1G01010``). Symbols that
    may be several count as human: the rules use what most symbols of a file look like.
    """
    if _ENSEMBL.fullmatch(symbol):
        return ENSEMBL
    if _HUMAN_MIXED.fullmatch(symbol):
        return HUMAN
    if _MOUSE.fullmatch(symbol):
        return MOUSE
    return OTHER if _OTHER.fullmatch(symbol) else HUMAN


def kinds_of(symbols: Iterable[str]) -> list[str]:
    """Return `kind_of` each symbol."""
    return [kind_of(symbol) for symbol in symbols]


def symbol_columns(symbols: Sequence[str]) -> dict[str, list[Any]]:
    """Return what the rules ask of each symbol: its spelling, and whether canal's table has it.

    What is spelt otherwise is not looked up: another rule speaks of it.
    """
    kinds, spelling = kinds_of(symbols), {"human": HUMAN, "mouse": MOUSE}
    known = {
        f"known_{of}": [
            kind != spelling[of] or one in known_symbols(of) for one, kind in zip(symbols, kinds, strict=True)
        ]
        for of in get_args(Species)
    }
    return {"kind": kinds, **known}


def symbol_rules(subject: Subject, gate: Gate, n_genes: int) -> list[Rule]:
    """Return the rules on the kind of a file's gene symbols, and on the species whose they are."""
    human = gate.species == "human"
    return [
        Rule(
            "symbols_not_ensembl",
            "error",
            not_among("gene", "kind", [ENSEMBL], mostly=MOSTLY_OF_SPECIES),
            "gene symbols, not Ensembl ids",
            f"set sources.{subject.source_name}.gene_column to the column of var that holds symbols",
            describe_names("genes"),
        ),
        Rule(
            f"symbols_{gate.species}",
            "error",
            not_among("gene", "kind", [MOUSE if human else HUMAN, OTHER], mostly=MOSTLY_OF_SPECIES),
            "symbols spelt as human ones are (CD3E, not Cd3e)"
            if human
            else "symbols spelt as a mouse's are (Cd3e, not CD3E)",
            "this looks like another species: canal does not translate orthologues, and a lineage is of one "
            "species (gate.species: human or mouse)",
            describe_names("genes"),
        ),
        *(_known_rules(subject, gate) if n_genes >= _MANY_GENES else ()),
    ]


def _known_rules(subject: Subject, gate: Gate) -> list[Rule]:
    """Return the rule for files whose symbols are spelt as the species' are, and are another's.

    It asks only of files with many genes: those of a small panel may be named by their probes.
    """
    other = "mouse" if gate.species == "human" else "human"
    return [
        Rule(
            "symbols_known",
            "error",
            among("gene", f"known_{gate.species}", [True], mostly=gate.known_genes),
            f"at least {gate.known_genes:.0%} of the symbols are {gate.species} genes that canal's table has",
            "these look like genes of another species, spelt alike: canal learns human and mouse genes "
            f"(canal init --species {other}). If they are {gate.species} genes by other names, name the "
            f"column of var with symbols (sources.{subject.source_name}.gene_column), or lower "
            "gate.known_genes",
            describe_known,
        )
    ]
