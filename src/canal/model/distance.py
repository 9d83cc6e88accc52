"""How far a cell is from every type that was learned: Mahalanobis distance of its gene scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TypeDistance:
    """Centres of the learned types among gene scores, and what makes their common spread a unit ball.

    Attributes
    ----------
    centres : Tensor
        Float32 ``(n_types, n_genes + 1)``, already whitened.
    whitening : Tensor
        Float32 ``(n_genes + 1, n_genes + 1)``; gene scores are multiplied by it from the right. Of `among`,
        it has a column for each position that is there, and zeros in the rows of all others.
    """

    centres: Tensor
    whitening: Tensor

    def of(self, scores: Tensor) -> Tensor:
        """Return each cell's squared distance to the nearest centre, float32 ``(n_cells,)`` on the CPU.

        Gene scores ``(n_cells, n_genes + 1)`` may lie on any device. A cell's distance is its own, and in
        float32 whatever the precision of the network.
        """
        with torch.autocast("cpu", enabled=False):
            placed = scores.float().cpu() @ self.whitening
            # Differences, not a matrix product: that loses the digits of what is near.
            apart = torch.cdist(placed, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
            return apart.amin(dim=1).square()

    def among(self, present: np.ndarray) -> TypeDistance:
        """Return the distance among these positions alone, as if the others had never been scored.

        The others are marginalised: centres and the covariance are those of the positions that are there.
        Squared distances are scaled by n_genes + 1 over their number, which is how much shorter they are
        where strays are as the covariance has them: scores of known cells stay as high as they were.

        Parameters
        ----------
        present
            Which gene scores count, bool ``(n_genes + 1,)``, at least one; with all it is this distance.
        """
        return self if present.all() else _among(self, present.tobytes())


@lru_cache(maxsize=1)  # a service's client sends the same genes again and again
def _among(distance: TypeDistance, which: bytes) -> TypeDistance:
    present = np.frombuffer(which, dtype=bool)
    kept, gone = (torch.from_numpy(np.flatnonzero(those)) for those in (present, ~present))
    whitening = distance.whitening.double()
    inverse = whitening @ whitening.T  # of the covariance
    linked = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, kept])
    narrow = torch.linalg.cholesky(inverse[kept][:, kept] - inverse[kept][:, gone] @ linked)
    narrow *= math.sqrt(len(present) / len(kept))
    centres = torch.linalg.solve(whitening.T, distance.centres.double().T).T
    wide = torch.zeros(len(present), len(kept), dtype=torch.float64)
    wide[kept] = narrow
    return TypeDistance((centres[:, kept] @ narrow).float(), wide.float())
