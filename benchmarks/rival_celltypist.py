"""CellTypist on the same cells; runs in a virtual environment of its own, and knows nothing of canal.

    python rival_celltypist.py train.h5ad tests.h5ad query.h5ad answer.json

Training and test cells are log1p of counts per 10,000 with their types in obs; the query holds counts, which
are normalised here as CellTypist wants them: that is part of labelling.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import anndata  # noqa: E402
import celltypist  # noqa: E402
import scanpy  # noqa: E402


def main() -> None:
    """Train, name the test cells, then the query; write what it took."""
    train, tests, query, answer = map(Path, sys.argv[1:])
    began = time.perf_counter()
    lesson = anndata.read_h5ad(train)
    model = celltypist.train(lesson, labels="cell_type", check_expression=False, max_iter=500)
    learned = time.perf_counter() - began
    said = celltypist.annotate(anndata.read_h5ad(tests), model=model).predicted_labels["predicted_labels"]
    at_rest = peak_gib()
    began = time.perf_counter()
    cells = anndata.read_h5ad(query)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    labels = celltypist.annotate(cells, model=model).predicted_labels
    cells.obs["celltypist"] = labels["predicted_labels"].to_numpy()
    cells.write_h5ad(query.with_name("rival.h5ad"))
    found = {
        "version": celltypist.__version__,
        "training_seconds": learned,
        "seconds": time.perf_counter() - began,
        "at_rest_gib": at_rest,
        "peak_gib": peak_gib(),
        "said": [str(name) for name in said],
    }
    answer.write_text(json.dumps(found))


def peak_gib() -> float:
    """Return the largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
