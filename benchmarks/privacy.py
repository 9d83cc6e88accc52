"""What shared sums reveal, on the embedded stream: membership, reconstruction, differences, and noise.

    python benchmarks/privacy.py [--seeds 3] [--data FOLDER]

Real cells of the stream's types are added up in groups of n, as `canal share` hands them out. Membership: is
a cell, whose levels the reader has, among the n? Reconstruction: whose levels can be computed from the sums
alone? Differences: the same for sums before and after cells were withdrawn. Noise: which accuracy is left
when sums are made differentially private per donor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import stream
from exact_streams import EMBEDDED, Drawn, Stream

from canal.continual.cells import LabelledCells
from canal.memory.joining import recovered_cells
from canal.memory.levels import Basis, linear_scores
from canal.memory.sums import Sums, add_up

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
EPSILONS = (1.0, 4.0, 8.0)
DELTA = 1e-5
DONOR_CELLS = 50
"""Cells that one donor gives at most: others are left out before noise is added."""

_GROUPS = 5
"""Groups of each size and type, drawn at random."""


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=stream.REPOSITORY / ".canal" / "exact")
    options = parser.parse_args()
    downloads = stream.REPOSITORY / ".canal" / "downloads"
    cells = Stream(EMBEDDED, None, options.data, downloads)
    drawn = [cells.drawn(seed) for seed in range(options.seeds)]
    grouped(drawn)
    released(drawn[0])
    withdrawn(drawn)
    private(drawn)


def grouped(drawn: Sequence[Drawn]) -> None:
    """Print membership and reconstruction for groups of n cells of one type of one stage."""
    print(f"groups of n cells of one stage and type, {len(drawn)} splits")
    print("     n groups   member AUROC   cells computed exactly   groups computed whole")
    for n in SIZES:
        inside, outside, computed, whole, groups = [], [], 0, 0, 0
        for seed, one in enumerate(drawn):
            random = np.random.default_rng([seed, n])
            for levels in _types(one):
                if len(levels) < n + max(n // 2, 5):
                    continue
                for _ in range(_GROUPS):
                    order = random.permutation(len(levels))
                    own, others = levels[order[:n]], levels[order[n : 2 * n + 5]]
                    others = others[~(others[:, None] == own[None]).all(axis=2).any(axis=1)]
                    sums = _sums(own)
                    scores = membership(sums, np.concatenate([own, others]))
                    inside += scores[:n].tolist()
                    outside += scores[n:].tolist()
                    found = recovered_cells(sums, 0)
                    computed += _true(found, own)
                    whole += int(len(found) == n)
                    groups += 1
        if groups:
            share = 100 * computed / (groups * n)
            area = auroc(inside, outside)
            print(f"{n:6d} {groups:6d} {area:14.3f} {share:22.1f} % {100 * whole / groups:21.1f} %")


def membership(sums: Sums, cells: np.ndarray) -> np.ndarray:
    """Return how much each cell looks like one of those that were added up; the larger, the more.

    A cell of the sums lies in the space that their products span, of n dimensions at most; others do not.
    Where that is all of space, its leverage q' G^-1 q is at most 1, and on average smaller than theirs.
    """
    products = sums.scatter(0)
    values, vectors = np.linalg.eigh(products)
    kept = values > 1e-9 * values[-1]
    inside = cells @ vectors[:, kept]
    lengths = np.maximum(np.square(cells).sum(axis=1), 1e-9)
    outside = 1 - np.square(inside).sum(axis=1) / lengths
    leverage = (np.square(inside) / values[kept]).sum(axis=1)
    result: np.ndarray = -leverage - np.where(outside < 1e-6, 0.0, 1e6 * outside)
    return result


def released(drawn: Drawn) -> None:
    """Print what the stages' own sums give away, types of 20 cells and more."""
    print("\nthe stream's own sums, types of 20 cells and more, as canal share writes them")
    total = given = 0
    for name, stage in drawn.stages.items():
        basis = Basis(drawn.genes, {})
        sums = add_up(basis, [(stage.train.expression, stage.train.cell_types)])
        lines = []
        for row, cell_type in enumerate(sums.types):
            n = int(sums.counts[row])
            if n >= 20:
                found = len(recovered_cells(sums, row))
                total, given = total + n, given + found
                lines.append(f"{cell_type} {found} of {n}")
        print(f"  {name}: {', '.join(lines)}")
    print(f"  {given} of {total} cells computed exactly")


def withdrawn(drawn: Sequence[Drawn]) -> None:
    """Print how many of k withdrawn cells two releases of a type of 100 cells give away."""
    print("\nreleases of a type of 100 cells before and after k of them leave")
    print("     k   withdrawn cells computed exactly")
    for k in (1, 2, 5, 10, 20, 50):
        computed = asked = 0
        for seed, one in enumerate(drawn):
            random = np.random.default_rng([seed, k])
            for levels in _types(one):
                if len(levels) < 100:
                    continue
                own = levels[random.permutation(len(levels))[:100]]
                gone = _sums(own).minus(_sums(own[k:]))
                computed += _true(recovered_cells(gone, 0), own[:k])
                asked += k
        print(f"{k:6d} {100 * computed / asked:20.1f} %")


def private(drawn: Sequence[Drawn]) -> None:
    """Print the accuracy that is left with noise for donors of at most `DONOR_CELLS` cells in a stage.

    Discrete Gaussian noise (rounded, which is post-processing of the Gaussian mechanism; Dwork & Roth 2014),
    delta 1e-5, cells clipped to the median length of levels. Either all sums get noise, half of epsilon for
    products, or numbers and sums alone, and each gene's variance is taken as known.
    """
    print(f"\naccuracy on test cells of all stages; a donor gives up to {DONOR_CELLS} cells; delta {DELTA:g}")
    print(" epsilon   all sums   numbers and sums alone")
    for epsilon in (np.inf, *EPSILONS):
        both = (True, False)
        rows = [[_accuracy(one, seed, epsilon, some) for some in both] for seed, one in enumerate(drawn)]
        whole, first = np.mean(rows, axis=0)
        spread = np.std(rows, axis=0, ddof=1) if len(rows) > 1 else np.zeros(2)
        print(f"{epsilon:8g} {whole:8.3f} ± {spread[0]:.3f} {first:12.3f} ± {spread[1]:.3f}")


def _accuracy(drawn: Drawn, seed: int, epsilon: float, whole: bool) -> float:
    """Return the accuracy of a linear discriminant by noisy sums of all stages together, types pooled."""
    random = np.random.default_rng([seed, 11])
    train = LabelledCells.concatenate([stage.train for stage in drawn.stages.values()])
    test = LabelledCells.concatenate([stage.test for stage in drawn.stages.values()])
    basis = Basis(drawn.genes, {})
    levels = basis.levels(train.expression)
    length = float(np.median(np.linalg.norm(levels, axis=1)))
    levels *= np.minimum(1, length / np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-9))
    # By how much a donor's cells change numbers and sums, and products, of all types together at most.
    factor = 0.0 if np.isinf(epsilon) else DONOR_CELLS * np.sqrt(2 * np.log(1.25 / DELTA)) / epsilon
    parts = 2 if whole else 1
    first, second = factor * parts * np.hypot(1.0, length), factor * parts * length**2
    types = sorted(set(train.cell_types))
    names = np.array(train.cell_types, dtype=object)
    means, pooled, n_all = [], np.zeros((basis.size, basis.size)), 0.0
    for name in types:
        own = levels[names == name]
        n = max(len(own) + np.rint(random.normal(0, first)) if factor else len(own), 1.0)
        total = own.sum(axis=0) + (np.rint(random.normal(0, first, basis.size)) if factor else 0.0)
        means.append(total / n)
        products = own.T @ own
        if factor and whole:
            noise = np.triu(np.rint(random.normal(0, second, products.shape)))
            products = products + noise + np.triu(noise, 1).T
        pooled, n_all = pooled + products - n * np.outer(means[-1], means[-1]), n_all + n
    covariance = pooled / n_all
    if factor and not whole:  # variances as known
        exact = [np.cov(levels[names == name].T) for name in types if (names == name).sum() > 1]
        covariance = np.diag(np.diag(np.mean(exact, axis=0)))
    values, vectors = np.linalg.eigh(0.6 * covariance + 0.4 * np.diag(np.abs(np.diag(covariance))))
    covariance = (vectors * np.maximum(values, 0.1)) @ vectors.T
    linear = linear_scores(np.array(means), covariance)
    scores = basis.levels(test.expression) @ linear.weights.T + linear.bias
    predicted = np.array(types, dtype=object)[scores.argmax(axis=1)]
    return float(np.mean(predicted == np.array(test.cell_types, dtype=object)))


def _types(drawn: Drawn) -> list[np.ndarray]:
    """Return the levels of each stage and type."""
    basis, found = Basis(drawn.genes, {}), []
    for stage in drawn.stages.values():
        levels, names = basis.levels(stage.train.expression), np.array(stage.train.cell_types, dtype=object)
        found += [levels[names == name] for name in sorted(set(stage.train.cell_types))]
    return found


def _sums(levels: np.ndarray) -> Sums:
    basis = Basis(tuple(f"g{number}" for number in range(levels.shape[1])), {})
    return add_up(basis, [((levels / 4).astype(np.float32), ["type"] * len(levels))])


def _true(found: np.ndarray, own: np.ndarray) -> int:
    """Return how many of the computed cells are cells of the group."""
    return (
        int((found[:, None] == own[None].astype(np.int64)).all(axis=2).any(axis=1).sum()) if len(found) else 0
    )


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Return the chance that a member scores above another cell."""
    from sklearn.metrics import roc_auc_score

    truth = [True] * len(inside) + [False] * len(outside)
    return float(roc_auc_score(truth, [*inside, *outside]))


if __name__ == "__main__":
    main()
