"""Which genes speak for a type: the gradient of its logit times what expression adds to the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.data.tokens import tokenize
from canal.model.lanes import in_lanes

if TYPE_CHECKING:
    from canal.model.annotator import Annotator

_CELLS_AT_A_TIME = 8


def attributions(annotator: Annotator, expression: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return how much each gene of each cell speaks for a type of that cell, float32 ``(n_cells, n_genes)``.

    Gradient times input: the input of a gene is the embedding of its level, and "not expressed" is its zero,
    so a gene counts with (embedding of its level - embedding of level 0) times the gradient there. A gene at
    level 0 has 0. What is differentiated is the type's logit less the mean of all others: a gene that speaks
    for every type speaks for none.

    Parameters
    ----------
    annotator
        The model.
    expression
        float32 log2(1 + counts per 10,000), ``(n_cells, n_genes)``.
    types
        For each cell the position of a type in the model's labels, ``(n_cells,)``.
    """
    pieces = [
        (expression[start : start + _CELLS_AT_A_TIME], types[start : start + _CELLS_AT_A_TIME])
        for start in range(0, len(expression), _CELLS_AT_A_TIME)
    ]

    def piece(one: tuple[np.ndarray, np.ndarray]) -> Tensor:
        return _attributions(annotator, *one)

    parts = in_lanes(piece, pieces)
    empty = torch.zeros((0, len(annotator.genes)))
    result: np.ndarray = torch.cat([empty, *parts]).numpy()
    return result


@torch.enable_grad()
def _attributions(annotator: Annotator, expression: np.ndarray, types: np.ndarray) -> Tensor:
    backbone, head = annotator.network.backbone, annotator.network.head
    device = head.filter.weight.device
    tokens = functional.pad(torch.from_numpy(tokenize(expression)).long(), (0, 1)).to(device)
    level = backbone.token_emb(tokens).detach()
    place = (level + backbone.pos_emb.weight.detach()).requires_grad_(True)
    hidden = place
    for block in backbone.blocks:
        hidden = block(hidden)
    logits = head(backbone.norm(hidden)).logits
    chosen = functional.one_hot(torch.from_numpy(types).to(device), logits.shape[1]).to(logits)
    others = (1.0 - chosen) / max(logits.shape[1] - 1, 1)
    (slope,) = torch.autograd.grad((logits * (chosen - others)).sum(), place)
    added = level - backbone.token_emb.weight[0].detach()
    spoken: Tensor = (slope * added).sum(-1)[:, :-1].float().cpu()
    return spoken
