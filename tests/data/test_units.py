"""What values are, told by whole rows: every kind that was ever taken for another."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix, vstack

from canal.data.units import judge_values, named
from tests.support.cells import make_adata

E = float(np.e)


@pytest.fixture(scope="module")
def counts():
    return csr_matrix(make_adata({"B": 40, "NK": 40}, n_genes=3000, seed=3).X).astype(np.float64)


def per(counts, depth, factors=None):
    """Scale each cell to a depth, or divide it by factors of its own."""
    scale = depth / np.asarray(counts.sum(axis=1)).ravel() if factors is None else 1 / factors
    return csr_matrix(counts.multiply(np.broadcast_to(scale, counts.shape[0])[:, None]))


def with_data(matrix, change):
    result = matrix.copy()
    result.data = change(result.data)
    return csr_matrix(result, dtype=np.float32)


def log2p(values):
    return np.log2(1 + values)


def log10p(values):
    return np.log10(1 + values)


def twice(values):
    return np.log1p(np.log1p(values))


def same(values):
    return values


@pytest.mark.parametrize(
    ("change", "logs"),
    [(np.log1p, (E,)), (log2p, (2.0,)), (log10p, (10.0,)), (twice, (E, E)), (same, ())],
)
@pytest.mark.parametrize("depth", [0.5, 1e4, 1e6])
def test_one_depth_tells_its_logarithm(counts, change, logs, depth):
    found = judge_values(with_data(per(counts, depth), change))
    assert (found.kind, found.logs) == ("one_depth", logs)
    assert found.depth == pytest.approx(depth, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "logs"), [(np.log1p, (E,)), (log2p, (2.0,)), (log10p, (10.0,)), (twice, (E, E)), (same, ())]
)
def test_genes_that_are_gone_leave_whole_multiples(counts, change, logs):
    found = judge_values(with_data(per(counts, 1e4)[:, ::3], change))
    assert (found.kind, found.logs) == ("multiples", logs)
    assert not found.low


@pytest.mark.parametrize(
    ("change", "logs"), [(np.log1p, (E,)), (log2p, (2.0,)), (log10p, (10.0,)), (twice, (E, E))]
)
@pytest.mark.parametrize("kept", [1.0, 0.1])
def test_logarithms_of_raw_counts_are_whole_once_undone(counts, change, logs, kept):
    """Shallow cells, too: nearly all are 1 then. A tenth of the counts is what SCT's data slot looks like."""
    drawn = counts.copy()
    drawn.data = np.random.default_rng(0).binomial(counts.data.astype(int), kept).astype(float)
    drawn.eliminate_zeros()
    found = judge_values(with_data(drawn, change))
    assert (found.kind, found.logs) == ("log_of_counts", logs)


def test_counts_are_counts_and_ones_are_no_counts(counts):
    assert judge_values(with_data(counts, same)).kind == "counts"
    found = judge_values(with_data(counts, np.ones_like))
    assert (found.kind, found.message) == ("binary", "every value other than 0 is 1")


def test_size_factors_leave_totals_that_are_too_low(counts):
    """scran and scater divide by factors around 1, so cells sum to a mean library, not to 10,000."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    noise = np.exp(np.random.default_rng(0).normal(0, 0.15, counts.shape[0]))
    found = judge_values(with_data(per(counts, 0, totals / totals.mean() * noise), log2p))
    assert (found.kind, found.logs, found.low) == ("multiples", (2.0,), True)
    assert "over 3,000 genes" in found.totals_message


def test_samples_of_two_depths_are_told(counts):
    halves = [per(counts[:40], 700), per(counts[40:], 1900)]
    found = judge_values(with_data(csr_matrix(vstack(halves)), np.log1p))
    assert (found.kind, found.logs) == ("depths", (E,))
    assert "700 or 1,900" in found.message


@pytest.mark.parametrize("genes", [1, 3])
def test_samples_of_two_units_are_mixed(counts, genes):
    scaled = per(counts, 1e4)[:, ::genes]
    natural, binary = with_data(scaled[:40], np.log1p), with_data(scaled[40:], log2p)
    assert judge_values(csr_matrix(vstack([natural, binary]))).kind == "mixed"
    raw = with_data(counts[40:, ::genes], same)
    found = judge_values(csr_matrix(vstack([natural, raw])))
    assert (found.kind, found.message[:42]) == ("mixed", "40 of 80 cells hold whole numbers, the others"[:42])


def test_noise_and_corrected_values_prove_nothing(counts):
    generator = np.random.default_rng(0)
    noise = judge_values(csr_matrix(generator.uniform(0.01, 1, counts.shape).astype(np.float32)))
    assert (noise.kind, noise.dense) == ("unproven", True)
    corrected = with_data(per(counts, 1e4), lambda x: np.log1p(x) * generator.uniform(0.6, 0.95, x.shape))
    found = judge_values(corrected)
    assert (found.kind, found.dense, found.too_low) == ("unproven", False, False)


def test_an_empty_matrix_and_the_words_for_logarithms():
    assert judge_values(csr_matrix((5, 9), dtype=np.float32)).kind == "zeros"
    assert named((E, 2.0)) == "the natural logarithm of the logarithm to base 2"


def test_whole_numbers_of_which_none_is_zero_had_something_added():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, size=(20, 600)).astype(np.float32)
    assert judge_values(csr_matrix(counts)).kind == "counts"
    finding = judge_values(csr_matrix(counts + 1))
    assert finding.kind == "binary"
    assert finding.message == "all are whole numbers and none is 0 (was 1 added to each of them?)"
    assert judge_values(csr_matrix(counts[:, :400] + 1)).kind == "counts"  # a panel of genes that all express


def test_counts_of_which_a_few_are_no_whole_numbers_are_no_logarithms():
    """2^x - 1 of whole numbers are whole numbers, too."""
    counts = csr_matrix(np.random.default_rng(0).poisson(1.0, size=(20, 600)).astype(np.float64))
    counts.data[5] += 0.3
    finding = judge_values(counts)
    assert (finding.kind, finding.logs) == ("mixed", ())
    assert finding.message.startswith("1 of ")
    logs = counts.copy()
    logs.data = np.log2(1 + np.rint(counts.data))
    assert judge_values(logs).kind == "log_of_counts"
