"""The backbone: scBERT's Performer in plain torch, and the vocabulary of genes that it has embeddings of.

After Yang et al. 2022 and Choromanski et al. 2021. Without gradients, its first block is a lookup table: the
input at a position is one of seven vectors, whatever the cell, since a position is a gene at one of six
levels, or masked. LayerNorm, queries, keys, values and features of the first block are computed once for each
gene and level, and a cell selects its rows. The rest depends on the whole cell: the maximum that stabilises
its keys, the two products of linear attention, and everything behind them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from canal.core.errors import ModelError
from canal.core.files import new_folder, write_json
from canal.model.compute import (
    KERNEL_EPSILON,
    favor_attention,
    heads_at_a_time,
    in_threads,
    raw_features,
    scaled_projection,
    with_ones,
)
from canal.model.storage import (
    CONFIG,
    FORMAT,
    BackboneConfig,
    read_config,
    read_names,
    read_weights,
    write_weights,
)

VOCABULARY = "vocabulary.json"

MOST_CELLS = 64
"""Most cells that go through a network at a time."""

_TOKEN_SPREAD = 1.0


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained Performer over a vocabulary of genes.

    Attributes
    ----------
    network : Performer
        Its gene embedding has one row for each gene of ``vocabulary``, and the closing position.
    vocabulary : tuple of str
        Gene symbols.
    """

    network: Performer
    vocabulary: tuple[str, ...]

    @property
    def config(self) -> BackboneConfig:
        """The shape of the network."""
        return self.network.config

    def for_panel(self, genes: Sequence[str]) -> Performer:
        """Return a copy of the network that reads ``genes`` in that order.

        Raises
        ------
        ModelError
            If a gene is not in the vocabulary.
        """
        row = {gene: i for i, gene in enumerate(self.vocabulary)}
        if missing := [gene for gene in genes if gene not in row]:
            raise ModelError(
                f"{len(missing)} of {len(genes)} panel genes are not among the backbone's "
                f"{len(self.vocabulary)}, such as {missing[:5]}: pretrain the backbone for this panel"
            )
        rows = torch.tensor([row[gene] for gene in genes], dtype=torch.long)
        values = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        vectors = values["pos_emb.weight"]
        values["pos_emb.weight"] = torch.cat([vectors[rows], vectors[-1:]])  # the last closes the sequence
        network = empty_performer(self.config, len(rows))
        network.load_state_dict(values, assign=True)
        return network.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write weights, configuration and vocabulary to ``folder``, whole or not at all."""
        with new_folder(folder) as temporary:
            write_weights(self.network, temporary)
            write_json(temporary / CONFIG, {"format": FORMAT, "backbone": self.config.to_json()})
            write_json(temporary / VOCABULARY, list(self.vocabulary))

    @classmethod
    def load(cls, folder: Path) -> Backbone:
        """Read what `save` wrote; raises `ModelError` if anything is missing, damaged or does not fit."""
        config = BackboneConfig.from_json(read_config(folder).get("backbone"))
        vocabulary = read_names(folder, VOCABULARY)
        network = empty_performer(config, len(vocabulary))
        read_weights(network, folder)
        return cls(network.eval().requires_grad_(False), vocabulary)


class Attention(nn.Module):
    """Multi-head attention with fixed random features; q, k and v have no bias."""

    projection_matrix: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_k = nn.Linear(config.dim, inner, bias=False)
        self.to_v = nn.Linear(config.dim, inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim)
        # A buffer: saved with the weights and never redrawn, or answers would change with every draw.
        self.register_buffer("projection_matrix", torch.empty(config.n_features, config.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(cells, positions, dim)`` for ``x`` of that shape."""
        mixed = favor_attention(self.project(x), self.heads, scaled_projection(self.projection_matrix))
        attended: Tensor = self.to_out(mixed)
        return attended

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values side by side, ``(..., 3 * heads * head_dim)``, in one product."""
        return functional.linear(x, torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight]))


class FeedForward(nn.Module):
    """Linear, GELU, linear at every position."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.dim * config.ff_mult)
        self.w2 = nn.Linear(config.dim * config.ff_mult, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(cells, positions, dim)`` for ``x`` of that shape."""
        result: Tensor = self.w2(functional.gelu(self.w1(x)))
        return result


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(cells, positions, dim)`` for ``x`` of that shape."""
        return self.rest(x + self.attention(self.attention_norm(x)))

    def rest(self, x: Tensor) -> Tensor:
        """Return what comes after attention was added: the feed-forward half."""
        result: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return result


class Performer(nn.Module):
    """Token and gene embeddings, blocks and a final LayerNorm, over ``n_genes + 1`` positions.

    Made without values: `new_performer` draws them, `load_state_dict` loads them.
    """

    def __init__(self, config: BackboneConfig, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.token_emb = _empty_embedding(config.n_tokens, config.dim)
        self.pos_emb = _empty_embedding(n_genes + 1, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)

    @property
    def n_genes(self) -> int:
        """Genes the network reads; one more position closes the sequence."""
        return self.pos_emb.num_embeddings - 1

    @property
    def cells_at_a_time(self) -> int:
        """How many cells go through the network at a time: as many as stay in a processor's cache."""
        config = self.config
        if self.token_emb.weight.is_cuda:
            return MOST_CELLS
        fitting = heads_at_a_time(self.n_genes + 1, MOST_CELLS * config.heads, config.n_features)
        return max(1, fitting // config.heads)

    @property
    def first_trained(self) -> int:
        """Index of the one block that stages train: the last but one. All before it is the prefix."""
        return self.config.depth - 2

    def encode_prefix(self, tokens: Tensor) -> Tensor:
        """Return the output of embeddings and frozen blocks, which never changes between stages.

        ``tokens`` is ``(cells, n_genes)`` of an integer type, the result ``(cells, n_genes + 1, dim)``. The
        closing position, token 0, is added here.
        """
        closed = functional.pad(tokens.long(), (0, 1))
        if self.first_trained and torch.is_inference_mode_enabled():
            x, frozen = first_block(self)(closed), self.blocks[1 : self.first_trained]
        else:
            x, frozen = self.token_emb(closed) + self.pos_emb.weight, self.blocks[: self.first_trained]
        for block in frozen:
            x = block(x)
        return x

    def encode_rest(self, hidden: Tensor) -> Tensor:
        """Return the blocks and the LayerNorm behind `encode_prefix`, ``(cells, n_genes + 1, dim)``."""
        for block in self.blocks[self.first_trained :]:
            hidden = block(hidden)
        result: Tensor = self.norm(hidden)
        return result

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``(cells, n_genes + 1, dim)`` for tokens ``(cells, n_genes)``."""
        return self.encode_rest(self.encode_prefix(tokens))

    def freeze(self) -> None:
        """Leave only the last block but one and the final LayerNorm trainable."""
        self.requires_grad_(False)
        self.blocks[self.first_trained].requires_grad_(True)
        self.norm.requires_grad_(True)


def new_performer(config: BackboneConfig, gene_embedding: Tensor, generator: torch.Generator) -> Performer:
    """Return an untrained network.

    ``gene_embedding`` is ``(n_genes, dim)``; the closing position gets zeros. All random values come from
    ``generator``: normal, as in BERT, with residual outputs scaled down by depth (GPT-2).
    """
    network = empty_performer(config, gene_embedding.shape[0]).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            _fill(name, parameter, config.depth, generator)
        for layer in network.modules():
            if isinstance(layer, Attention):
                drawn = orthogonal_projection(config.n_features, config.head_dim, generator)
                layer.projection_matrix.copy_(drawn)
        network.pos_emb.weight[:-1] = gene_embedding
        network.pos_emb.weight[-1] = 0.0
    network.pos_emb.requires_grad_(False)
    return network


def empty_performer(config: BackboneConfig, n_genes: int) -> Performer:
    """Return a network of shapes only (device "meta"), to load values into with ``assign=True``."""
    with torch.device("meta"):
        return Performer(config, n_genes)


def _empty_embedding(rows: int, dim: int) -> nn.Embedding:
    """Return an embedding without values: drawing them on "meta" would import torch's compiler (1.5 s)."""
    return nn.Embedding(rows, dim, _weight=torch.empty(rows, dim))


def _fill(name: str, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
    if name.endswith("bias"):
        parameter.zero_()
    elif "norm" in name:
        parameter.fill_(1.0)
    elif name.startswith("token_emb"):
        parameter.normal_(0.0, _TOKEN_SPREAD, generator=generator)
    else:
        residual = name.endswith(("to_out.weight", "w2.weight"))
        spread = parameter.shape[-1] ** -0.5 * ((2 * depth) ** -0.5 if residual else 1.0)
        parameter.normal_(0.0, spread, generator=generator)


# Random projections of FAVOR+ (Choromanski et al., ICLR 2021): orthogonal, drawn once, kept.


def orthogonal_projection(n_features: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return random projections ``(n_features, dim)`` for `canal.model.compute`.

    Rows are orthogonal within blocks of ``dim``; their norms are those of Gaussian vectors, drawn apart
    (chi-distributed), so each row alone is distributed as a Gaussian vector (section 2.4 of the paper).
    """
    blocks = []
    for start in range(0, n_features, dim):
        gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        blocks.append(torch.linalg.qr(gaussian).Q.T[: n_features - start])
    norms = torch.randn(n_features, dim, generator=generator, dtype=torch.float64).norm(dim=1)
    projection: Tensor = (torch.cat(blocks) * norms[:, None]).float()
    return projection


# The first block as a lookup table.


@dataclass(frozen=True, eq=False)
class FirstBlock:
    """The lookup table of the first block, for every gene at every level; row ``gene * n_tokens + token``.

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
        """Return the lookup table for a network's present weights."""
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
    """Return the lookup table of ``performer``, computed anew if a weight has changed since the last call."""
    used = (performer.token_emb, performer.pos_emb, performer.blocks[0])
    weights = ((one.data_ptr(), one._version) for part in used for one in part.state_dict().values())
    state = (torch.is_autocast_enabled(performer.token_emb.weight.device.type), *weights)
    with _lock:
        cached = _known.get(performer)
        if cached is None or cached[0] != state:
            # By a single thread, so that the table's bits do not depend on the number of threads.
            cached = (state, in_threads(FirstBlock.of, [performer])[0])
            _known[performer] = cached
    return cached[1]
