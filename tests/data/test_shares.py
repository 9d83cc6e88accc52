import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from canal.data.split import divide_groups, fill, largest_remainder, remaining_quotas

SHARES = (0.6, 0.2, 0.2)
sizes = st.lists(st.integers(1, 6), max_size=30)


@given(st.integers(0, 5000), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_remainders_add_up_and_stay_within_one(total, weights):
    parts = largest_remainder(total, weights)
    exact = np.array(weights) / sum(weights) * total
    assert parts.sum() == total
    assert np.all(np.abs(parts - exact) < 1)


def test_known_divisions():
    assert largest_remainder(10, SHARES).tolist() == [6, 2, 2]
    assert largest_remainder(7, SHARES).tolist() == [4, 2, 1]
    assert largest_remainder(0, SHARES).tolist() == [0, 0, 0]


def test_quotas_count_what_is_placed():
    assert remaining_quotas(SHARES, 10, np.array([0, 0, 1])).tolist() == [6, 2, 1]
    assert remaining_quotas(SHARES, 10, np.array([0, 0, 6])).tolist() == [3, 1, 0]


@given(st.integers(0, 200))
def test_single_cells_meet_the_quotas(total):
    quotas = largest_remainder(total, SHARES)
    assert np.bincount(fill([1] * total, quotas), minlength=3).tolist() == quotas.tolist()


@given(sizes)
def test_pieces_miss_the_quotas_by_less_than_the_largest(pieces):
    quotas = largest_remainder(sum(pieces), SHARES)
    filled = np.bincount(fill(pieces, quotas), weights=pieces, minlength=3)
    assert np.all(np.abs(filled - quotas) <= 2 * max(pieces, default=0))


@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 2**31))
def test_every_set_gets_a_group(n_groups, n_types, seed):
    counts = np.random.default_rng(seed).integers(0, 50, size=(n_groups, n_types))
    assert set(divide_groups(counts, SHARES)) == {0, 1, 2}


def test_groups_that_can_meet_the_shares_do():
    counts = np.full((10, 2), 7)
    assert np.bincount(divide_groups(counts, SHARES)).tolist() == [6, 2, 2]
    lopsided = np.array([[60, 0], [0, 60], [20, 20], [20, 20]])
    assert divide_groups(lopsided, SHARES)[:2].tolist() == [0, 0]
