"""CellTypist on the same cells; see rival.py."""

import warnings
from collections.abc import Sequence

import celltypist
import rival
import scanpy
from anndata import AnnData

warnings.simplefilter("ignore")


def learn(lesson: AnnData) -> rival.Namer:
    """Train on cells that are log1p of counts per 10,000."""
    model = celltypist.train(lesson, labels="cell_type", check_expression=False, max_iter=500)

    def named(cells: AnnData) -> Sequence[str]:
        labels = celltypist.annotate(cells, model=model).predicted_labels["predicted_labels"]
        return labels.astype(str).to_numpy()

    return named


def normalised(query: AnnData) -> AnnData:
    """Return counts as their log1p per 10,000."""
    scanpy.pp.normalize_total(query, target_sum=1e4)
    scanpy.pp.log1p(query)
    return query


if __name__ == "__main__":
    rival.answer(celltypist.__version__, learn, of_logs=rival.as_is, of_counts=normalised)
