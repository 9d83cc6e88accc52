"""How many of a model's genes a query has, and what to do if there are too few."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from canal.annotation.query import Query
from canal.core.errors import DataError
from canal.io.arrays import EXAMPLES, listed
from canal.quality.symbols import ENSEMBL, MOUSE, kinds_of

SOFT = 0.8
"""Below this share labels come with a warning."""

_COLUMNS_LOOKED_AT, _GENES_LOOKED_AT = 20, 2000


@dataclass(frozen=True)
class Coverage:
    """Which of the panel genes a query has."""

    found: int
    panel: int
    missing: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the panel that was found, 0...1."""
        return self.found / self.panel

    @property
    def warning(self) -> str:
        """A warning for a share below `SOFT`, else ``""``."""
        if self.share >= SOFT:
            return ""
        return (
            f"{self.found} of the model's {self.panel} genes are there ({self.share:.0%}); the others count "
            f"as not expressed, so labels are less certain; missing are {listed(self.missing, EXAMPLES)}"
        )


def cover(query: Query, panel: Sequence[str], min_coverage: float, force: bool = False) -> Coverage:
    """Return the coverage of ``panel`` by the query's genes; blanks around a name do not count.

    Raises
    ------
    DataError
        If no gene is found, or the share is below ``min_coverage`` and not forced; the message describes the
        query's genes, and names a column of var that fits better.
    """
    own = _names(query.genes)
    missing = tuple(gene for gene in panel if gene not in own)
    coverage = Coverage(len(panel) - len(missing), len(panel), missing)
    if not coverage.found or (coverage.share < min_coverage and not force):
        needed = math.ceil(min_coverage * len(panel))
        raise DataError(
            f"{query.name}: {coverage.found} of the model's {len(panel)} genes were found, at least {needed} "
            f"are needed ({min_coverage:.0%}). The model knows symbols such as {listed(panel[:EXAMPLES])}; "
            f"{query.layer} has {len(query.genes)} genes, such as "
            f"{listed([gene for gene in query.genes if gene][:EXAMPLES])}. "
            + _advice(query, panel, coverage.found)
            + (". --force labels the cells nonetheless" if coverage.found else "")
        )
    return coverage


def _names(genes: Sequence[str]) -> set[str]:
    return {gene.strip() for gene in genes}


def _advice(query: Query, panel: Sequence[str], found: int) -> str:
    wanted = set(panel)
    if (transposed := len(wanted & _names(query.cells()))) > found:
        return (
            f"{transposed} of them are names of its cells: the matrix is transposed (genes by cells); "
            "transpose it back (anndata: adata.T)"
        )
    looked_at = list(query.columns)[:_COLUMNS_LOOKED_AT]
    counts = {name: len(wanted & _names(query.columns[name]())) for name in looked_at}
    best = max(counts, key=lambda name: counts[name], default="")
    if best and counts[best] > found:
        return f"Column {best!r} of var has {counts[best]} of them: use --gene-column {best}"
    kinds = Counter(kinds_of(query.genes[:_GENES_LOOKED_AT]))
    usual = kinds.most_common(1)[0][0] if kinds else ""
    columns = f"var has the columns {listed(list(query.columns))}" if query.columns else "var has no columns"
    if usual == ENSEMBL:
        return (
            "These are Ensembl ids, which canal's own table of human genes did not turn into more of them: "
            f"name a column of symbols with --gene-column ({columns}), or give a table of ids and symbols "
            "with --gene-map FILE"
        )
    if usual == MOUSE:
        return (
            "These look like mouse symbols, and the model knows human ones: leave --species out, or give "
            "--species mouse, with --orthologs FILE for a table of your own"
        )
    if len(query.layers) > 1:
        return f"Another matrix may hold more genes: try --layer; there are {listed(list(query.layers))}"
    return f"If a column of var holds human symbols, name it with --gene-column; {columns}"
