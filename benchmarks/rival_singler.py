"""SingleR (its Python package) on the same cells: rank correlation to the reference's marker genes."""

from collections.abc import Callable, Sequence

import numpy as np
import singler
from anndata import AnnData


def learn(lesson: AnnData) -> Callable[[AnnData], Sequence[str]]:
    """Prepare single cells as a reference as advised: markers by Cohen's d, cells aggregated."""
    genes = list(lesson.var_names)
    labels = lesson.obs["cell_type"].astype(str).tolist()
    reference = singler.train_single(
        dense(lesson), labels, genes, test_features=genes, marker_method="cohens_d", aggregate=True
    )

    def named(cells: AnnData) -> Sequence[str]:
        found: Sequence[str] = singler.classify_single(dense(cells), reference).column("best")
        return found

    return named


def dense(cells: AnnData) -> np.ndarray:
    """Return a column a cell: the aggregation of few cells fails on sparse ones."""
    values: np.ndarray = cells.X.toarray().T.astype(np.float64)
    return values
