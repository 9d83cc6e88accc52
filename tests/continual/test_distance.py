import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.continual.distance import MOST_CELLS_A_TYPE, chosen_cells, fit_distance

TYPES = ["A"] * 300 + ["B"] * 300


@pytest.fixture(scope="module")
def scores():
    """Two types apart by 10 along the first axis; all vary ten times as much along the second."""
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (600, 3)) * [1, 10, 1]
    values[300:, 0] += 10
    return torch.from_numpy(values.astype(np.float32))


def test_distance_is_counted_in_the_spread_of_the_types(scores):
    distance = fit_distance(scores, TYPES)
    centre, along, across = (
        distance.of(torch.tensor([row], dtype=torch.float32)).item()
        for row in ([0.0, 0, 0], [0, 10.0, 0], [0, 0, 10.0])
    )
    assert centre < 0.5
    assert along == pytest.approx(1, abs=0.3)
    assert across > 50


def test_the_nearest_type_counts(scores):
    distance = fit_distance(scores, TYPES)
    ends = distance.of(torch.tensor([[0.0, 0, 0], [10.0, 0, 0], [5.0, 0, 0]]))
    assert ends[:2].max() < 0.5
    assert ends[2] > 10


@settings(max_examples=30, deadline=None)
@given(present=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), seed=st.integers(0, 99))
def test_among_some_scores_it_is_that_of_their_own_covariance(present, seed):
    random, there = np.random.default_rng(seed), np.array(present)
    values = random.normal(size=(80, 6)) @ random.normal(size=(6, 6))
    distance = fit_distance(torch.from_numpy(values.astype(np.float32)), ["A", "B"] * 40)
    whitening = distance.whitening.double().numpy()
    inverse = np.linalg.inv(np.linalg.inv(whitening @ whitening.T)[np.ix_(there, there)])
    centres = np.linalg.solve(whitening.T, distance.centres.double().numpy().T).T
    asked = random.normal(size=(5, 6))
    strays = (asked[:, None] - centres)[:, :, there]
    wanted = np.einsum("cti,ij,ctj->ct", strays, inverse, strays).min(axis=1) * 6 / there.sum()
    some = distance.among(there)
    np.testing.assert_allclose(some.of(torch.from_numpy(asked)), wanted, rtol=1e-3)
    asked[:, ~there] = 99  # whatever is read there
    np.testing.assert_allclose(some.of(torch.from_numpy(asked)), wanted, rtol=1e-3)


def test_known_cells_are_as_far_with_half_of_the_scores():
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=(400, 40)).astype(np.float32))
    distance = fit_distance(values[:300], ["A", "B", "C"] * 100)
    asked = values[300:]
    half = distance.among(np.arange(40) % 2 == 0).of(asked)
    assert half.mean().item() == pytest.approx(distance.of(asked).mean().item(), rel=0.05)
    assert distance.among(np.ones(40, dtype=bool)) is distance


def test_fewer_cells_than_genes_still_give_a_distance():
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 40, generator=random)
    for types in (["A"] * 5, ["A", "B", "C", "D", "E"], ["A", "A", "B", "B", "B"]):
        found = fit_distance(scores, types).of(torch.randn(8, 40, generator=random))
        assert torch.isfinite(found).all()
        assert (found > 0).all()


def test_two_mirrored_cells_are_no_reason_to_fail():
    scores = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    assert torch.isfinite(fit_distance(scores, ["A", "A"]).of(torch.ones(2, 3))).all()


def test_a_type_gives_at_most_so_many_cells_and_a_rare_one_all():
    types = ["A"] * 1000 + ["B"] * 3 + ["A"] * 1000
    rows = chosen_cells(types)
    assert (np.diff(rows) > 0).all()
    assert [sum(types[i] == name for i in rows) for name in "AB"] == [MOST_CELLS_A_TYPE, 3]
    assert rows[0] == 0
    assert rows[-1] == 2002
    assert len(chosen_cells([])) == 0
