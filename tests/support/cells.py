"""The one maker of synthetic cells, sources and configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from canal.config.params import Config
from canal.config.stage_sections import Source
from canal.config.yaml_file import parse_config
from canal.core.digests import file_digest

if TYPE_CHECKING:
    from anndata import AnnData

MARKERS = ("CD3D", "CD4", "CD8A", "CD14", "CD19", "CD79A", "FCGR3A", "GNLY", "LYZ", "MS4A1", "NKG7", "PPBP")
MARKERS_PER_TYPE = 8
PER_TEN_THOUSAND = 1e4


def gene_names(n_genes: int) -> list[str]:
    """Return ``n_genes`` symbols: twelve real ones spread among GENE001, GENE002, ..."""
    names = [f"GENE{number:03d}" for number in range(1, n_genes + 1)]
    for position, marker in zip(range(0, n_genes, max(1, n_genes // len(MARKERS))), MARKERS, strict=False):
        names[position] = marker
    return names


def make_adata(
    n_per_type: Mapping[str, int],
    n_genes: int = 120,
    seed: int = 0,
    values: str = "counts",
    batches: Sequence[str] = ("b1",),
    shift: float = 0.0,
    kinds: Mapping[str, str] | None = None,
) -> AnnData:
    """Return zero-inflated cells whose types a linear model separates.

    A type's eight marker genes depend on its name alone, not on ``seed``, on the other types or on the batch,
    so stages made apart fit together. ``shift`` adds a source effect: the standard deviation of a fixed
    log factor a gene. ``values`` is counts, log1p_10k or log2p_10k; X is CSR float32. Batches take turns.
    ``kinds`` names the type whose genes a label has, where several labels are one type.
    """
    import anndata
    import pandas as pd

    generator = np.random.default_rng(seed)
    labels = [name for name, count in n_per_type.items() for _ in range(count)]
    kinds = {name: name for name in n_per_type} | dict(kinds or {})
    rates = _rates(list(dict.fromkeys(kinds.values())), n_genes, shift)
    depth = generator.lognormal(0.0, 0.25, size=(len(labels), 1))
    means = np.array([rates[kinds[label]] for label in labels]).reshape(len(labels), n_genes) * depth
    counts = generator.poisson(means * generator.gamma(2.0, 0.5, size=means.shape))
    order = generator.permutation(len(labels))
    obs = pd.DataFrame(
        {
            "cell_type": [labels[i] for i in order],
            "batch": [batches[i % len(batches)] for i in range(len(labels))],
        },
        index=[f"cell{seed}-{i:04d}" for i in range(len(labels))],
    )
    var = pd.DataFrame(index=gene_names(n_genes))
    return anndata.AnnData(X=csr_matrix(_in_units(counts[order], values)), obs=obs, var=var)


def _rates(types: list[str], n_genes: int, shift: float) -> dict[str, np.ndarray]:
    """Return the mean count of every gene for each type: a common profile, eightfold at the markers."""
    common = np.random.default_rng(7)
    base = common.lognormal(-0.7, 0.8, size=n_genes)
    factor = np.exp(np.random.default_rng(11).normal(0.0, 1.0, size=n_genes) * shift)
    rates = {}
    for name in types:
        own = np.random.default_rng([ord(letter) for letter in name])
        rate = base * factor
        markers = own.choice(n_genes, size=min(MARKERS_PER_TYPE, n_genes), replace=False)
        rate[markers] = 8.0 * np.maximum(rate[markers], 0.5)
        rates[name] = rate
    return rates


def _in_units(counts: np.ndarray, values: str) -> np.ndarray:
    """Return counts in the declared units, float32."""
    if values == "counts":
        return counts.astype(np.float32)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    logarithm = {"log1p_10k": np.log1p, "log2p_10k": lambda value: np.log2(1 + value)}[values]
    return logarithm(counts / totals * PER_TEN_THOUSAND).astype(np.float32)


def write_adata(adata: AnnData, path: Path) -> Path:
    """Write ``adata`` as h5ad and return ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return path


def source_of(path: Path, **changes: Any) -> Source:
    """Return the declaration of a file written by `write_adata`: its path, its SHA-256, and ``changes``."""
    document = {
        "path": str(path),
        "sha256": file_digest(path),
        "label": "cell_type",
        "batch": "batch",
        "values": "counts",
        "min_genes": 1,
    }
    return Source.model_validate_json(json.dumps(document | changes))


def make_document(**changes: Any) -> dict[str, Any]:
    """Return params for two stages, first and second, at preset tiny; see `make_config`."""
    document: dict[str, Any] = {
        "seed": 0,
        "threads": 1,
        "sources": {name: _placeholder(name) for name in ("first", "second")},
        "stages": {
            "first": {"source": "first", "parent": "backbone"},
            "second": {"source": "second", "parent": "first"},
        },
        "prepare": {"min_genes": 1, "chunk_cells": 64},
        "gate": {"min_cells": 20},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "panel": {"stage": "first", "size": 32},
        "backbone": {"preset": "tiny", "max_epochs": 1},
        "continual": {"max_epochs": 2, "warmup_epochs": 1, "bank_size": 24, "patience": 2},
        "bank": {"capacity": 40},
        "probe": {"max_cells": 20},
        "novelty": {"mixtures": 50, "shadow_epochs": 5},
        "memory": {},
        "tuning": None,
        "cache": {"dtype": "float32"},
        "compute": {"device": "cpu", "dtype": "float32"},
    }
    for name, value in changes.items():
        merge = name not in ("sources", "stages") and isinstance(document.get(name), dict)
        document[name] = document[name] | value if merge else value
    return document


LENIENT = {
    "min_accuracy": 0.0,
    "min_balanced_accuracy": 0.0,
    "min_cells_per_stage": 1,
    "min_cells_per_type": 1,
    "max_loss": 1.0,
    "max_loss_per_type": 1.0,
    "min_h_score": 0.0,
    "max_ece": 1.0,
}
"""A policy that any version passes."""

TUNING = {"n_trials": 3, "epochs": 2, "bank_sizes": [12, 24], "startup_trials": 2}
"""A small study for stages of preset tiny."""


def tuned_stages(stages: Mapping[str, Any], tuned: Sequence[str] = ()) -> dict[str, Any]:
    """Return a document's stages, in which those named are tuned."""
    return {name: {**one, "tune": True} if name in tuned else dict(one) for name, one in stages.items()}


def make_tuned_document(**changes: Any) -> dict[str, Any]:
    """Return the document of `make_document` with its second stage tuned."""
    document = make_document(**{"tuning": TUNING} | changes)
    document["stages"] = tuned_stages(document["stages"], ("second",))
    return document


def _placeholder(name: str) -> dict[str, Any]:
    return {
        "path": f"raw/{name}.h5ad",
        "sha256": "0" * 64,
        "label": "cell_type",
        "batch": "batch",
        "values": "counts",
        "min_genes": 1,
    }


def make_config(**changes: Any) -> Config:
    """Return a configuration for two small stages, first and second.

    A section named in ``changes`` is laid over the default one, key by key; ``sources`` and ``stages``
    replace theirs whole. Sources may be given as documents or as `canal.config.stage_sections.Source`.
    """
    document = make_document(**changes)
    document["sources"] = {
        name: source.model_dump(mode="json", exclude_unset=True) if isinstance(source, Source) else source
        for name, source in document["sources"].items()
    }
    return parse_config(document)
