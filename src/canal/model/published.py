"""Published weights: scBERT's checkpoint as a `Backbone`, read by a process of its own (no pickle here)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canal.core.errors import ModelError
from canal.core.files import read_json
from canal.model.backbone import Backbone
from canal.model.config import BackboneConfig
from canal.model.performer import empty_performer
from canal.model.storage import read_weights

TIME_LIMIT = 600.0
"""Seconds that the reading process may take; a checkpoint with its optimiser's state takes a few."""

SAME = 1e-6
"""Two gene vectors that differ by less are the same: float32 keeps no more."""


def read_published(checkpoint: Path, genes: Sequence[str], limit: float = TIME_LIMIT) -> Backbone:
    """Return the backbone that a checkpoint of scBERT's layout holds.

    A pickle can run code, so this process never opens it: another one reads tensors alone, checks them and
    hands over safetensors and JSON, which are checked again.

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
        raise ModelError(f"{checkpoint} not found; give the path of a checkpoint")
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

    They never replace the backbone's: its blocks were trained on top of the rows that it brings, so other
    rows could only make it worse. What they are good for is proof: vectors found by symbol show that the list
    of genes is in the order of the rows.

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
    from canal.model.published_reader import ANSWER

    # -P: a file called torch.py in the working directory must not be taken for torch.
    reader = (sys.executable, "-P", "-m", "canal.model.published_reader")
    command = [*reader, str(checkpoint.resolve()), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{checkpoint}: reading it took more than {limit:g} s and was ended") from error
    if done.returncode or not (folder / ANSWER).is_file():
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(
            f"{checkpoint}: the process that reads it died with exit code {done.returncode} ({said[:300]}); "
            "nothing was imported. Is there enough memory?"
        )
    answer: dict[str, Any] = read_json(folder / ANSWER)
    return answer
