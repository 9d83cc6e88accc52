"""What a learned network makes of the cells of its training, whose prefix that training has kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from canal.continual.cache_space import CacheSpace
from canal.continual.cells import LabelledCells
from canal.continual.feature_cache import PrefixFeatures
from canal.continual.fit import Hooks
from canal.model.annotator import Annotator
from canal.model.lanes import in_lanes

Scored = tuple[Tensor, Sequence[str]]
"""Gene scores ``(n_cells, n_genes + 1)`` of cells, and the type of each."""

_EXACT = ("cpu", "float32", "float32")
"""Device, products and features of a training that has kept what the network computes when it is asked."""


def gene_scores(annotator: Annotator, cells: LabelledCells, hooks: Hooks | None = None) -> Tensor:
    """Return what the head's filter makes of each position of cells, ``(n_cells, n_genes + 1)``.

    Where ``hooks`` keep frozen features as they are, those are read (and kept, of cells that are new), and
    only the two blocks behind them are computed; else the network is asked.
    """
    if hooks is None or hooks.cache_dir is None or (hooks.device, hooks.dtype, hooks.cache.dtype) != _EXACT:
        return annotator.gene_scores(cells.expression)
    network, space = annotator.network, CacheSpace(hooks.cache_dir, hooks.cache.max_bytes)
    features = PrefixFeatures(network.backbone, cells.tokens(), space)

    @torch.inference_mode()
    def some(rows: Tensor) -> Tensor:
        return network.head.gene_scores(network.backbone.encode_rest(features.rows(rows.numpy())))

    groups = torch.split(torch.arange(len(cells)), network.backbone.cells_at_a_time)
    return torch.cat(in_lanes(some, groups))
