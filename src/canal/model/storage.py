"""Model folders: weights in safetensors, everything else in JSON, checked before anything is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canal.core.errors import ModelError
from canal.core.files import read_json, usual_rights

FORMAT = 1
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"


def read_document(folder: Path, name: str) -> Any:
    """Return the JSON document ``folder/name``; raises `ModelError` if it is missing or no JSON."""
    path = folder / name
    if not path.is_file():
        present = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        raise ModelError(
            f"{path} not found: the model is incomplete (the folder holds {present[:5] or 'nothing'})"
        )
    try:
        return read_json(path)
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}; restore the model") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a format this canal knows; raises `ModelError` otherwise."""
    document = read_document(folder, CONFIG)
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != FORMAT:
        raise ModelError(f"{folder / CONFIG}: this canal reads model format {FORMAT}, found {found!r}")
    return dict(document)


def read_names(folder: Path, name: str) -> tuple[str, ...]:
    """Return a list of unique, non-empty strings; raises `ModelError` if the file holds anything else."""
    names = read_document(folder, name)
    if not isinstance(names, list) or not all(isinstance(item, str) and item for item in names):
        raise ModelError(f"{folder / name} must hold a list of names; restore the model")
    if len(set(names)) < len(names):
        twice = sorted({item for item in names if names.count(item) > 1})
        raise ModelError(f"{folder / name}: {len(twice)} name(s) occur more than once, such as {twice[:5]}")
    return tuple(names)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, to be read by whom the umask lets: equal values, equal bytes."""
    from safetensors.torch import save_file

    with usual_rights(path):
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write all parameters and buffers to ``folder/weights.safetensors``."""
    tensors = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    write_tensors(tensors, folder / WEIGHTS)


def read_weights(network: nn.Module, folder: Path) -> None:
    """Load ``folder/weights.safetensors`` into ``network``, which may be on device "meta".

    Raises
    ------
    ModelError
        If the file is missing or damaged, a tensor is missing or too many, of another shape or type, or not
        finite: all offending names at once.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{path} not found: the model is incomplete")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); restore the model") from error
    if problems := _problems(network.state_dict(), tensors):
        raise ModelError(
            f"{path} does not fit its {CONFIG} ({len(problems)} problem(s)):\n  " + "\n  ".join(problems[:5])
        )
    network.load_state_dict(tensors, assign=True)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of ``tensors``, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    lines = [f"{name}: missing" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"{name}: not expected" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        want, have = wanted[name], found[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            lines.append(
                f"{name}: expected {want.dtype} {tuple(want.shape)}, found {have.dtype} {tuple(have.shape)}"
            )
        elif not torch.isfinite(have).all():
            lines.append(f"{name}: holds values that are not finite")
    return lines
