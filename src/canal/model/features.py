"""Random projections of FAVOR+ (Choromanski et al., ICLR 2021): orthogonal, drawn once, kept."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal_projection(n_features: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return random projections ``(n_features, dim)`` for `canal.model.favor`.

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
