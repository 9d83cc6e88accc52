"""Sizes of the network: the published one, the default and the one for tests."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from canal.core.errors import ModelError
from canal.data.expression import N_TOKENS


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
