"""The classifying head: one filter over all positions, two layers, one prototype a cell type."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

MANIFOLD = 128
REPRESENTATION = 64
_FILTER_SPREAD = 0.5
_PROTOTYPE_SPREAD = 0.02
_SMALLEST = 1e-6


class Answer(NamedTuple):
    """What the head makes of cells.

    ``manifold`` ``(cells, 128)``, ``representation`` h ``(cells, 64)``, ``logits`` ``(cells, n_types)``.
    """

    manifold: Tensor
    representation: Tensor
    logits: Tensor


class Head(nn.Module):
    """Filter d -> 1 shared by all positions, ReLU, Linear 128, ReLU, Linear 64, ReLU, prototypes.

    Row c of ``prototypes.weight`` is the prototype of type c. Made without values: see `new_head`.
    """

    def __init__(self, dim: int, positions: int, n_types: int) -> None:
        super().__init__()
        self.filter = nn.Linear(dim, 1)
        self.to_manifold = nn.Linear(positions, MANIFOLD)
        self.to_representation = nn.Linear(MANIFOLD, REPRESENTATION)
        self.prototypes = nn.Linear(REPRESENTATION, n_types)

    def gene_scores(self, hidden: Tensor) -> Tensor:
        """Return the filter's output after its ReLU, ``(cells, positions)``, for hidden states."""
        scores: Tensor = self.filter(hidden).squeeze(-1).relu()
        return scores

    def manifold(self, hidden: Tensor) -> Tensor:
        """Return ``(cells, 128)`` for hidden states ``(cells, positions, dim)``."""
        manifold: Tensor = self.to_manifold(self.gene_scores(hidden)).relu()
        return manifold

    def from_scores(self, scores: Tensor) -> Answer:
        """Return all that follows from gene scores ``(cells, positions)``."""
        return self.answer(self.to_manifold(scores).relu())

    def answer(self, manifold: Tensor) -> Answer:
        """Return all that follows from a manifold ``(cells, 128)``."""
        representation = self.to_representation(manifold).relu()
        return Answer(manifold, representation, self.prototypes(representation))

    def forward(self, hidden: Tensor) -> Answer:
        """Return the answer for hidden states ``(cells, positions, dim)``."""
        return self.from_scores(self.gene_scores(hidden))


def empty_head(dim: int, positions: int, n_types: int) -> Head:
    """Return a head of shapes only (device "meta"), to load values into with ``assign=True``."""
    with torch.device("meta"):
        return Head(dim, positions, n_types)


@torch.no_grad()
def new_head(hidden: Tensor, n_types: int, generator: torch.Generator) -> Head:
    """Return a head whose every layer is alive on ``hidden`` ``(cells, positions, dim)``.

    A randomly drawn filter may lie below zero at every gene; its ReLU then passes nothing, and neither values
    nor gradients come through. Or it may see the differences between genes alone, which say nothing about
    types. So the filter looks along the direction in which genes vary most over cells, to the side of its
    longer tail, where the rarer, expressed levels lie; and each layer is scaled or shifted by what it makes
    of these cells: the filter to mean 0 and a standard deviation over cells of 0.5, each unit of the two
    layers to mean 0. (Scaling these units to one spread too makes much of noise: measured, it costs 2 to 3
    points of accuracy on the embedded first stage.)
    """
    head = empty_head(hidden.shape[2], hidden.shape[1], n_types).to_empty(device="cpu")
    head.filter.weight.copy_(_widest(hidden))
    head.filter.bias.zero_()
    for layer in (head.to_manifold, head.to_representation):
        layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
        layer.bias.zero_()
    head.prototypes.weight.normal_(0.0, _PROTOTYPE_SPREAD, generator=generator)
    head.prototypes.bias.zero_()

    filtered = head.filter(hidden).squeeze(-1)
    # The spread of a gene over cells, not of genes within a cell: the latter says nothing about types.
    spread = filtered.std(dim=0, correction=0).mean()
    factor = _FILTER_SPREAD / spread if spread > _SMALLEST else torch.ones(())
    head.filter.weight *= factor
    head.filter.bias.copy_(-(filtered * factor).mean().reshape(1))
    centre(head.to_manifold, head.gene_scores(hidden))
    centre(head.to_representation, head.manifold(hidden))
    return head


@torch.no_grad()
def grow(head: Head, n_new: int, generator: torch.Generator) -> Head:
    """Return a copy of ``head`` with ``n_new`` more types; all old values are kept bit for bit."""
    old = head.prototypes
    grown = empty_head(head.filter.in_features, head.to_manifold.in_features, old.out_features + n_new)
    rows = torch.empty(n_new, REPRESENTATION).normal_(0.0, _PROTOTYPE_SPREAD, generator=generator)
    values = {name: value.detach().clone() for name, value in head.state_dict().items()}
    values["prototypes.weight"] = torch.cat([old.weight, rows.to(old.weight)])
    values["prototypes.bias"] = torch.cat([old.bias, old.bias.new_zeros(n_new)])
    grown.load_state_dict(values, assign=True)
    return grown.requires_grad_(True)


@torch.no_grad()
def centre(layer: nn.Linear, inputs: Tensor) -> None:
    """Shift each unit to mean 0 over ``inputs`` ``(cells, in)``: its ReLU then stops some and passes some."""
    layer.bias.zero_()
    layer.bias.copy_(-layer(inputs).mean(dim=0))


def _widest(hidden: Tensor) -> Tensor:
    """Return the unit vector ``(dim,)`` along which positions vary most over cells, longer tail ahead."""
    centred = (hidden - hidden.mean(dim=0)).flatten(0, 1)
    direction: Tensor = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, -1].float()
    along = (centred @ direction).double()
    return direction if along.pow(3).sum() >= 0 else -direction
