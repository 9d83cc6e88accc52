"""How unlike the pattern of every learned type a cell's gene scores are, however strong they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True, eq=False)
class TypeAngle:
    """Centres of the learned types among gene scores, each score in units of its usual spread.

    Distance grows where all of a cell's scores are high or low together, as a deeper or shallower library
    makes them; the angle to a centre does not, and asks for the pattern alone.

    Attributes
    ----------
    profiles : Tensor
        Float32 ``(n_types, n_genes + 1)``: centres over spread.
    spread : Tensor
        Float32 ``(n_genes + 1,)``, above 0: how far scores stray within a type.
    factors : Tensor or None
        Float32 ``(n_types,)``: what angles to each profile are multiplied by; 1 without.
    """

    profiles: Tensor
    spread: Tensor
    factors: Tensor | None = None

    def of(self, scores: Tensor) -> Tensor:
        """Return 1 - the cosine to the nearest profile, float32 ``(n_cells,)`` on the CPU, from 0 up.

        Gene scores ``(n_cells, n_genes + 1)``, none below 0, may lie on any device. A cell without any score
        is at a right angle to all. Float32 whatever the precision of the network.
        """
        with torch.autocast("cpu", enabled=False):
            apart = 1 - normalize(scores.float().cpu() / self.spread) @ normalize(self.profiles).T
            return (apart if self.factors is None else apart * self.factors).amin(dim=1).clamp(min=0)

    def among(self, present: np.ndarray) -> TypeAngle:
        """Return the angle among these gene scores alone, as if the others had never been scored.

        Among some scores a type's cells usually lie wider of its profile, or less wide, than among all: by
        that the angle is multiplied, so that known cells stay as near as they were. A cell strays from a
        profile p by about 1 in each of n scores, which makes the cosine |p| / sqrt(|p|^2 + n).

        Parameters
        ----------
        present
            Which gene scores count, bool ``(n_genes + 1,)``, at least one; with all it is this angle.
        """
        if present.all():
            return self
        there = torch.from_numpy(present)
        profiles = self.profiles * there
        factors = _usual(self.profiles, len(present)) / _usual(profiles, int(present.sum()))
        return TypeAngle(profiles, torch.where(there, self.spread, torch.inf), factors)


def _usual(profiles: Tensor, n: int) -> Tensor:
    lengths = profiles.square().sum(dim=1)
    return 1 - (lengths / (lengths + n)).sqrt()
