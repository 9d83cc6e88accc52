import math

import pytest
import torch

from canal.continual.trainer import distillation_weight, stage_losses
from canal.model.head import Answer

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
SEEN = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
REMEMBERED = torch.tensor([[0.0, 0.0], [0.5, 1.5]])
TARGETS = torch.tensor([0, 1])


def answer():
    return Answer(torch.zeros(2, 3), SEEN, LOGITS)


def test_cross_entropy_with_smoothing_by_hand():
    # first cell: log p = -log(1 + e^-2) and that minus 2; targets 0.95 and 0.05. Second cell: log 2.
    first = math.log(1 + math.exp(-2))
    expected = (0.95 * first + 0.05 * (first + 2) + math.log(2)) / 2
    losses = stage_losses(answer(), TARGETS, None, 0.0, smoothing=0.1)
    assert losses.cross_entropy.item() == pytest.approx(expected, rel=1e-6)
    assert losses.total.item() == losses.cross_entropy.item()
    assert losses.distillation.item() == 0.0


def test_distillation_by_hand():
    # squares 1, 0, 0, 1 over two cells of two dimensions: mean 0.5
    losses = stage_losses(answer(), TARGETS, REMEMBERED, 0.08, smoothing=0.0)
    assert losses.distillation.item() == pytest.approx(0.5)
    cross_entropy = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert losses.total.item() == pytest.approx(cross_entropy + 0.08 * 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("strength", "n_old", "n_types", "expected"), [(0.1, 8, 10, 0.08), (0.1, 0, 8, 0.0), (1.0, 4, 4, 1.0)]
)
def test_the_teacher_binds_by_the_share_of_old_types(strength, n_old, n_types, expected):
    assert distillation_weight(strength, n_old, n_types) == pytest.approx(expected)


def test_no_gradient_reaches_the_teacher():
    remembered = REMEMBERED.clone()
    seen = SEEN.clone().requires_grad_()
    stage_losses(Answer(torch.zeros(2, 3), seen, LOGITS), TARGETS, remembered, 1.0, 0.1).total.backward()
    assert seen.grad.tolist() == [[0.5, 0.0], [0.0, -0.5]]
    assert remembered.grad is None
