"""Gradients of a batch from groups of its cells, which lanes work on side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from canal.model.lanes import in_lanes
from canal.model.performer import Performer

Group = TypeVar("Group")
_LEAST_GROUPS = 2


def groups_of(rows: Tensor, performer: Performer) -> tuple[Tensor, ...]:
    """Return ``rows`` of a batch in groups that go through ``performer`` at a time, at least two groups.

    How a batch is divided depends on its size and the network's shape, never on the number of lanes or on a
    measurement: sums of gradients, and so the weights, are the same bits on one core and on many.
    """
    size = performer.cells_at_a_time
    if not performer.token_emb.weight.is_cuda:
        size = min(size, -(-len(rows) // _LEAST_GROUPS))
    return torch.split(rows, max(1, size))


def sum_gradients(
    parameters: Sequence[nn.Parameter], groups: Sequence[Group], losses: Callable[[Group], Tensor]
) -> Tensor:
    """Set each parameter's gradient to that of the batch's loss, and return the batch's losses.

    Parameters
    ----------
    parameters
        What is fitted. All must take part in the loss.
    groups
        The batch, divided.
    losses
        A group's share of the batch's losses, a vector whose first entry is what is minimised.

    Returns
    -------
    Tensor
        The sum of ``losses`` over the groups, detached.
    """

    def one(group: Group) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            values = losses(group)
            return values.detach(), torch.autograd.grad(values[0], parameters)

    values, gradients = zip(*in_lanes(one, groups), strict=True)
    # In lanes as well: an operation of several threads would leave one of them spinning on a lane's core.
    added = in_lanes(_added, zip(*gradients, strict=True))
    for parameter, gradient in zip(parameters, added, strict=True):
        parameter.grad = gradient
    return _added(values)


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum in the order of the groups; the first part's memory is used for it."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
