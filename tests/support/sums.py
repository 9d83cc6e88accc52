"""Small sums and solved memories for tests: ``from tests.support.sums import make_sums``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from canal.memory.answer import ExactAnnotator
from canal.memory.levels import Basis
from canal.memory.prediction import Calibration, SumsRule
from canal.memory.stage_sums import SolveSettings, StageSums, solve
from canal.memory.sums import add_up

STAGES = {"first": ("B", "NK", "T"), "second": ("B", "Mono", "T")}
RULE = SumsRule({"relative": (0.0, 5.0), "angle": (0.5, 0.1)}, 0.7)


def genes(n: int = 20) -> tuple[str, ...]:
    return tuple(f"GENE{i:03d}" for i in range(n))


def make_basis(n_genes: int = 20) -> Basis:
    return Basis(genes(n_genes), {"first": "0" * 64})


def make_cells(
    types: Sequence[str], n: int, n_genes: int = 20, stage: str = "first", seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Return expression of ``n`` cells of each type, whose means depend on type and stage, and types."""
    random = np.random.default_rng([seed, *stage.encode()])
    labels = [name for name in types for _ in range(n)]
    shift = np.random.default_rng([1, *stage.encode()]).normal(0, 0.4, n_genes)
    means = {name: np.random.default_rng([2, *name.encode()]).gamma(1.5, 1.5, n_genes) for name in types}
    values = (
        np.array([means[name] for name in labels]) + shift + random.normal(0, 0.8, (len(labels), n_genes))
    )
    order = random.permutation(len(labels))
    return np.maximum(values, 0).astype(np.float32)[order], [labels[i] for i in order]


def make_sums(
    stages: Mapping[str, Sequence[str]] = STAGES,
    n: int = 30,
    n_genes: int = 20,
    missing: Mapping[str, Sequence[str]] | None = None,
) -> StageSums:
    """Return sums of ``n`` cells of each type of each stage, less the genes that a stage's file lacks."""
    basis = make_basis(n_genes)
    sums = StageSums(basis)
    for stage, types in stages.items():
        expression, labels = make_cells(types, n, n_genes, stage)
        gone = (missing or {}).get(stage, ())
        expression = expression * basis.present(gone)
        sums = sums.plus(stage, add_up(basis, [(expression, labels)]), gone)
    return sums


def make_exact(sums: StageSums | None = None, labels: Sequence[str] = (), **changes: float) -> ExactAnnotator:
    """Return a solved memory with a novelty rule."""
    sums = sums or make_sums()
    solved = solve(sums, SolveSettings(**changes))
    names = tuple(labels) or sums.types
    return ExactAnnotator(solved, names, sums.basis.genes, Calibration(1.3, 0.01), RULE)


def same(one: ExactAnnotator, other: ExactAnnotator, expression: np.ndarray) -> bool:
    """Return whether two memories say the same of cells, to the last bit."""
    first, second = one.predict(expression), other.predict(expression)
    return first.labels == second.labels and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("confidence", "novelty", "is_novel", "probabilities", "logits")
    )
