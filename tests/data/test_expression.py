from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from canal.data.expression import align, log2_single, to_expression

COUNTS = csr_matrix(np.array([[1, 3, 0], [0, 0, 0], [5, 0, 5]], dtype=np.float32))
SHARES = np.array([[2500, 7500, 0], [0, 0, 0], [5000, 0, 5000]])


def test_counts_are_scaled_by_the_total_of_all_genes():
    np.testing.assert_allclose(to_expression(COUNTS, "counts").toarray(), np.log2(1 + SHARES), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "logarithm"), [("log1p_10k", np.log1p), ("log2p_10k", lambda x: np.log2(1 + x))]
)
def test_logarithms_change_their_base_and_nothing_else(values, logarithm):
    part = csr_matrix(logarithm(SHARES[:, :2]).astype(np.float32))  # a file that lost a gene since
    result = to_expression(part, values)
    np.testing.assert_allclose(result.toarray(), np.log2(1 + SHARES[:, :2]), rtol=1e-6)
    assert result.dtype == np.float32


def test_a_cell_does_not_depend_on_its_neighbours():
    whole = to_expression(COUNTS, "counts")
    assert (to_expression(COUNTS[2], "counts") != whole[2]).nnz == 0


def test_align_orders_genes_and_fills_with_zero():
    result = align(COUNTS, ["A", "B", "C"], ["C", "X", "A"])
    np.testing.assert_array_equal(result, [[0, 0, 1], [0, 0, 0], [5, 0, 5]])
    assert result.dtype == np.float32


def _steps(values, n):
    """Return float64 values ``n`` of their units in the last place further from zero."""
    return (values.view(np.int64) + np.where(values != 0, n, 0)).view(np.float64)


def _in_the_middle(n, seed=0):
    """Return numbers whose log2 lies next to the middle between two of float32."""
    low = np.random.default_rng(seed).uniform(1e-3, 14, n).astype(np.float32)
    middle = (low.astype(np.float64) + np.nextafter(low, np.float32(np.inf)).astype(np.float64)) / 2
    return np.exp2(middle)


@pytest.mark.parametrize("wrong", [-4, -1, 1, 4])
def test_another_machines_logarithm_gives_the_same_expression(monkeypatch, wrong):
    counts = np.random.default_rng(1).integers(1, 500, 100_000) * 1e4
    usual = 1.0 + counts / np.random.default_rng(2).integers(1, 50_000, 100_000)
    values = np.concatenate([usual, _in_the_middle(2000), [1.0, 2.0, 4.0, 1 + 2.0**-52]])
    expected, log2 = log2_single(values), np.log2
    monkeypatch.setattr(np, "log2", lambda x: _steps(log2(x), wrong))
    np.testing.assert_array_equal(log2_single(values), expected)


def test_a_logarithm_in_the_middle_is_rounded_as_its_digits_say():
    values = _in_the_middle(300, seed=3)
    found = log2_single(values)
    with localcontext(prec=80):
        for value, single in zip(values.tolist(), found, strict=True):
            exact = Decimal(value).ln() / Decimal(2).ln()
            near = [np.nextafter(single, np.float32(way)) for way in (-np.inf, np.inf)]
            assert all(abs(exact - Decimal(float(single))) < abs(exact - Decimal(float(x))) for x in near)


def test_usual_logarithms_are_as_the_machine_has_them():
    values = 1.0 + np.random.default_rng(4).integers(0, 500, 200_000) * 1e4 / 3211.0
    np.testing.assert_array_equal(log2_single(values), np.log2(values).astype(np.float32))


def test_what_has_no_logarithm_stays_so():
    with np.errstate(divide="ignore", invalid="ignore"):
        found = log2_single(np.array([np.nan, np.inf, 0.0, -1.0, 1.0]))
    np.testing.assert_array_equal(found, np.array([np.nan, np.inf, -np.inf, np.nan, 0], dtype=np.float32))
