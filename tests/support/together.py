"""Work that several processes do together, which those that are started can import."""

import torch

from canal.continual.fit import Hooks
from canal.continual.processes import Share
from canal.core.errors import TrainingError


def exchange(seed: int, hooks: Hooks, share: Share) -> None:
    """Add five parts up, merge what each has filled in, disagree, and tell what came of it."""
    parts = list(torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)))
    own = torch.zeros(share.size)
    own[share.rank] = share.rank + 1
    found: dict[str, object] = {
        "five": share.added([one.clone() for one in share.part(parts)], 7),
        "one": share.added([one.clone() for one in share.part(parts[:1])], 7),
        "merged": share.merged(own),
    }
    share.agree("a" * 64)
    try:
        share.agree(str(min(share.rank, 1)) * 64)
    except TrainingError as error:
        found["refusal"] = str(error)
    hooks.on_epoch({"epoch": share.rank + 1, **found})
