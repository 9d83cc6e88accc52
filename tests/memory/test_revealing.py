"""What sums give away: cells that can be computed from the sums of their type."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.memory.joining import n_recovered, recovered_cells
from canal.memory.sums import add_up
from tests.support.sums import make_basis


def sums_of(levels):
    basis = make_basis(levels.shape[1])
    return add_up(basis, [(levels.astype(np.float32) / 4, ["T"] * len(levels))])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_recovered_are_cells_of_the_type_each_no_more_often_than_there(data):
    size = data.draw(st.integers(1, 5))
    rows = st.lists(st.integers(0, 9), min_size=size, max_size=size)
    levels = np.array(data.draw(st.lists(rows, min_size=1, max_size=8)))
    left = [tuple(one) for one in levels.tolist()]
    for cell in recovered_cells(sums_of(levels), 0).tolist():
        left.remove(tuple(cell))


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_cells_are_their_sums(n):
    levels = np.random.default_rng(n).integers(1, 20, (n, 12))
    found = recovered_cells(sums_of(levels), 0)
    assert sorted(found.tolist()) == sorted(levels.tolist())


def test_a_gene_of_one_cell_gives_it_away_and_then_the_next_one():
    levels = np.random.default_rng(0).integers(1, 9, (3, 6))
    levels[1:, 0], levels[2:, 1] = 0, 0
    assert n_recovered(sums_of(levels)) == {"T": 3}
    assert n_recovered(sums_of(np.full((3, 6), 2))) == {"T": 0}
