"""Which rows of var are genes: antibodies, hashtags, guides and spike-ins are none, and count nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

COLUMNS = ("feature_types", "feature_type", "feature_biotype")
"""Columns of var in which programs say what a feature is."""

_EXPRESSION = frozenset({"gene expression", "gex", "rna"})
"""What says that a feature is a gene, and so that those called otherwise are none."""

_NO_GENES = frozenset(
    {
        *("antibody capture", "antibody", "antibodies", "antibody derived tag", "adt", "protein"),
        *("multiplexing capture", "hashtag", "hashtag oligo", "hto", "cell hashing"),
        *("crispr guide capture", "crispr", "guide", "grna", "sgrna"),
        *("custom", "antigen capture", "peaks", "peak", "chromatin accessibility"),
        *("spike in", "spikein", "ercc", "synthetic"),
    }
)
"""What is no gene even where nothing in the column says ``Gene Expression``."""


@dataclass(frozen=True, eq=False)
class NotGenes:
    """The features that are no genes.

    Attributes
    ----------
    is_gene : numpy.ndarray
        bool, one a feature.
    kinds : dict
        What the others are called in the file -> how many there are.
    """

    is_gene: np.ndarray
    kinds: Mapping[str, int]

    @property
    def n(self) -> int:
        """How many features are no genes."""
        return sum(self.kinds.values())

    def blanked(self, values: Iterable[str]) -> list[str]:
        """Return ``values``, one a feature, with ``""`` where the feature is no gene."""
        if not self.kinds:
            return list(values)
        return [value if gene else "" for value, gene in zip(values, self.is_gene.tolist(), strict=True)]

    @property
    def warning(self) -> str:
        """What to say of them; empty where all features are genes."""
        if not self.kinds:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        return f"{self.n:,} of {len(self.is_gene):,} features are no genes and count nowhere: {kinds}"


def not_genes(n: int, columns: Mapping[str, Callable[[], Iterable[str]]]) -> NotGenes:
    """Return which of ``n`` features are no genes, by the `COLUMNS` that there are.

    Where a column calls some features ``Gene Expression``, those called otherwise are none, as CellRanger
    means it. Else it may hold biotypes of genes (protein_coding, lncRNA), and only what is known to be none
    is left out. A feature of which nothing is said is a gene.
    """
    is_gene = np.ones(n, dtype=bool)
    said: dict[int, str] = {}
    for name in COLUMNS:
        if name not in columns:
            continue
        values = list(columns[name]())
        plain = {value: _plain(value) for value in set(values)}
        expression = any(kind in _EXPRESSION for kind in plain.values())
        none = {
            value
            for value, kind in plain.items()
            if kind and (kind not in _EXPRESSION if expression else kind in _NO_GENES)
        }
        for place, value in enumerate(values) if none else ():
            if value in none:
                is_gene[place] = False
                said.setdefault(place, value)
    return NotGenes(is_gene, dict(sorted(Counter(said.values()).items())))


def _plain(value: str) -> str:
    return " ".join(value.casefold().replace("-", " ").replace("_", " ").split())
