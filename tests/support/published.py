"""Published weights made small: a checkpoint of scBERT's layout, and the folder of an import.

Its forward pass is written out from the papers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from canal.app.project import Project
from canal.config.yaml_file import dumped
from canal.model.storage import PRESETS, BackboneConfig
from canal.registry.manifest.version_folder import key_digest, write_key
from canal.registry.versions.publish import import_facts
from tests.support.cells import gene_names, make_document
from tests.support.models import make_backbone, seeded

ODD = BackboneConfig(dim=12, depth=3, heads=3, head_dim=8, n_features=11, ff_mult=2)
"""Nothing equals anything else: three heads of 8 are 24 wide, a position is 12."""


def published_state(config: BackboneConfig, n_genes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return ``model_state_dict`` as scBERT saves it."""
    generator, inner, hidden = seeded(seed), config.heads * config.head_dim, config.dim * config.ff_mult

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + drawn(config.dim) / 2, f"{name}.bias": drawn(config.dim)}

    genes = torch.randn(n_genes + 1, config.dim, generator=generator, dtype=torch.float64)
    genes[-1] = 0
    state = {"token_emb.weight": drawn(config.n_tokens, config.dim) * 4, "pos_emb.emb.weight": genes}
    for i in range(config.depth):
        layer = f"performer.net.layers.{i}"
        state[f"{layer}.0.fn.fast_attention.projection_matrix"] = torch.randn(
            config.n_features, config.head_dim, generator=generator
        )
        for name in ("to_q", "to_k", "to_v"):
            state[f"{layer}.0.fn.{name}.weight"] = drawn(inner, config.dim) * 2
        state |= {
            f"{layer}.0.fn.to_out.weight": drawn(config.dim, inner),
            f"{layer}.0.fn.to_out.bias": drawn(config.dim),
            **norm(f"{layer}.0.norm"),
            f"{layer}.1.fn.fn.w1.weight": drawn(hidden, config.dim),
            f"{layer}.1.fn.fn.w1.bias": drawn(hidden),
            f"{layer}.1.fn.fn.w2.weight": drawn(config.dim, hidden),
            f"{layer}.1.fn.fn.w2.bias": drawn(config.dim),
            **norm(f"{layer}.1.norm"),
        }
    state["performer.calls_since_last_redraw"] = torch.tensor(417)
    return state | {
        **norm("norm"),
        "to_out.weight": drawn(config.n_tokens, config.dim),
        "to_out.bias": drawn(config.n_tokens),
    }


def save_checkpoint(path: Path, state: Mapping[str, Any], **beside: Any) -> Path:
    """Write a checkpoint as scBERT's pre-training does, epoch and losses beside the weights."""
    torch.save({"epoch": 5, "model_state_dict": dict(state), "losses": 0.25} | beside, path)
    return path


def read_here(monkeypatch: Any) -> None:
    """Have checkpoints read in this process, which has imported torch: another one takes seconds to start."""
    from canal.core.files import read_json
    from canal.model import published

    def read(checkpoint: Path, folder: Path, limit: float) -> Any:
        monkeypatch.setattr(sys, "argv", ["reader", str(checkpoint), str(folder)])
        published.main()
        return read_json(folder / published.ANSWER)

    monkeypatch.setattr(published, "_read_apart", read)


def published_forward(state: Mapping[str, torch.Tensor], tokens: list[int], heads: int) -> np.ndarray:
    """Return the hidden states of one cell, ``(n_genes + 1, dim)``, in double precision, sum by sum."""
    p = {name: value.double().numpy() for name, value in state.items()}
    x = p["token_emb.weight"][[*tokens, 0]] + p["pos_emb.emb.weight"]
    depth = sum(name.endswith("projection_matrix") for name in p)
    for i in range(depth):
        layer = f"performer.net.layers.{i}"
        x = x + _attention(p, f"{layer}.0.fn", _layer_norm(p, f"{layer}.0.norm", x), heads)
        x = x + _feed_forward(p, f"{layer}.1.fn.fn", _layer_norm(p, f"{layer}.1.norm", x))
    return _layer_norm(p, "norm", x)


def _layer_norm(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    rows = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append((row - mean) / math.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"])
    return np.array(rows)


def _attention(p: dict[str, np.ndarray], name: str, x: np.ndarray, heads: int) -> np.ndarray:
    """Return sum_j v_j <phi(q_n), phi(k_j)> / sum_j <phi(q_n), phi(k_j)>, head by head."""
    omega = p[f"{name}.fast_attention.projection_matrix"]
    width = omega.shape[1]
    columns = []
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = (x @ p[f"{name}.to_{letter}.weight"][rows].T for letter in "qkv")
        query = [_features(vector, omega, largest=None) for vector in q]
        top = max(float(w @ vector) for vector in k for w in omega) * width**-0.25
        key = [_features(vector, omega, largest=top) for vector in k]
        mixed = []
        for phi in query:
            weights = [float(phi @ other) for other in key]
            mixed.append(sum(w * value for w, value in zip(weights, v, strict=True)) / sum(weights))
        columns.append(np.array(mixed))
    return np.hstack(columns) @ p[f"{name}.to_out.weight"].T + p[f"{name}.to_out.bias"]


def _features(vector: np.ndarray, omega: np.ndarray, largest: float | None) -> np.ndarray:
    """Return exp(w . x / d^(1/4) - |x|^2 / (2 sqrt d) - largest) + 1e-4 for each w of omega."""
    width = len(vector)
    projected = [float(w @ vector) * width**-0.25 for w in omega]
    half_norm = float(vector @ vector) / (2 * math.sqrt(width))
    top = max(projected) if largest is None else largest
    return np.array([math.exp(value - half_norm - top) + 1e-4 for value in projected])


def _feed_forward(p: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    inner = x @ p[f"{name}.w1.weight"].T + p[f"{name}.w1.bias"]
    gelu = np.array([[value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in row] for row in inner])
    return gelu @ p[f"{name}.w2.weight"].T + p[f"{name}.w2.bias"]


VOCABULARY = gene_names(120)[20:80]
"""Sixty genes of `make_adata`: a published model never knows all genes of a data set."""


def write_params(root: Path, **changes: Any) -> None:
    """Write params.yaml, with a comment, into a new or old project folder."""
    root.mkdir(parents=True, exist_ok=True)
    text = f"# a comment that must stay\n{dumped(make_document(**changes))}"
    (root / "params.yaml").write_text(text, encoding="utf-8")


def write_published(folder: Path, **beside: Any) -> tuple[Path, Path]:
    """Write a checkpoint of preset tiny and the list of its genes."""
    genes = folder / "genes.txt"
    genes.write_text("\n".join(VOCABULARY) + "\n")
    state = published_state(PRESETS["tiny"].backbone, len(VOCABULARY))
    return save_checkpoint(folder / "Panglao pretrain.pth", state, **beside), genes


def project_with_import(root: Path, **changes: Any) -> Project:
    """Return a project whose backbones/x is an import, named by params.yaml; nothing is registered."""
    folder = root / "backbones" / "x"
    make_backbone(n_genes=20).save(folder)
    write_key(folder, import_facts("1" * 64, "2" * 64, None), parent=None)
    named = {"preset": "tiny", "imported": {"path": "backbones/x", "key": key_digest(folder)}}
    write_params(root, backbone=named | changes)
    return Project.open(root)
