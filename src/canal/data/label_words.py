"""Words that stand where a cell type should, and spellings of one type."""

from __future__ import annotations

import re
import unicodedata

RESERVED = "unassigned"
"""What canal says of a cell of no known type, in small letters."""

NO_TYPES = frozenset(
    {
        *("", "-", "?", ".", "na", "n/a", "nan", "<na>", "none", "null", "nil", "empty", "missing"),
        *("unknown", "unclassified", "undefined", "undetermined", "unlabeled", "unlabelled", RESERVED),
        *("unannotated", "not annotated", "not assigned", "not available", "no label", "no annotation"),
        *("doublet", "doublets", "multiplet", "multiplets", "filtered", "filtered out", "removed"),
        *("low quality", "lowquality", "failed qc", "debris", "empty droplet", "empty droplets"),
    }
)
_PARTING = re.compile(r"[\s_]+|(?<=\w)-(?=\w)")


def is_no_type(label: str) -> bool:
    """Return whether a label says that a cell's type is not known, or that it is no cell to learn from.

    Letters may be large or small, and blanks, ``_`` and ``-`` stand for each other.
    """
    return _PARTING.sub(" ", _folded(label).strip()) in NO_TYPES


def spelling(label: str) -> str:
    """Return what labels share that differ in case or blanks alone."""
    return "".join(_folded(label).split())


def _folded(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold()
