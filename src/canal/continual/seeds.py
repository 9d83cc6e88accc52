"""Random generators by purpose: each draw has its own, so no draw shifts another."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its three arguments.

    ``number`` counts uses of one purpose, such as epochs: a resumed training draws what it would have drawn.
    """
    entropy = [seed, number, *purpose.encode()]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
