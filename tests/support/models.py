"""Small networks, and combined annotators, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from canal.memory.prediction import Calibration
from canal.model.annotator import Annotator
from canal.model.backbone import Backbone, new_performer
from canal.model.combined import Combination, CombinedAnnotator, CombinedRule
from canal.model.storage import PRESETS, BackboneConfig
from tests.support.cells import gene_names
from tests.support.sums import genes, make_exact, make_sums

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


LABELS = ("B", "Mono", "NK", "T")
RULE = CombinedRule({"network": (0.0, 1.0), "relative": (0.0, 5.0), "angle": (0.5, 0.1)}, 0.7)


def make_combined(weight: float = 0.5, fast_margin: float = 0.9) -> CombinedAnnotator:
    """Return a network of preset tiny and sums of two stages that answer together."""
    network = replace(make_annotator(LABELS, 20), genes=genes(20))
    exact = make_exact(make_sums(), LABELS)
    combination = Combination(weight, 1.2, Calibration(1.1, 0.005), fast_margin)
    return CombinedAnnotator(network, exact, combination, RULE)
