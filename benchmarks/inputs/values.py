"""Units: values that look like counts per 10,000 and are none, and those that can be converted exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, diags

from inputs.case import Case, Outcome, frequent, of_values, scaled, totals, with_x, write

if TYPE_CHECKING:
    from anndata import AnnData

Matrix = "Callable[[AnnData, np.random.Generator], csr_matrix]"


def _counts(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return adata.X


def _per_10k(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata), np.log1p)


def _per_10k_log2(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata), lambda x: np.log2(1 + x))


def _log_twice(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata), lambda x: np.log1p(np.log1p(x)))


def _log_of_counts(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(adata.X, np.log1p)


def _log2_of_counts(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(adata.X, lambda x: np.log2(1 + x))


def _corrected(adata: "AnnData", random: np.random.Generator) -> csr_matrix:
    """Log of counts thinned to the median depth: the data slot of an SCT assay."""
    depth = totals(adata)
    keep = np.clip(np.median(depth) / depth, 0, 1)
    return csr_matrix(np.log1p(random.binomial(adata.X.toarray().astype(int), keep[:, None])))


def _log10_per_10k(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata), lambda x: np.log10(1 + x))


def _scran(adata: "AnnData", random: np.random.Generator) -> csr_matrix:
    """Log2 of counts by size factors that are near the library sizes, but pooled."""
    factors = totals(adata) / totals(adata).mean() * np.exp(random.normal(0, 0.15, adata.n_obs))
    return of_values(csr_matrix(diags(1 / factors) @ adata.X), lambda x: np.log2(1 + x))


def _two_depths(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    """Two samples, each scaled to a depth of its own before the logarithm."""
    half = np.arange(adata.n_obs) < adata.n_obs // 2
    depth = np.median(totals(adata)) * np.where(half, 0.6, 1.4)
    return of_values(scaled(adata, depth), np.log1p)


def _median_depth(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata, float(np.median(totals(adata)))), np.log1p)


def _sum_one(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return scaled(adata, 1.0)


def _uniform(adata: "AnnData", random: np.random.Generator) -> csr_matrix:
    return of_values(adata.X, lambda x: random.uniform(0, 1, len(x)))


def _binary(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(adata.X, np.sign)


def _per_million(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    return of_values(scaled(adata, 1e6), np.log1p)


def _scores(adata: "AnnData", _: np.random.Generator) -> csr_matrix:
    dense = _per_10k(adata, _).toarray()
    return csr_matrix((dense - dense.mean(axis=0)) / (dense.std(axis=0) + 1e-6))


_UNLIKE = r"logarithm|log1p|log2|units|scaled|whole number|depth|0 and 1|binar|every value other than 0 is 1"
_KINDS: tuple[tuple[str, "Matrix", tuple[Outcome, ...]], ...] = (
    ("counts", _counts, ("labels",)),
    ("log1p of counts per 10,000", _per_10k, ("labels",)),
    ("log2 of counts per 10,000", _per_10k_log2, ("labels",)),
    ("log1p of counts per million", _per_million, ("labels", "warned", "refused")),
    ("log1p at the median depth", _median_depth, ("labels", "warned", "refused")),
    ("counts scaled to sum to 1", _sum_one, ("labels", "warned", "refused")),
    ("log taken twice", _log_twice, ("labels", "warned", "refused")),
    ("log1p of raw counts", _log_of_counts, ("labels", "warned", "refused")),
    ("log2 of raw counts", _log2_of_counts, ("labels", "warned", "refused")),
    ("SCT's data slot", _corrected, ("labels", "warned", "refused")),
    ("log10 of counts per 10,000", _log10_per_10k, ("labels", "warned", "refused")),
    ("scran's logcounts", _scran, ("warned", "refused")),
    ("two samples of two depths", _two_depths, ("labels", "warned", "refused")),
    ("uniform noise", _uniform, ("warned", "refused")),
    ("zeros and ones", _binary, ("warned", "refused")),
    ("scaled and centred", _scores, ("refused",)),
)
SEEDS = (0, 1, 2)


def _made(matrix: "Matrix", seed: int) -> "Callable[[AnnData, Path], Path]":
    def make(adata: "AnnData", folder: Path) -> Path:
        random = np.random.default_rng(seed)
        rows = np.sort(random.choice(adata.n_obs, adata.n_obs * 3 // 4, replace=False))
        own = frequent(adata[rows])
        return write(with_x(own, matrix(own, random)), folder)

    return make


CASES = tuple(
    Case("units: annotate", f"{name}, draw {seed}", _made(matrix, seed), right, _UNLIKE)
    for name, matrix, right in _KINDS
    for seed in SEEDS
)


def _declared(name: str, matrix: "Matrix", values: str, sound: bool) -> tuple[Case, ...]:
    right: tuple[Outcome, ...] = ("passed",) if sound else ("warned", "refused")
    declared = {"label": "cell_type", "values": values}
    return tuple(
        Case(
            "units: gate",
            f"{name} as {values}, {seed}",
            _made(matrix, seed),
            right,
            _UNLIKE,
            declared=declared,
        )
        for seed in SEEDS
    )


GATE = tuple(
    case
    for name, matrix, values, sound in (
        ("counts", _counts, "counts", True),
        ("log1p of counts per 10,000", _per_10k, "log1p_10k", True),
        ("log2 of counts per 10,000", _per_10k_log2, "log2p_10k", True),
        ("log taken twice", _log_twice, "log1p_10k", False),
        ("log1p of raw counts", _log_of_counts, "log1p_10k", False),
        ("log2 of raw counts", _log2_of_counts, "log2p_10k", False),
        ("SCT's data slot", _corrected, "log1p_10k", False),
        ("log10 of counts per 10,000", _log10_per_10k, "log1p_10k", False),
        ("scran's logcounts", _scran, "log2p_10k", False),
        ("two samples of two depths", _two_depths, "log1p_10k", False),
        ("counts scaled to sum to 1", _sum_one, "log1p_10k", False),
        ("uniform noise", _uniform, "log1p_10k", False),
        ("zeros and ones", _binary, "counts", False),
    )
    for case in _declared(name, matrix, values, sound)
)
