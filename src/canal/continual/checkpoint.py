"""Checkpoints of a training: one safetensors file an epoch replaces, with its state as JSON inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from canal.core.files import new_file
from canal.model.storage import weights_digest

FORMAT = 1
_STATE = "canal"


@dataclass(frozen=True)
class Checkpoint:
    """A training after its last whole epoch: all tensors by name, and one record an epoch."""

    tensors: dict[str, Tensor]
    epochs: list[dict[str, Any]]


def write_checkpoint(path: Path, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Replace ``path`` by ``checkpoint``, whole or not at all.

    ``fingerprint`` names the training: cells, parent, settings and seed.
    """
    from safetensors.torch import save_file

    state = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "digest": weights_digest(checkpoint.tensors),
        "epochs": checkpoint.epochs,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    with new_file(path) as temporary:
        save_file(tensors, temporary, metadata={_STATE: json.dumps(state, sort_keys=True, allow_nan=False)})


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint of the training named ``fingerprint``.

    None if there is none, it is damaged, or it belongs to another training: then the training starts over.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        known = (state["format"], state["fingerprint"]) == (FORMAT, fingerprint)
        whole = known and state["digest"] == weights_digest(tensors)
        return Checkpoint(tensors, state["epochs"]) if whole else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` with ``prefix/`` before each name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with ``prefix/``, by the rest of their name."""
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
