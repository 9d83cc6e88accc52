import math

import pytest
import torch

from canal.model.backbone import orthogonal_projection
from tests.support.models import seeded


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
