"""Telling human gene symbols from those of a mouse and from Ensembl ids by their spelling."""

import re
from collections.abc import Iterable

_ENSEMBL = re.compile(r"ENS[A-Z]{0,4}[GT]\d{6,}(\.\d+)?")
_MOUSE = re.compile(
    r"[A-Z][a-z]+\d*[a-z0-9.-]*|[A-Z]\d+[a-z][a-z0-9-]*|(mt|H2)-[A-Z][A-Za-z0-9]+|\d{7}[A-Z]\d{2}Rik"
)
_HUMAN_MIXED = re.compile(r"C(\d+|X|Y)orf\d+|hsa-.*")

HUMAN, MOUSE, ENSEMBL = "human", "mouse", "Ensembl id"


def kind_of(symbol: str) -> str:
    """Return ``HUMAN``, ``MOUSE`` (``Cd3e``, ``mt-Co1``, ``1700001C02Rik``) or ``ENSEMBL`` (``ENSG00…``).

    What cannot be told apart counts as human: the rules ask what most symbols of a file look like.
    """
    if _ENSEMBL.fullmatch(symbol):
        return ENSEMBL
    if _HUMAN_MIXED.fullmatch(symbol):
        return HUMAN
    return MOUSE if _MOUSE.fullmatch(symbol) else HUMAN


def kinds_of(symbols: Iterable[str]) -> list[str]:
    """Return `kind_of` each symbol."""
    return [kind_of(symbol) for symbol in symbols]
