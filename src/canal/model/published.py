"""Read published weights: scBERT's checkpoint (Yang et al. 2022) as a `Backbone`.

A pickle can run code, so a separate process opens it and writes safetensors and JSON. That process runs this
module: ``python -m canal.model.published CHECKPOINT FOLDER``; `read_published` starts it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from canal.core.errors import ModelError, no_such_file
from canal.core.files import read_json, write_json
from canal.model.backbone import Backbone, empty_performer
from canal.model.storage import WEIGHTS, BackboneConfig, read_weights

TIME_LIMIT = 600.0
"""Seconds that the reading process may take; a checkpoint with its optimiser's state takes a few."""

SAME = 1e-6
"""Two gene vectors that differ by less are the same: float32 keeps no more."""

ANSWER = "answer.json"
STATE = "model_state_dict"

_STRIP = f"where you trust its authors, save its {STATE!r} alone in a new checkpoint and import that"

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


def read_published(checkpoint: Path, genes: Sequence[str], limit: float = TIME_LIMIT) -> Backbone:
    """Return the backbone that a checkpoint of scBERT's layout holds.

    A pickle can run code, so this process never opens it: another process reads tensors alone, checks them
    and returns safetensors and JSON, which are checked again.

    Parameters
    ----------
    checkpoint
        A file of ``torch.save`` with ``model_state_dict``.
    genes
        Unique symbols in the order of the rows of ``pos_emb.emb.weight``; its last row closes the sequence.
    limit
        Seconds after which the reading process is ended.

    Raises
    ------
    ModelError
        If the checkpoint is missing, damaged, holds code or is of another layout; if the number of genes is
        another; or if the reading process dies or takes too long.
    """
    if not checkpoint.is_file():
        raise ModelError(no_such_file(checkpoint, "give the path of a checkpoint"))
    with tempfile.TemporaryDirectory(prefix="canal-import-") as scratch:
        answer = _read_apart(checkpoint, Path(scratch), limit)
        if "refused" in answer:
            raise ModelError(f"{checkpoint} cannot be imported: {answer['refused']}")
        config, n_genes = BackboneConfig.from_json(answer["backbone"]), answer["n_genes"]
        if n_genes != len(genes):
            raise ModelError(
                f"{checkpoint} has {n_genes + 1} positions, {n_genes} genes and the closing one, but the "
                f"list has {len(genes)} genes; a first line of names counts as a gene"
            )
        network = empty_performer(config, n_genes)
        read_weights(network, Path(scratch))
    return Backbone(network.eval().requires_grad_(False), tuple(genes))


def require_gene_vectors(backbone: Backbone, vectors: np.ndarray, origin: Path) -> None:
    """Refuse gene vectors that are not those of the backbone.

    They never replace the backbone's: its blocks were trained on the rows of the checkpoint, so other rows
    could only make it worse. They are a proof: vectors found by symbol show that the list of genes is in the
    order of the rows.

    Parameters
    ----------
    backbone
        With its vocabulary.
    vectors
        ``(n_genes, dim)``, rows in the order of the vocabulary.
    origin
        The file they come from, for the message.

    Raises
    ------
    ModelError
        If shapes differ, or rows by more than `SAME`; says how many, which and by how much.
    """
    rows = backbone.network.pos_emb.weight.detach()[:-1].numpy()
    if vectors.shape != rows.shape:
        raise ModelError(f"{origin}: expected gene vectors {rows.shape}, found {vectors.shape}")
    distance = np.abs(rows.astype(np.float64) - vectors).max(axis=1)
    others = np.flatnonzero(~(distance <= SAME))  # NaN is not <= either
    if len(others):
        examples = ", ".join(backbone.vocabulary[i] for i in others[:5])
        raise ModelError(
            f"{origin}: the vectors of {len(others)} of {len(rows)} genes are not those of the checkpoint, "
            f"such as {examples} (largest difference {np.nanmax(distance):.2g}): the list of genes is in "
            "another order, or one of the files belongs to another model"
        )


def _read_apart(checkpoint: Path, folder: Path, limit: float) -> dict[str, Any]:
    """Have another process read ``checkpoint`` into ``folder`` and return its answer."""
    # -P: a file called torch.py in the working directory must not be taken for torch.
    reader = (sys.executable, "-P", "-m", "canal.model.published")
    command = [*reader, str(checkpoint.resolve()), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{checkpoint}: reading it took more than {limit:g} s and was ended") from error
    if done.returncode or not (folder / ANSWER).is_file():
        reason = (done.stderr.strip().splitlines() or ["it wrote no message"])[-1]
        raise ModelError(
            f"{checkpoint}: the process that reads it died with exit code {done.returncode} "
            f"({reason[:300]}); nothing was imported. Is there enough memory?"
        )
    answer: dict[str, Any] = read_json(folder / ANSWER)
    return answer


# The process that alone opens a checkpoint.


def main() -> None:
    """Write ``weights.safetensors`` and ``answer.json`` to the folder, or only why it is refused."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        found = translate(read_state(source))
    except ModelError as error:
        write_json(target / ANSWER, {"refused": str(error)})
        return
    save_file(found.tensors, target / WEIGHTS)
    write_json(target / ANSWER, {"backbone": found.config.to_json(), "n_genes": found.n_genes})


def read_state(path: Path) -> Mapping[str, object]:
    """Return ``model_state_dict`` of a checkpoint; its other entries are ignored.

    The archive is checked before torch reads it, the pickle inside before anything is made from it, and then
    torch's own restricted reader (``weights_only``) makes nothing but containers, numbers and tensors, which
    stay in the file until they are used.

    Raises
    ------
    ModelError
        If the file is no whole archive as torch writes it, names code, or has no ``model_state_dict``.
    """
    _check_archive(path)
    _check_pickle(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile file provokes is a reason to refuse it
        kind = type(error).__name__  # torch's own words advise to read the file without its protection
        raise ModelError(f"its pickle cannot be read as tensors ({kind}); {_STRIP}") from error
    state = loaded.get(STATE) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        found = [str(name) for name in loaded][:5] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ModelError(f"it has no mapping of tensors named {STATE!r}; found {found}")
    return state


def _check_archive(path: Path) -> None:
    """Refuse what torch would not have written, and every changed byte: torch itself checks no sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            pickles = [name for name in names if name.endswith("/data.pkl")]
            packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1]
            damaged = None if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"it is no whole zip archive ({path.stat().st_size} bytes; {error}): it was cut short, damaged, "
            "or written by a torch before 1.6; fetch it again, or save it again with a newer torch"
        ) from error
    if len(pickles) != 1 or len(set(names)) < len(names) or packed:
        raise ModelError(
            "it is a zip archive, but not of torch.save: expected one data.pkl and no member compressed or "
            f"of another's name, found {len(pickles)} data.pkl, {len(packed)} compressed or encrypted and "
            f"{len(names) - len(set(names))} repeated name(s)"
        )
    if damaged:
        raise ModelError(f"its member {damaged} does not have the sum that the archive says; fetch it again")


def _check_pickle(path: Path) -> None:
    """Refuse a pickle that names anything but tensors, without making anything of it."""
    try:
        named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # as above
        raise ModelError(f"its pickle does more than name tensors ({error}); {_STRIP}") from error
    if named:
        raise ModelError(
            f"its pickle names {len(named)} function(s) or class(es) that are no tensors, such as "
            f"{', '.join(named[:5])}: it may hold code, and none of it was run; {_STRIP}"
        )


# The tensors of the checkpoint: their names here, and their shapes.


@dataclass(frozen=True, eq=False)
class Translated:
    """A checkpoint with the names that canal's network has for its tensors.

    Attributes
    ----------
    config : BackboneConfig
        The shape that the tensors have.
    n_genes : int
        Rows of the gene embedding, the closing position left out.
    tensors : dict
        The state of a `canal.model.backbone.Performer`, float32.
    """

    config: BackboneConfig
    n_genes: int
    tensors: dict[str, Tensor]


def translate(state: Mapping[str, object]) -> Translated:
    """Return the network that a checkpoint's ``model_state_dict`` holds.

    Depth, widths and number of genes are taken from the tensors, whose shapes must agree. Weights in half or
    double precision become float32; scBERT's gene embedding is float64.

    Raises
    ------
    ModelError
        If a tensor is missing, not known, no matrix of floating-point numbers, of a shape that does not fit
        the others, or holds a value that is not finite; says how many and which.
    """
    names = _names(state)
    _refuse("are no plain tensors of floating-point numbers", _unreadable({n: state[n] for n in names}))
    tensors = {here: state[there] for there, here in names.items()}
    values = {name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)}
    published = {here: there for there, here in names.items()}
    config = _config(values, published)
    n_genes = len(values["pos_emb.weight"]) - 1
    wanted = empty_performer(config, n_genes).state_dict()
    misshapen = [
        f"{published[name]} (expected {tuple(wanted[name].shape)}, found {tuple(value.shape)})"
        for name, value in values.items()
        if value.shape != wanted[name].shape
    ]
    _refuse("have a shape that does not fit the others", misshapen)
    values = {name: value.to(torch.float32).contiguous() for name, value in values.items()}
    not_finite = [
        f"{published[name]} ({count} of {value.numel()})"
        for name, value in values.items()
        if (count := int((~torch.isfinite(value)).sum()))
    ]
    _refuse("hold values that are not finite in float32", not_finite)
    return Translated(config, n_genes, values)


def _names(state: Mapping[str, object]) -> dict[str, str]:
    """Return published name -> name here, after checking that all are there and none is unknown."""
    layers = {match[1] for name in state if (match := _LAYER.match(name))}
    depth = max(2, len(layers))
    names = _AROUND | {
        f"performer.net.layers.{i}.{there}": f"blocks.{i}.{here}"
        for i in range(depth)
        for there, here in _BLOCK.items()
    }
    missing = [name for name in names if name not in state]
    unknown = sorted(state.keys() - names.keys() - _DROPPED)
    if missing or unknown:
        raise ModelError(
            f"model_state_dict is not scBERT's layout: {_some(missing)} missing, {_some(unknown)} not known"
        )
    return names


def _unreadable(state: Mapping[str, object]) -> list[str]:
    lines = []
    for name, value in state.items():
        if not isinstance(value, Tensor):
            lines.append(f"{name} ({type(value).__name__})")
        elif value.dtype not in _FLOATS or value.layout != torch.strided or value.device.type != "cpu":
            lines.append(f"{name} ({value.dtype}, {value.layout}, {value.device})")
        elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
            lines.append(f"{name} (claims more values than it stores)")
    return lines


def _config(values: Mapping[str, Tensor], published: Mapping[str, str]) -> BackboneConfig:
    """Return the shape that follows from the first block; the other tensors are compared with it later."""
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


def _refuse(what: str, lines: Iterable[str]) -> None:
    found = list(lines)
    if found:
        raise ModelError(f"{len(found)} tensor(s) {what}, such as {', '.join(found[:_EXAMPLES])}")


def _some(names: list[str]) -> str:
    return f"{len(names)} (such as {', '.join(names[:_EXAMPLES])})" if names else "none"


if __name__ == "__main__":
    main()
