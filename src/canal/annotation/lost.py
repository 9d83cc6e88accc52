"""How much of what a model looks at for each type is lost with genes that a query does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from canal.model.load import CellAnnotator

_TOLD = 5


def lost_weight(annotator: CellAnnotator, missing: Sequence[str]) -> dict[str, float]:
    """Return for each type the share of its weight that lies on ``missing`` genes, 0...1, largest first.

    Weights are those of `canal.model.load.CellAnnotator.gene_weights`, the same for every query.
    """
    weights = annotator.gene_weights()
    gone = np.isin(np.array(annotator.genes, dtype=object), list(missing))
    shares = weights[:, gone].sum(axis=1) / np.maximum(weights.sum(axis=1), np.finfo(float).tiny)
    found = {label: round(float(share), 4) for label, share in zip(annotator.labels, shares, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def told(lost: Mapping[str, float]) -> str:
    """Return the types that lose most, for a warning."""
    most = ", ".join(f"{label} {share:.0%}" for label, share in list(lost.items())[:_TOLD])
    return f"of what the model looks at, these types lose most with the missing genes: {most}"
