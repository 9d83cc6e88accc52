"""What every rival is asked, in a process and an environment of its own: knows nothing of canal.

    python rival_NAME.py train.h5ad tests.h5ad query.h5ad answer.json

Training and test cells are log1p of counts per 10,000, with ``cell_type`` and ``stage`` in obs; the query
holds counts. A rival learns, names the test cells, then labels the query: reading it, making it such as the
rival wants, and writing it are part of labelling.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
from anndata import AnnData

Namer = Callable[[AnnData], Sequence[str]]
Preparation = Callable[[AnnData], AnnData]


def answer(
    version: str, learn: Callable[[AnnData], Namer], of_logs: Preparation, of_counts: Preparation
) -> None:
    """Have a rival do it all and write what it took.

    ``of_logs`` and ``of_counts`` make cells of either kind such as the rival wants; ``learn`` gives a
    function that names such cells.
    """
    train, tests, query, told = map(Path, sys.argv[1:])
    began = time.perf_counter()
    named = learn(of_logs(anndata.read_h5ad(train)))
    learned = time.perf_counter() - began
    said = named(of_logs(anndata.read_h5ad(tests)))
    at_rest = peak_gib()
    began = time.perf_counter()
    cells = of_counts(anndata.read_h5ad(query))
    cells.obs["label"] = named(cells)
    cells.write_h5ad(query.with_name("rival.h5ad"))
    found = {
        "version": version,
        "training_seconds": learned,
        "seconds": time.perf_counter() - began,
        "at_rest_gib": at_rest,
        "peak_gib": peak_gib(),
        "said": [str(name) for name in said],
    }
    told.write_text(json.dumps(found))


def as_is(cells: AnnData) -> AnnData:
    """Return the cells: they are what the rival wants."""
    return cells


def peak_gib() -> float:
    """Return the largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
