import numpy as np
import pytest
from scipy.sparse import csr_matrix

from canal.data.expression import align, to_expression

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
