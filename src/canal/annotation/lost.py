"""How much of what a model looks at for each type is lost with genes that a query does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from canal.model.annotator import Annotator

_TOLD = 5


def lost_weight(annotator: Annotator, missing: Sequence[str]) -> dict[str, float]:
    """Return for each type the share of its weight that lies on ``missing`` genes, 0...1, largest first.

    A gene's weight for a type is the sum over all ways through the head of the product of absolute weights:
    an upper bound of its influence, the same for every query.
    """
    head = annotator.network.head
    layers = (head.prototypes, head.to_representation, head.to_manifold)
    outer, inner, first = (layer.weight.detach().abs().double().cpu().numpy() for layer in layers)
    weights = (outer @ inner @ first)[:, : len(annotator.genes)]  # the last position closes the sequence
    gone = np.isin(np.array(annotator.genes, dtype=object), list(missing))
    shares = weights[:, gone].sum(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
    found = {label: round(float(share), 4) for label, share in zip(annotator.labels, shares, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def told(lost: Mapping[str, float]) -> str:
    """Return the types that lose most, for a warning."""
    most = ", ".join(f"{label} {share:.0%}" for label, share in list(lost.items())[:_TOLD])
    return f"of what the model looks at, these types lose most with the missing genes: {most}"
