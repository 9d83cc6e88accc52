"""What sums give away: the cells that can be computed from the sums of their type, exactly and by hand.

A gene that one cell alone expresses is told by its sums, for the square of the sum is the sum of squares;
its products with the other genes are then that cell's levels. Without it, other genes are of one cell alone.
"""

from __future__ import annotations

import numpy as np

from canal.memory.sums import Sums


def recovered_cells(sums: Sums, row: int) -> np.ndarray:
    """Return the levels of the cells of one type that its sums give away, int64 ``(n_recovered, n_genes)``.

    This is the simplest attack, and no bound on what a better one finds.
    """
    n, total = int(sums.counts[row]), sums.totals[row].copy()
    products = sums.scatter(row).astype(np.int64)  # whole numbers below 2**53 but for billions of cells
    found: list[np.ndarray] = []
    while n > 1:
        alone = np.flatnonzero((total > 0) & (total**2 == np.diag(products)))
        if not len(alone):
            break
        gene = int(alone[0])
        found.append(products[gene] // total[gene])
        total, products, n = total - found[-1], products - np.outer(found[-1], found[-1]), n - 1
    if n == 1:
        found.append(total)
    elif n == 2:  # noqa: PLR2004 - the difference of two cells is known but for its sign
        apart = 2 * products - np.outer(total, total)
        gene = int(np.diag(apart).argmax())
        width = int(round(float(apart[gene, gene]) ** 0.5))
        difference = apart[gene] // max(width, 1)
        found += [(total + difference) // 2, (total - difference) // 2]
    return np.array(found, dtype=np.int64).reshape(len(found), sums.size)


def n_recovered(sums: Sums) -> dict[str, int]:
    """Return by type how many cells `recovered_cells` finds."""
    return {name: len(recovered_cells(sums, row)) for row, name in enumerate(sums.types)}
