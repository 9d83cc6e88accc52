import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.continual.novelty_choice import (
    MOST_CELLS_A_TYPE,
    chosen_cells,
    fit_angle,
    fit_centroids,
    fit_distance,
)

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


def test_fewer_cells_than_genes_still_give_centroids():
    random = torch.Generator().manual_seed(0)
    scores = torch.rand(5, 40, generator=random)
    for types in (["A"] * 5, ["A", "B", "C", "D", "E"], ["A", "A", "B", "B", "B"]):
        for found in fit_centroids(scores, types).of(torch.rand(8, 40, generator=random)):
            assert torch.isfinite(found).all()
            assert (found > 0).all()


def test_two_mirrored_cells_are_no_reason_to_fail():
    scores = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    assert torch.isfinite(fit_distance(scores, ["A", "A"]).of(torch.ones(2, 3))).all()


@pytest.fixture(scope="module")
def patterns():
    """Two types: the first axis is high in one, the second in the other; the third is noise of both."""
    random = np.random.default_rng(0)
    values = random.uniform(0, 1, (600, 3)) * [0.1, 0.1, 8]
    values[:300, 0] += 1
    values[300:, 1] += 1
    return torch.from_numpy(values.astype(np.float32))


def test_the_angle_asks_for_the_pattern_and_not_how_strong_it_is(patterns):
    angle = fit_angle(patterns, TYPES)
    typical = torch.tensor([[1.05, 0.05, 4.0], [0.05, 1.05, 4.0]])
    assert angle.of(typical).max() < 0.01
    torch.testing.assert_close(angle.of(7 * typical), angle.of(typical))
    assert angle.of(torch.tensor([[1.0, 1.0, 4.0]])).item() > 0.1  # of both types at once
    assert angle.of(torch.zeros(1, 3)).item() == 1


def test_scores_count_in_units_of_their_spread(patterns):
    angle = fit_angle(patterns, TYPES)
    loud, unlike = angle.of(torch.tensor([[1.05, 0.05, 8.0], [0.65, 0.45, 4.0]]))
    assert loud < unlike  # though it is ten times as far


@settings(max_examples=30, deadline=None)
@given(present=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), seed=st.integers(0, 99))
def test_among_some_scores_the_angle_is_that_of_those_alone(present, seed):
    random, there = np.random.default_rng(seed), np.array(present)
    values = random.uniform(0.1, 1, size=(80, 6)).astype(np.float32)
    angle = fit_angle(torch.from_numpy(values), ["A", "B"] * 40)
    profiles, usual = angle.profiles.numpy()[:, there], angle.spread.numpy()[there]
    asked = random.uniform(0.1, 1, size=(5, 6)).astype(np.float32)
    unit = asked[:, there] / usual
    cosines = unit @ profiles.T / np.linalg.norm(unit, axis=1)[:, None] / np.linalg.norm(profiles, axis=1)
    asked[:, ~there] = 99  # whatever is read there
    some = angle.among(there)
    factors = 1.0 if some.factors is None else some.factors.numpy()
    np.testing.assert_allclose(
        some.of(torch.from_numpy(asked)), ((1 - cosines) * factors).min(axis=1), atol=1e-5
    )


@pytest.mark.parametrize("kept", [slice(0, 40), slice(20, 60), slice(0, 60, 4)])
def test_known_cells_are_as_near_with_some_of_the_scores(kept):
    random = np.random.default_rng(0)
    usual = np.concatenate([np.full(30, 9.0), np.full(30, 2.0)])  # the first half is much the steadier
    values = torch.from_numpy((usual + random.normal(size=(400, 60))).clip(0).astype(np.float32))
    angle, there = fit_angle(values[:300], ["A", "B", "C"] * 100), np.zeros(60, dtype=bool)
    there[kept] = True
    some = angle.among(there).of(values[300:])
    assert some.mean().item() == pytest.approx(angle.of(values[300:]).mean().item(), rel=0.25)
    assert angle.among(np.ones(60, dtype=bool)) is angle


def test_a_type_gives_at_most_so_many_cells_and_a_rare_one_all():
    types = ["A"] * 1000 + ["B"] * 3 + ["A"] * 1000
    rows = chosen_cells(types)
    assert (np.diff(rows) > 0).all()
    assert [sum(types[i] == name for i in rows) for name in "AB"] == [MOST_CELLS_A_TYPE, 3]
    assert rows[0] == 0
    assert rows[-1] == 2002
    assert len(chosen_cells([])) == 0
