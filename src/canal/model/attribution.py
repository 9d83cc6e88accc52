"""Attribution of a cell type to genes: the gradient of its logit times what expression adds to the input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.data.expression import tokenize
from canal.memory.answer import ExactAnnotator
from canal.model.annotator import Annotator
from canal.model.combined import CombinedAnnotator, FastAnnotator
from canal.model.compute import in_threads
from canal.model.load import CellAnnotator

_CELLS_AT_A_TIME = 8


def attributions(annotator: CellAnnotator, expression: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return the attribution of a type of each cell to its genes, float32 ``(n_cells, n_genes)``.

    For a network from `network_attributions`, for sums from `canal.memory.answer.ExactAnnotator`; for both
    the sum of these, each divided by its temperature and times its weight.

    Parameters
    ----------
    annotator
        The model.
    expression
        float32 log2(1 + counts per 10,000), ``(n_cells, n_genes)``.
    types
        For each cell the position of a type in the model's labels, ``(n_cells,)``.
    """
    if isinstance(annotator, Annotator):
        return network_attributions(annotator, expression, types)
    if isinstance(annotator, ExactAnnotator):
        return annotator.attributions(expression, types)
    if isinstance(annotator, FastAnnotator):
        return attributions(annotator.whole, expression, types)
    assert isinstance(annotator, CombinedAnnotator)  # noqa: S101 - there is no other kind
    how = annotator.combination
    network = network_attributions(annotator.network, expression, types) / how.network_temperature
    exact = annotator.exact.attributions(expression, types) / annotator.exact.temperature
    result: np.ndarray = (how.weight * network + (1 - how.weight) * exact).astype(np.float32)
    return result


def network_attributions(annotator: Annotator, expression: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return the attribution of types to genes by a network, float32 ``(n_cells, n_genes)``.

    Gradient times input: the input of a gene is the embedding of its level, and "not expressed" is its zero,
    so a gene counts with (embedding of its level - embedding of level 0) times the gradient there. A gene at
    level 0 has 0. The type's logit less the mean of all others is differentiated: a gene that favours every
    type favours none. Parameters are those of `attributions`.
    """
    pieces = [
        (expression[start : start + _CELLS_AT_A_TIME], types[start : start + _CELLS_AT_A_TIME])
        for start in range(0, len(expression), _CELLS_AT_A_TIME)
    ]
    backbone, head = annotator.network.backbone, annotator.network.head
    device = head.filter.weight.device

    @torch.enable_grad()
    def of_piece(piece: tuple[np.ndarray, np.ndarray]) -> Tensor:
        expressed, targets = piece
        tokens = functional.pad(torch.from_numpy(tokenize(expressed)).long(), (0, 1)).to(device)
        level = backbone.token_emb(tokens).detach()
        inputs = (level + backbone.pos_emb.weight.detach()).requires_grad_(True)
        hidden = inputs
        for block in backbone.blocks:
            hidden = block(hidden)
        logits = head(backbone.norm(hidden)).logits
        chosen = functional.one_hot(torch.from_numpy(targets).to(device), logits.shape[1]).to(logits)
        others = (1.0 - chosen) / max(logits.shape[1] - 1, 1)
        (slope,) = torch.autograd.grad((logits * (chosen - others)).sum(), inputs)
        added = level - backbone.token_emb.weight[0].detach()
        attributed: Tensor = (slope * added).sum(-1)[:, :-1].float().cpu()
        return attributed

    parts = in_threads(of_piece, pieces)
    empty = torch.zeros((0, len(annotator.genes)))
    result: np.ndarray = torch.cat([empty, *parts]).numpy()
    return result
