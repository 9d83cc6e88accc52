"""The first block by looking up: its input at a position is one of seven vectors, whatever the cell.

A position is a gene at one of six levels, or masked, so LayerNorm, queries, keys, values and features of the
first block are computed once for each gene and level, and a cell picks its rows. What depends on the whole
cell is left: the maximum that stabilises its keys, the two products of linear attention, and all behind them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from canal.model.favor import KERNEL_EPSILON, heads_at_a_time, raw_features, scaled_projection, with_ones
from canal.model.lanes import in_lanes

if TYPE_CHECKING:
    from canal.model.performer import Block, Performer


@dataclass(frozen=True, eq=False)
class FirstBlock:
    """What the first block makes of every gene at every level; row ``gene * n_tokens + token``.

    Attributes
    ----------
    block : Block
    n_tokens : int
    hidden : Tensor
        The embedding itself, ``(rows, dim)``.
    queries, keys : Tensor
        Features without epsilon, each stabilised by its own row, ``(heads, rows, n_features)``.
    largest : Tensor
        The exponent that stabilised a row of keys, ``(heads, rows)``.
    values : Tensor
        ``(heads, rows, head_dim + 1)``, with a column of ones.
    """

    block: Block
    n_tokens: int
    hidden: Tensor
    queries: Tensor
    keys: Tensor
    largest: Tensor
    values: Tensor

    @classmethod
    def of(cls, performer: Performer) -> FirstBlock:
        """Return the tables of a network as its weights are now."""
        block = cast("Block", performer.blocks[0])
        hidden = (performer.pos_emb.weight[:, None] + performer.token_emb.weight).flatten(0, 1)
        attention = block.attention
        qkv = attention.project(block.attention_norm(hidden))
        q, k, v = qkv.view(len(hidden), 3, attention.heads, -1).permute(1, 2, 0, 3)
        projection = scaled_projection(attention.projection_matrix).forward
        queries, _ = raw_features(q, projection)
        keys, largest = raw_features(k, projection)
        return cls(block, performer.config.n_tokens, hidden, queries, keys, largest, with_ones(v))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the block's output ``(cells, positions, dim)`` for tokens ``(cells, positions)``, closed."""
        rows = torch.arange(tokens.shape[1], device=tokens.device) * self.n_tokens + tokens
        hidden = functional.embedding(rows, self.hidden)
        mixed = hidden.new_empty((*rows.shape, len(self.values) * (self.values.shape[2] - 1)))
        for cell, own in enumerate(rows):
            mixed[cell] = self._attend(own)
        return self.block.rest(hidden + self.block.attention.to_out(mixed))

    def _attend(self, rows: Tensor) -> Tensor:
        """Return attention ``(positions, heads * head_dim)`` of one cell, from its rows."""
        heads, _, features = self.queries.shape
        size = self.values.shape[2] - 1
        mixed = self.values.new_empty((len(rows), heads, size))
        step = heads_at_a_time(len(rows), heads, features)
        for first in range(0, heads, step):
            part = slice(first, first + step)
            values = self.values[part].index_select(1, rows)
            largest = self.largest[part].index_select(1, rows)
            scale = (largest - largest.amax(1, keepdim=True)).exp2_().unsqueeze(2)
            context = self.keys[part].index_select(1, rows).mT @ (values * scale)
            context += KERNEL_EPSILON * values.sum(1, keepdim=True)
            weighted = self.queries[part].index_select(1, rows) @ context
            weighted += KERNEL_EPSILON * context.sum(1, keepdim=True)
            mixed[:, part] = (weighted[..., :size] / weighted[..., size:]).transpose(0, 1)
        return mixed.flatten(1)


_known: WeakKeyDictionary[Performer, tuple[object, FirstBlock]] = WeakKeyDictionary()
_lock = threading.Lock()


def first_block(performer: Performer) -> FirstBlock:
    """Return the tables of ``performer``, made anew where a weight has changed since the last call."""
    used = (performer.token_emb, performer.pos_emb, performer.blocks[0])
    weights = ((one.data_ptr(), one._version) for part in used for one in part.state_dict().values())
    state = (torch.is_autocast_enabled(performer.token_emb.weight.device.type), *weights)
    with _lock:
        found = _known.get(performer)
        if found is None or found[0] != state:
            # In a lane, so that the tables' bits do not depend on the number of threads.
            found = (state, in_lanes(FirstBlock.of, [performer])[0])
            _known[performer] = found
    return found[1]
