"""The yardstick: the published training loop, plain and readable, as docs/algorithm describes it.

The whole network and the whole teacher run for every batch of every epoch, in batches of 14, in fp32, with no
cache of anything. The mathematics is canal's, step by step (fixed projections, keys stabilised by cell and
head), and so are weights, cells and their order; what differs is that nothing is arranged for the hardware.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from canal.data.expression import tokenize
from canal.model.annotator import Annotator
from canal.model.storage import BackboneConfig

EPSILON = 1e-4

Weights = dict[str, Tensor]


def weights_of(annotator: Annotator) -> Weights:
    """Return a copy of an annotator's weights by name; those that a stage trains want a gradient."""
    trained = annotator.network.trained()
    return {
        name: value.detach().clone().requires_grad_(name in trained)
        for name, value in annotator.network.state_dict().items()
    }


def features(x: Tensor, projection: Tensor, is_query: bool) -> Tensor:
    """Return positive random features ``(cells, heads, positions, n_features)``."""
    normaliser = x.shape[-1] ** -0.25
    dash = torch.einsum("chnd,md->chnm", normaliser * x, projection)
    diagonal = ((x**2).sum(dim=-1, keepdim=True) / 2) * normaliser**2
    largest = dash.amax(dim=-1, keepdim=True) if is_query else dash.amax(dim=(-1, -2), keepdim=True)
    return torch.exp(dash - diagonal - largest.detach()) + EPSILON


def attention(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Return FAVOR+ attention ``(cells, positions, dim)``."""
    projection = weights[f"{name}.projection_matrix"]
    size = projection.shape[1]

    def heads(which: str) -> Tensor:
        values = functional.linear(x, weights[f"{name}.to_{which}.weight"])
        return values.reshape(*x.shape[:2], -1, size).transpose(1, 2)

    queries, keys = features(heads("q"), projection, True), features(heads("k"), projection, False)
    context = torch.einsum("chnm,chnd->chmd", keys, heads("v"))
    inverse = 1.0 / torch.einsum("chnm,chm->chn", queries, keys.sum(dim=-2))
    mixed = torch.einsum("chmd,chnm,chn->chnd", context, queries, inverse)
    joined = mixed.transpose(1, 2).reshape(*x.shape[:2], -1)
    return linear(joined, weights, f"{name}.to_out")


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Return the linear layer ``name`` of ``x``."""
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def block(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Return one pre-LayerNorm block."""

    def norm(values: Tensor, which: str) -> Tensor:
        scale, shift = weights[f"{name}.{which}.weight"], weights[f"{name}.{which}.bias"]
        return functional.layer_norm(values, scale.shape, scale, shift)

    x = x + attention(norm(x, "attention_norm"), weights, f"{name}.attention")
    hidden = linear(norm(x, "feed_forward_norm"), weights, f"{name}.feed_forward.w1")
    return x + linear(functional.gelu(hidden), weights, f"{name}.feed_forward.w2")


def answer(tokens: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return representation and logits of tokens ``(cells, n_genes)``: the whole network."""
    closed = functional.pad(tokens.long(), (0, 1))
    x = (
        functional.embedding(closed, weights["backbone.token_emb.weight"])
        + weights["backbone.pos_emb.weight"]
    )
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("backbone.blocks."))
    for index in range(depth):
        x = block(x, weights, f"backbone.blocks.{index}")
    scale = weights["backbone.norm.weight"]
    x = functional.layer_norm(x, scale.shape, scale, weights["backbone.norm.bias"])
    scores = linear(x, weights, "head.filter").squeeze(-1).relu()
    manifold = linear(scores, weights, "head.to_manifold").relu()
    representation = linear(manifold, weights, "head.to_representation").relu()
    return representation, linear(representation, weights, "head.prototypes")


def train_epoch(
    student: Weights,
    teacher: Weights,
    cells: tuple[np.ndarray, np.ndarray],
    optimizer: torch.optim.Optimizer,
    weight: float,
    batch_size: int = 14,
    smoothing: float = 0.1,
) -> float:
    """Show every cell once, in order, and return the mean loss.

    ``cells`` are expression ``(n_cells, n_genes)`` and targets ``(n_cells,)``; ``weight`` is that of the
    distillation.
    """
    expression, targets = torch.from_numpy(tokenize(cells[0])), torch.from_numpy(cells[1])
    total = 0.0
    for rows in torch.split(torch.arange(len(targets)), batch_size):
        with torch.no_grad():
            remembered, _ = answer(expression[rows], teacher)
        representation, logits = answer(expression[rows], student)
        loss = functional.cross_entropy(logits, targets[rows], label_smoothing=smoothing)
        loss = loss + weight * functional.mse_loss(representation, remembered)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(targets)


def optimizer_of(weights: Weights, learning_rate: float) -> torch.optim.Optimizer:
    """Return the published optimiser over what is trained: Adam with amsgrad."""
    trained = [value for value in weights.values() if value.requires_grad]
    return torch.optim.Adam(trained, lr=learning_rate, amsgrad=True)


@torch.inference_mode()
def predict(expression: np.ndarray, weights: Weights, batch_size: int = 1) -> np.ndarray:
    """Return logits ``(n_cells, n_types)``, ``batch_size`` cells at a time."""
    tokens = torch.from_numpy(tokenize(expression))
    return torch.cat([answer(part, weights)[1] for part in torch.split(tokens, batch_size)]).numpy()


def nominal_flops(config: BackboneConfig, genes: int) -> float:
    """Return the floating-point operations of one cell's way through the blocks, multiply and add as two."""
    inner = config.heads * config.head_dim
    a_position = (
        4 * config.dim * inner
        + 2 * inner * config.n_features
        + 2 * inner * config.n_features
        + 2 * config.dim * config.dim * config.ff_mult
    )
    return math.prod((2.0, genes + 1, a_position, config.depth))
