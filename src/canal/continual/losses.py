"""What a stage minimises: cross-entropy, and the distance from what the teacher saw in the same cells."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from canal.model.head import Answer


class Losses(NamedTuple):
    """Scalars of a batch: ``total`` is what is minimised, ``distillation`` is not yet weighted."""

    total: Tensor
    cross_entropy: Tensor
    distillation: Tensor


def distillation_weight(strength: float, n_old: int, n_types: int) -> float:
    """Return lambda C_{t-1} / C_t (bbae047): the more types are new, the less the teacher binds.

    ``n_old`` is 0 where there is no teacher.
    """
    return strength * n_old / n_types


def stage_losses(
    answer: Answer, targets: Tensor, remembered: Tensor | None, weight: float, smoothing: float
) -> Losses:
    """Return cross-entropy + weight * mean((h_t - h_{t-1})^2), both over every cell of the batch.

    Parameters
    ----------
    answer
        The student's answer for a batch.
    targets
        int64 ``(cells,)``, positions in the labels.
    remembered
        The teacher's representations h_{t-1} ``(cells, 64)``, or None where there is no teacher.
    weight
        From `distillation_weight`.
    smoothing
        Share of each target that is spread evenly over all types; published: 0.1.
    """
    cross_entropy = functional.cross_entropy(answer.logits, targets, label_smoothing=smoothing)
    if remembered is None:
        return Losses(cross_entropy, cross_entropy, cross_entropy.new_zeros(()))
    distillation = functional.mse_loss(answer.representation, remembered)
    return Losses(cross_entropy + weight * distillation, cross_entropy, distillation)
