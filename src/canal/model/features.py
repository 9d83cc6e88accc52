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
    projection: Tensor = (torch.cat(blocks) * norms[:, None]).float()
    return projection


def softmax_features(x: Tensor, projection: Tensor, per_position: bool) -> Tensor:
    """Return positive features ``(cells, heads, n_features, positions)`` of queries or keys.

    The product of a query's and a key's features estimates exp(q . k / sqrt(dim)), up to factors that
    attention's normalisation removes (lemma 1 of the paper).

    Parameters
    ----------
    x
        Queries or keys ``(cells, heads, dim, positions)``.
    projection
        ``(n_features, dim)``, from `orthogonal_projection`.
    per_position
        Subtract each position's maximum before exp (queries), or one maximum of the cell and head (keys,
        whose features have to stay comparable between positions). Never one over the whole batch, as the
        reference does: a cell's answer would depend on its neighbours.
    """
    scale = x.shape[-2] ** -0.25
    exponent = (projection * scale) @ x
    largest = exponent.detach().amax(-2 if per_position else (-2, -1), keepdim=True)
    half_norm = x.square().sum(-2, keepdim=True) * (scale**2 / 2)
    features: Tensor = exponent.sub_(half_norm + largest).exp_() + KERNEL_EPSILON
    return features


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax attention by features, in time linear in positions (equation 4 of the paper).

    ``queries`` and ``keys`` are features ``(cells, heads, n_features, positions)``, ``values`` and the result
    ``(cells, heads, dim, positions)``.
    """
    context = values @ keys.transpose(-1, -2)
    weight = keys.sum(dim=-1).unsqueeze(-2) @ queries
    return (context @ queries) / weight
