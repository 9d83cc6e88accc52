"""Gene symbols of a source: cleaned, made unique, and the map from the file's columns to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from canal.data.features import NotGenes

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
    ``none`` tells the columns that are no genes, whose names are ``""``.
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
    repairs = _repairs(cleaned, counts, duplicates, none.n if none else 0)
    if none and none.kinds:
        repairs["features_that_are_no_genes"] = {"n": none.n, "kinds": dict(none.kinds), "done": "left out"}
    return GeneMap(tuple(counts), selector, repairs)


def _repairs(cleaned: Sequence[str], counts: Counter[str], duplicates: str, none: int) -> dict[str, Any]:
    repeated = sorted(name for name, count in counts.items() if count > 1)
    repairs: dict[str, Any] = {}
    if unnamed := sum(not name for name in cleaned) - none:
        repairs["unnamed_genes_dropped"] = {"n": unnamed}
    if repeated:
        done = "summed" if duplicates == "sum" else "first kept"
        repairs["duplicated_genes"] = {"n": len(repeated), "examples": repeated[:EXAMPLES], "done": done}
    return repairs
