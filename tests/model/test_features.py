import math

import pytest
import torch

from canal.model.features import linear_attention, orthogonal_projection, softmax_features
from tests.model.make import seeded


def exact_attention(q, k, v):
    """Softmax attention over positions, which stand last."""
    weights = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(q.shape[-2]), dim=-1)
    return v @ weights.transpose(-1, -2)


def draw(*shape, seed=0, scale=0.5):
    return torch.randn(*shape, generator=seeded(seed)) * scale


def test_projection_is_orthogonal_within_blocks():
    projection = orthogonal_projection(20, 8, seeded())
    assert projection.shape == (20, 8)
    for block in (projection[:8], projection[8:16], projection[16:]):
        products = block @ block.T
        off_diagonal = products - torch.diag(products.diagonal())
        assert off_diagonal.abs().max() < 1e-5


def test_norms_of_the_projection_are_chi_distributed():
    norms = orthogonal_projection(4000, 8, seeded()).norm(dim=1)
    expected = math.sqrt(2) * math.gamma(4.5) / math.gamma(4)
    assert norms.mean().item() == pytest.approx(expected, rel=0.01)
    assert norms.square().mean().item() == pytest.approx(8, rel=0.03)


def test_projection_depends_on_its_generator_alone():
    torch.manual_seed(1)
    first = orthogonal_projection(10, 8, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, orthogonal_projection(10, 8, seeded(5)))
    assert not torch.equal(first, orthogonal_projection(10, 8, seeded(6)))


def test_attention_by_features_comes_near_exact_attention():
    q, k, v = (draw(2, 3, 8, 12, seed=seed) for seed in (1, 2, 3))
    projection = orthogonal_projection(8192, 8, seeded())
    found = linear_attention(softmax_features(q, projection, True), softmax_features(k, projection, False), v)
    assert (found - exact_attention(q, k, v)).abs().max() < 0.04


def test_features_by_hand():
    x = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)  # one dimension, two positions
    projection = torch.tensor([[1.0], [-1.0]])
    keys = softmax_features(x, projection, per_position=False)[0, 0]
    # exponents +-1, +-2; the largest of all is 2; half squares 0.5 and 2
    expected = torch.tensor([[1 - 2 - 0.5, 2 - 2 - 2.0], [-1 - 2 - 0.5, -2 - 2 - 2.0]]).exp() + 1e-4
    assert torch.allclose(keys, expected)
    queries = softmax_features(x, projection, per_position=True)[0, 0]
    expected = torch.tensor([[1 - 1 - 0.5, 2 - 2 - 2.0], [-1 - 1 - 0.5, -2 - 2 - 2.0]]).exp() + 1e-4
    assert torch.allclose(queries, expected)


@pytest.mark.parametrize("per_position", [True, False])
def test_a_cell_does_not_change_its_neighbours_features(per_position):
    projection = orthogonal_projection(10, 8, seeded())
    x = draw(2, 2, 8, 5)
    louder = x.clone()
    louder[1] *= 20
    alone = softmax_features(x, projection, per_position)
    beside = softmax_features(louder, projection, per_position)
    assert torch.equal(alone[0], beside[0])


def test_features_of_large_inputs_are_finite_and_have_gradients():
    x = draw(1, 1, 8, 4, scale=40.0).requires_grad_()
    features = softmax_features(x, orthogonal_projection(10, 8, seeded()), per_position=False)
    features.sum().backward()
    assert torch.isfinite(features).all()
    assert torch.isfinite(x.grad).all()
