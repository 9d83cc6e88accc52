"""The tensors of scBERT's published checkpoint (Yang et al. 2022): their names here, and their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from canal.core.errors import ModelError
from canal.model.config import BackboneConfig
from canal.model.performer import empty_performer

_AROUND = {
    "token_emb.weight": "token_emb.weight",
    "pos_emb.emb.weight": "pos_emb.weight",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_BLOCK = {
    "0.norm.weight": "attention_norm.weight",
    "0.norm.bias": "attention_norm.bias",
    "0.fn.to_q.weight": "attention.to_q.weight",
    "0.fn.to_k.weight": "attention.to_k.weight",
    "0.fn.to_v.weight": "attention.to_v.weight",
    "0.fn.to_out.weight": "attention.to_out.weight",
    "0.fn.to_out.bias": "attention.to_out.bias",
    "0.fn.fast_attention.projection_matrix": "attention.projection_matrix",
    "1.norm.weight": "feed_forward_norm.weight",
    "1.norm.bias": "feed_forward_norm.bias",
    "1.fn.fn.w1.weight": "feed_forward.w1.weight",
    "1.fn.fn.w1.bias": "feed_forward.w1.bias",
    "1.fn.fn.w2.weight": "feed_forward.w2.weight",
    "1.fn.fn.w2.bias": "feed_forward.w2.bias",
}
"""Published name below ``performer.net.layers.<i>.`` -> name below ``blocks.<i>.``."""

_LAYER = re.compile(r"performer\.net\.layers\.(\d+)\.")
_DROPPED = {
    "to_out.weight",  # logits of tokens, which only pre-training needs: stages put their head there
    "to_out.bias",
    "performer.calls_since_last_redraw",  # until the features are redrawn; here they never are
    "performer.proj_updater.calls_since_last_redraw",
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EXAMPLES = 5


@dataclass(frozen=True, eq=False)
class Translated:
    """A checkpoint in canal's words.

    Attributes
    ----------
    config : BackboneConfig
        The shape that the tensors have.
    n_genes : int
        Rows of the gene embedding, the closing position left out.
    tensors : dict
        The state of a `canal.model.performer.Performer`, float32.
    """

    config: BackboneConfig
    n_genes: int
    tensors: dict[str, Tensor]


def translate(found: Mapping[str, object]) -> Translated:
    """Return the network that a checkpoint's ``model_state_dict`` holds.

    Nothing is assumed of its size: depth, widths and number of genes are those of the tensors, which have to
    agree. Weights in half or double precision become float32; scBERT's gene embedding is float64.

    Raises
    ------
    ModelError
        If a tensor is missing, not known, no matrix of floating-point numbers, of a shape that does not fit
        the others, or holds a value that is not finite; says how many and which.
    """
    names = _names(found)
    _refuse("are no plain tensors of floating-point numbers", _unreadable({n: found[n] for n in names}))
    tensors = {here: found[there] for there, here in names.items()}
    values = {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
    published = {here: there for there, here in names.items()}
    config = _config(values, published)
    n_genes = len(values["pos_emb.weight"]) - 1
    _refuse("have a shape that does not fit the others", _misshapen(values, published, config, n_genes))
    values = {name: value.to(torch.float32).contiguous() for name, value in values.items()}
    _refuse("hold values that are not finite in float32", _not_finite(values, published))
    return Translated(config, n_genes, values)


def _names(found: Mapping[str, object]) -> dict[str, str]:
    """Return published name -> name here, after checking that all are there and none is unknown."""
    layers = {match[1] for name in found if (match := _LAYER.match(name))}
    depth = max(2, len(layers))
    names = _AROUND | {
        f"performer.net.layers.{i}.{there}": f"blocks.{i}.{here}"
        for i in range(depth)
        for there, here in _BLOCK.items()
    }
    missing = [name for name in names if name not in found]
    unknown = sorted(found.keys() - names.keys() - _DROPPED)
    if missing or unknown:
        raise ModelError(
            f"model_state_dict is not scBERT's layout: {_some(missing)} missing, {_some(unknown)} not known"
        )
    return names


def _unreadable(found: Mapping[str, object]) -> list[str]:
    lines = []
    for name, value in found.items():
        if not isinstance(value, Tensor):
            lines.append(f"{name} ({type(value).__name__})")
        elif value.dtype not in _FLOATS or value.layout != torch.strided or value.device.type != "cpu":
            lines.append(f"{name} ({value.dtype}, {value.layout}, {value.device})")
        elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
            lines.append(f"{name} (claims more values than it stores)")
    return lines


def _config(values: Mapping[str, Tensor], published: Mapping[str, str]) -> BackboneConfig:
    """Return the shape that follows from the first block; the other tensors are held against it."""
    block = "blocks.0."
    names = ("attention.projection_matrix", "attention.to_q.weight", "feed_forward.w1.weight")
    deciding = ("token_emb.weight", "pos_emb.weight", *(block + name for name in names))
    flat = [name for name in deciding if values[name].dim() != 2 or not values[name].numel()]
    _refuse("are no matrices", [f"{published[n]} {tuple(values[n].shape)}" for n in flat])
    n_tokens, dim = values["token_emb.weight"].shape
    (n_features, head_dim), (inner, _), (hidden, _) = (values[block + name].shape for name in names)
    for what, whole, part in (("to_q", inner, head_dim), ("w1", hidden, dim)):
        if whole % part:
            raise ModelError(
                f"{what} has {whole} rows in block 0, which is no multiple of {part}, the width of "
                f"{'a head (columns of projection_matrix)' if what == 'to_q' else 'a position (dim)'}"
            )
    depth = len({name.split(".")[1] for name in values if name.startswith("blocks.")})
    return BackboneConfig(dim, depth, inner // head_dim, head_dim, n_features, hidden // dim, n_tokens)


def _misshapen(
    values: Mapping[str, Tensor], published: Mapping[str, str], config: BackboneConfig, n_genes: int
) -> list[str]:
    wanted = empty_performer(config, n_genes).state_dict()
    return [
        f"{published[name]} (expected {tuple(wanted[name].shape)}, found {tuple(value.shape)})"
        for name, value in values.items()
        if value.shape != wanted[name].shape
    ]


def _not_finite(values: Mapping[str, Tensor], published: Mapping[str, str]) -> list[str]:
    return [
        f"{published[name]} ({count} of {value.numel()})"
        for name, value in values.items()
        if (count := int((~torch.isfinite(value)).sum()))
    ]


def _refuse(what: str, lines: Iterable[str]) -> None:
    found = list(lines)
    if found:
        raise ModelError(f"{len(found)} tensor(s) {what}, such as {', '.join(found[:_EXAMPLES])}")


def _some(names: list[str]) -> str:
    return f"{len(names)} (such as {', '.join(names[:_EXAMPLES])})" if names else "none"
