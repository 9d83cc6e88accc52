"""Model folders: sizes of the network, weights in safetensors, everything else in JSON, checked when read.

Torch is imported only where weights are read or written: to choose a panel, a preset's size is enough.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from canal.core.errors import ModelError
from canal.core.files import read_json, usual_rights
from canal.data.expression import N_TOKENS

if TYPE_CHECKING:
    from torch import Tensor, nn


MANIFOLD = 128
REPRESENTATION = 64
FORMAT = 1
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
ONTOLOGY = "ontology.json"


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a backbone.

    Attributes
    ----------
    dim : int
        Width of a position, the published d = 200.
    depth : int
        Number of blocks, at least 2, for the last but one is trained.
    heads, head_dim : int
        Attention heads of a block, and the width of each.
    n_features : int
        Random features of a head: floor(head_dim ln head_dim), as scBERT has it.
    ff_mult : int
        Width of the feed-forward layer in multiples of ``dim``.
    n_tokens : int
        Levels of expression and the mask.
    """

    dim: int
    depth: int
    heads: int
    head_dim: int
    n_features: int
    ff_mult: int = 4
    n_tokens: int = N_TOKENS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"backbone {field.name} must be a whole number above 0, found {value!r}")
        if self.depth < 2:
            raise ModelError(
                f"backbone depth must be at least 2 (the last block but one is trained), found {self.depth}"
            )

    def to_json(self) -> dict[str, int]:
        """Return the fields as a JSON document."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> BackboneConfig:
        """Return the configuration that `to_json` wrote; raises `ModelError` on other keys or values."""
        wanted = sorted(field.name for field in fields(cls))
        if not isinstance(document, dict) or sorted(document) != wanted:
            found = sorted(document) if isinstance(document, dict) else type(document).__name__
            raise ModelError(f"a backbone configuration has the keys {wanted}, found {found}")
        return cls(**document)


@dataclass(frozen=True)
class PresetSize:
    """A backbone's shape, and how many genes its panel and its vocabulary hold at most."""

    backbone: BackboneConfig
    panel: int
    vocabulary: int


def _shape(dim: int, depth: int, heads: int, head_dim: int) -> BackboneConfig:
    return BackboneConfig(dim, depth, heads, head_dim, n_features=int(head_dim * math.log(head_dim)))


PRESETS: dict[str, PresetSize] = {
    "tiny": PresetSize(_shape(dim=16, depth=2, heads=2, head_dim=8), panel=32, vocabulary=512),
    "small": PresetSize(_shape(dim=64, depth=3, heads=4, head_dim=16), panel=300, vocabulary=4096),
    "scbert": PresetSize(_shape(dim=200, depth=6, heads=10, head_dim=64), panel=1000, vocabulary=16906),
}
"""tiny: tests. small: the default. scbert: the published backbone (Yang et al. 2022)."""


def require_preset(config: BackboneConfig, n_genes: int, preset: str) -> None:
    """Refuse a backbone of another shape, or of more genes, than ``preset`` has.

    Raises
    ------
    ModelError
        Naming the preset to set instead, where there is one.
    """
    size = PRESETS[preset]
    if config == size.backbone and n_genes <= size.vocabulary:
        return
    fitting = [
        name for name, other in PRESETS.items() if other.backbone == config and n_genes <= other.vocabulary
    ]
    advice = f"set backbone.preset: {fitting[0]}" if fitting else f"none of {', '.join(PRESETS)} fits it"
    raise ModelError(
        f"the weights have {_described(config)} and {n_genes} genes, but backbone.preset: {preset} has "
        f"{_described(size.backbone)} and at most {size.vocabulary} genes; {advice}"
    )


def _described(config: BackboneConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.to_json().items())


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
    """Write tensors as safetensors, with the rights of the umask; equal values give equal bytes."""
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


def _problems(wanted: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    import torch

    lines = [f"{name}: missing" for name in sorted(wanted.keys() - loaded.keys())]
    lines += [f"{name}: not expected" for name in sorted(loaded.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & loaded.keys()):
        want, have = wanted[name], loaded[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            lines.append(
                f"{name}: expected {want.dtype} {tuple(want.shape)}, found {have.dtype} {tuple(have.shape)}"
            )
        elif not torch.isfinite(have).all():
            lines.append(f"{name}: holds values that are not finite")
    return lines


def read_ontology(folder: Path, labels: Sequence[str]) -> dict[str, str]:
    """Return the Cell Ontology ids of a model folder by label; empty without a file of them.

    Raises
    ------
    ModelError
        If the file holds anything but ids of ``labels``.
    """
    if not (folder / ONTOLOGY).is_file():
        return {}
    ids = read_document(folder, ONTOLOGY)
    if not isinstance(ids, dict) or not all(isinstance(one, str) and one for one in ids.values()):
        raise ModelError(f"{folder / ONTOLOGY} must map labels to Cell Ontology ids; restore the model")
    if unknown := sorted(set(ids) - set(labels)):
        raise ModelError(
            f"{folder / ONTOLOGY} names {len(unknown)} type(s) that are no label, such as {unknown[:5]}; "
            "restore the model"
        )
    return ids
