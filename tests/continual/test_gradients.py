import pytest
import torch
from torch.nn import functional

from canal.continual.fit import groups_of, sum_gradients
from canal.model.backbone import empty_performer
from canal.model.storage import PRESETS
from tests.support.models import make_backbone, seeded

PERFORMER = make_backbone().network


@pytest.mark.parametrize("size", [1, 2, 5, 14, 200])
def test_groups_are_the_batch_in_order(size):
    groups = groups_of(torch.arange(size), PERFORMER)
    assert torch.cat(groups).tolist() == list(range(size))
    assert len(groups) >= min(2, size)
    assert max(map(len, groups)) <= 64


def test_cells_of_a_large_network_go_alone():
    large = empty_performer(PRESETS["scbert"].backbone, 1000)
    assert [len(group) for group in groups_of(torch.arange(14), large)] == [1] * 14


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_and_losses_are_the_whole_batchs(threads):
    layer, x, y = torch.nn.Linear(3, 2), torch.randn(9, 3, generator=seeded()), torch.arange(9) % 2
    expected = functional.cross_entropy(layer(x), y)
    wanted = torch.autograd.grad(expected, list(layer.parameters()))

    def losses(rows):
        loss = functional.cross_entropy(layer(x[rows]), y[rows]) * (len(rows) / 9)
        return torch.stack([loss, 2 * loss])

    torch.set_num_threads(threads)
    try:
        found = sum_gradients(list(layer.parameters()), torch.split(torch.arange(9), 2), losses)
    finally:
        torch.set_num_threads(1)
    assert found.tolist() == pytest.approx([expected.item(), 2 * expected.item()])
    for parameter, gradient in zip(layer.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)
