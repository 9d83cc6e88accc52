"""Small networks for tests: ``from tests.model.make import make_annotator``."""

from __future__ import annotations

import numpy as np
import torch

from canal.model.annotator import Annotator
from canal.model.backbone import Backbone, new_performer
from canal.model.storage import PRESETS, BackboneConfig
from tests.make import gene_names

TINY = PRESETS["tiny"].backbone
DEEP = BackboneConfig(dim=16, depth=3, heads=2, head_dim=8, n_features=16)
"""Like tiny, with one frozen block before the trained one."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_backbone(n_genes: int = 20, config: BackboneConfig = TINY, seed: int = 0) -> Backbone:
    generator = seeded(seed)
    embedding = torch.randn(n_genes, config.dim, generator=generator)
    network = new_performer(config, embedding, generator).eval().requires_grad_(False)
    return Backbone(network, tuple(gene_names(n_genes)))


def make_expression(n_cells: int, n_genes: int = 20, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.gamma(2.0, 1.5, size=(n_cells, n_genes)) * (random.random((n_cells, n_genes)) < 0.4)
    return values.astype(np.float32)


def make_annotator(
    labels: tuple[str, ...] = ("B", "NK", "T"),
    n_genes: int = 20,
    config: BackboneConfig = TINY,
    seed: int = 0,
) -> Annotator:
    backbone = make_backbone(n_genes, config, seed)
    cells = make_expression(40, n_genes, seed)
    return Annotator.start(backbone, backbone.vocabulary, labels, cells, seeded(seed))
