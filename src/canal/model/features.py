"""Positive orthogonal random features of the softmax kernel: FAVOR+ (Choromanski et al., ICLR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_EPSILON = 1e-4
"""Added to each feature, so that no position's weights vanish; as in scBERT's implementation."""


def orthogonal_projection(n_features: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return random projections ``(n_features, dim)`` for `softmax_features`.

    Rows are orthogonal within blocks of ``dim``; their norms are those of Gaussian vectors, drawn apart
    (chi-distributed), so each row alone is distributed as a Gaussian vector (section 2.4 of the paper).
    """
    blocks = []
    for start in range(0, n_features, dim):
        gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(gaussian).Q.T[: n_features - start])
    norms = torch.randn(n_features, dim, generator=generator, dtype=torch.float64).norm(dim=1)
    return (torch.cat(blocks) * norms[:, None]).float()


def softmax_features(x: Tensor, projection: Tensor, per_position: bool) -> Tensor:
    """Return non-negative features ``(cells, heads, positions, n_features)`` of queries or keys.

    The product of a query's and a key's features estimates exp(q . k / sqrt(dim)), up to factors that
    attention's normalisation removes (lemma 1 of the paper).

    Parameters
    ----------
    x
        Queries or keys ``(cells, heads, positions, dim)``.
    projection
        ``(n_features, dim)``, from `orthogonal_projection`.
    per_position
        Subtract each position's maximum before exp (queries), or one maximum of the cell and head (keys, whose
        features have to stay comparable between positions). Never one over the whole batch, as the reference
        does: a cell's answer would depend on its neighbours.
    """
    scale = x.shape[-1] ** -0.25
    exponent = x @ (projection.T * scale)
    largest = exponent.detach().amax(-1, keepdim=True)
    if not per_position:
        largest = largest.amax(-2, keepdim=True)
    half_norm = x.square().sum(-1, keepdim=True) * (scale**2 / 2)
    return (exponent - (half_norm + largest)).exp() + KERNEL_EPSILON


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax attention by features, in time linear in positions (equation 4 of the paper).

    ``queries`` and ``keys`` are features ``(cells, heads, positions, n_features)``, ``values`` and the result
    ``(cells, heads, positions, dim)``.
    """
    context = keys.transpose(-1, -2) @ values
    weight = queries @ keys.sum(dim=-2).unsqueeze(-1)
    return (queries @ context) / weight
