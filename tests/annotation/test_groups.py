import random

import numpy as np
import pytest

from canal.annotation.clusters import METHODS, find_groups


def blobs(*sizes, spread=0.3, seed=0):
    """Cells around centres far apart, shuffled, and which centre each is from."""
    generator = np.random.default_rng(seed)
    own = np.repeat(np.arange(len(sizes)), sizes)
    centres = 5.0 * generator.normal(size=(len(sizes), 16))
    points = centres[own] + spread * generator.normal(size=(len(own), 16))
    order = generator.permutation(len(own))
    return points[order].astype(np.float32), own[order]


@pytest.mark.parametrize("method", METHODS)
def test_cells_around_one_centre_are_a_group_and_the_largest_comes_first(method):
    points, own = blobs(30, 90, 60)
    groups = find_groups(points, resolution=0.3, seed=0, method=method)
    assert {(int(a), int(b)) for a, b in zip(groups, own, strict=True)} == {(0, 1), (1, 2), (2, 0)}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_groups_and_leaves_other_random_numbers_alone(method):
    points, _ = blobs(200, spread=3.0)
    random.seed(7)
    np.random.seed(7)
    once = find_groups(points, resolution=2.0, seed=3, method=method)
    after = random.random(), np.random.random()
    assert (find_groups(points, resolution=2.0, seed=3, method=method) == once).all()
    random.seed(7)
    np.random.seed(7)
    assert (random.random(), np.random.random()) == after


def test_both_methods_find_the_same_groups_where_cells_lie_apart():
    points, _ = blobs(200, 120, 80, 40, spread=0.6)
    once = [find_groups(points, resolution=0.3, seed=0, method=method) for method in METHODS]
    assert (once[0] == once[1]).all()


def test_more_cells_than_the_graph_takes_join_their_neighbours():
    points, own = blobs(200, 120, 80)
    groups = find_groups(points, resolution=0.3, seed=0, most=100)
    assert {(int(a), int(b)) for a, b in zip(groups, own, strict=True)} == {(0, 0), (1, 1), (2, 2)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_a_few_cells_are_no_error(n, method):
    for resolution in (0.0, 1.0):
        groups = find_groups(np.zeros((n, 4), dtype=np.float32), resolution, seed=0, method=method)
        assert groups.shape == (n,)
        assert (groups == 0).all()
