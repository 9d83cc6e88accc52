import numpy as np
import pytest
import torch

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
