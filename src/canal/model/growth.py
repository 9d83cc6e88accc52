"""An annotator that reads more genes: old values keep their bits, the head's new columns start at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from canal.core.errors import ModelError
from canal.model.annotator import Annotator, AnnotatorNetwork
from canal.model.head import Head, empty_head
from canal.model.performer import Performer, empty_performer


def gene_vectors(annotator: Annotator) -> np.ndarray:
    """Return the vectors of an annotator's genes, float32 ``(n_genes, dim)``."""
    vectors: np.ndarray = annotator.network.backbone.pos_emb.weight[:-1].detach().cpu().numpy().copy()
    return vectors


def with_genes(annotator: Annotator, genes: Sequence[str], vectors: np.ndarray) -> Annotator:
    """Return a copy that reads ``genes`` behind its own, without novelty rule and temperature.

    The new genes' vectors ``(len(genes), dim)`` stand behind the old ones and before the closing position,
    which stays the last; so do the columns of the head's first layer, which are zero: what a new gene says
    has no weight until it is trained. All old parameters keep their bits. Answers do not: attention is over
    all positions, and there are more of them.

    Raises
    ------
    ModelError
        If a gene is known already or named twice, or there is not one finite vector of the backbone's width
        for each.
    """
    dim = annotator.network.backbone.config.dim
    if twice := sorted(set(genes) & set(annotator.genes)):
        raise ModelError(f"{len(twice)} new genes are in the panel already, such as {twice[:5]}")
    if len(set(genes)) < len(genes):
        raise ModelError(f"{len(genes)} new genes have {len(set(genes))} names: each must be another")
    if vectors.shape != (len(genes), dim) or not np.isfinite(vectors).all():
        raise ModelError(
            f"{len(genes)} new genes need one finite vector of {dim} values each, found {vectors.shape}"
        )
    rows = torch.from_numpy(vectors.astype(np.float32))
    backbone = _wider_backbone(annotator.network.backbone, rows)
    network = AnnotatorNetwork(backbone, _wider_head(annotator.network.head, len(genes)))
    network.freeze_backbone()
    panel = (*annotator.genes, *genes)
    return replace(annotator, network=network, genes=panel, novelty=None, places=None, temperature=1.0)


def _wider_backbone(old: Performer, vectors: Tensor) -> Performer:
    values = _copied(old)
    values["pos_emb.weight"] = _before_last(values["pos_emb.weight"], vectors, dim=0)
    wider = empty_performer(old.config, old.n_genes + len(vectors))
    wider.load_state_dict(values, assign=True)
    return wider


def _wider_head(old: Head, n_new: int) -> Head:
    values = _copied(old)
    columns = values["to_manifold.weight"]
    values["to_manifold.weight"] = _before_last(columns, columns.new_zeros(len(columns), n_new), dim=1)
    layer = old.to_manifold
    wider = empty_head(old.filter.in_features, layer.in_features + n_new, old.prototypes.out_features)
    wider.load_state_dict(values, assign=True)
    return wider


def _copied(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def _before_last(old: Tensor, new: Tensor, dim: int) -> Tensor:
    """Return ``old`` with ``new`` before its last row (``dim`` 0) or column (1): the closing position."""
    last = old.shape[dim] - 1
    return torch.cat([old.narrow(dim, 0, last), new.to(old), old.narrow(dim, last, 1)], dim=dim)
