from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from canal.core.errors import DataError, SumsError
from canal.data.expression import to_expression
from canal.memory.levels import HIGHEST, STEPS, Basis, levels
from tests.support.sums import genes, make_basis

QUARTERS = np.arange(4 * 15, dtype=np.float32) / np.float32(4)
_HALF_A_UNIT = Fraction(1, 2**22)  # of float32 below 16, as a share of the number whose logarithm it is


@pytest.mark.parametrize("toward", [-np.inf, np.inf])
def test_a_level_begins_at_its_quarter_and_not_one_number_before(toward):
    near = np.nextafter(QUARTERS[1:], np.float32(toward))
    steps = np.arange(1, len(QUARTERS))
    np.testing.assert_array_equal(levels(QUARTERS)[:54], np.arange(54))
    expected = np.minimum(steps - (toward < 0), HIGHEST)
    np.testing.assert_array_equal(levels(near), expected)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=50))
def test_more_expression_is_no_lower_level(values):
    found = levels(np.sort(np.array(values, dtype=np.float32)))
    assert (np.diff(found.astype(int)) >= 0).all()
    assert found.max() <= HIGHEST


@given(st.integers(0, 10**6), st.integers(0, 10**7))
@example(1, 9999)  # 1 + 10,000 / 10,000 = 2: the boundary itself
@example(3, 9997)
@example(7, 9993)
@example(10**6, 0)  # one gene has all counts: the highest level there is
def test_counts_have_the_level_that_whole_numbers_say(count, others):
    """(1 + c x 10,000 / t)**4 >= 2**k, but for what is nearer to it than float32 tells apart."""
    total = max(count + others, 1)
    share = 1 + Fraction(count * 10**4, total)
    found = int(levels(to_expression(csr_matrix([[count, total - count]]), "counts").toarray())[0, 0])
    assert share**4 * (1 + _HALF_A_UNIT) ** 4 >= 2**found
    assert share**4 < 2 ** (found + 1)


@given(st.integers(0, 13), st.integers(1, 1000))
def test_powers_of_two_are_exact(power, scale):
    """1 + c x 10,000 / t = 2**m, in whole numbers."""
    count, total = (2**power - 1) * scale, 10_000 * scale
    matrix = csr_matrix(np.array([[count, total - count]], dtype=np.float64))
    assert levels(to_expression(matrix, "counts").toarray())[0, 0] == STEPS * power


def test_no_level_of_counts_is_ever_cut():
    assert levels(np.log2(np.float32([10_001]))) == 53
    assert HIGHEST > 53


@pytest.mark.parametrize("wrong", [-1.0, -1e-30, np.nan, -np.inf, np.inf])
def test_what_is_no_expression_is_refused(wrong):
    with pytest.raises(DataError, match="must be finite and >= 0, found 1 other"):
        levels(np.array([[1.0, wrong]], dtype=np.float32))


def test_nothing_is_as_little_as_minus_nothing():
    assert levels(np.array([-0.0, 0.0], dtype=np.float32)).tolist() == [0, 0]


def test_columns_that_a_panel_gained_are_not_looked_at():
    basis, cells = make_basis(3), np.random.default_rng(0).gamma(2, 1, (4, 5)).astype(np.float32)
    np.testing.assert_array_equal(basis.levels(cells), levels(cells[:, :3]))
    with pytest.raises(SumsError, match=r"reads 3 genes, found expression of shape \(4, 2\)"):
        basis.levels(cells[:, :2])


def test_whose_cells_chose_the_genes_stands_outside_the_digest():
    assert Basis(genes(4), {"first": "1" * 64}).digest == Basis(genes(4), {}).digest
    assert Basis(genes(4)[::-1], {}).digest != Basis(genes(4), {}).digest


def test_a_saved_basis_is_the_same(tmp_path):
    make_basis().save(tmp_path / "basis")
    found = Basis.load(tmp_path / "basis")
    assert (found.genes, found.seen, found.digest) == (genes(), {"first": "0" * 64}, make_basis().digest)
