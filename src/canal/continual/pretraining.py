"""Pre-train the backbone by masked expression (scBERT, Yang et al. 2022): predict the level of masked genes.

Its gene embeddings are fixed before: from co-expression in training cells, or from a file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from canal.config.sections import Backbone as BackboneSettings
from canal.continual.fit import Epoch, Fit, Hooks, generator, groups_of, shared, sum_gradients
from canal.continual.processes import Share
from canal.core.digests import json_digest
from canal.core.errors import DataError, TrainingError
from canal.core.progress import counted, doing
from canal.data.expression import MASK_TOKEN, tokenize
from canal.model.backbone import Backbone, Performer, new_performer
from canal.model.compute import in_threads, precision
from canal.model.storage import BackboneConfig, weights_digest

HISTORY_FORMAT = 1
_SMALLEST = 1e-6
_RIDGE = 0.1
_MASKED_CELLS = 4096


@dataclass(frozen=True, eq=False)
class Corpus:
    """Cells and genes that a backbone is pretrained on; labels are not used.

    Attributes
    ----------
    panel : tuple of str
        Genes that training sees; all are in ``vocabulary``.
    train, held_out : numpy.ndarray
        Expression ``(n_cells, len(panel))``, or its tokens, which take a quarter of the memory; the masked
        loss of the held-out cells ends the training.
    vocabulary : tuple of str
        Genes the backbone has embeddings of.
    gene_embedding : numpy.ndarray
        float32 ``(len(vocabulary), dim)``.

    Raises
    ------
    TrainingError
        If shapes do not fit, a set is empty, or a panel gene is not in the vocabulary.
    """

    panel: tuple[str, ...]
    train: np.ndarray
    held_out: np.ndarray
    vocabulary: tuple[str, ...]
    gene_embedding: np.ndarray

    def __post_init__(self) -> None:
        for name, matrix in (("train", self.train), ("held_out", self.held_out)):
            if matrix.ndim != 2 or not len(matrix) or matrix.shape[1] != len(self.panel):
                raise TrainingError(
                    f"pre-training needs {name} cells of {len(self.panel)} panel genes, found {matrix.shape}"
                )
        if self.gene_embedding.ndim != 2 or len(self.gene_embedding) != len(self.vocabulary):
            raise TrainingError(
                f"the gene embedding needs a row for each of the {len(self.vocabulary)} vocabulary genes, "
                f"found shape {self.gene_embedding.shape}"
            )
        if missing := sorted(set(self.panel) - set(self.vocabulary)):
            raise TrainingError(
                f"{len(missing)} panel genes are not in the vocabulary, such as {missing[:5]}"
            )


def pretrain(
    corpus: Corpus, config: BackboneConfig, settings: BackboneSettings, seed: int, hooks: Hooks | None = None
) -> tuple[Backbone, dict[str, Any]]:
    """Return a backbone that predicts masked expression, and the history of its training.

    A share ``settings.mask_share`` of each cell's *expressed* genes is masked, anew in every epoch: zeros,
    two thirds of the panel and more, would teach little. The loss is the cross-entropy of the masked tokens.
    The held-out cells are masked once. Training keeps the epoch of lowest held-out loss and ends after
    ``settings.patience`` epochs without a lower one: a few hundred cells over-fit soon. Several processes
    learn the same, and draw the same masks, as one (`canal.continual.fit.shared`).

    Raises
    ------
    TrainingError
        If the loss stops being finite, or the embedding's width is not the network's.
    """
    if corpus.gene_embedding.shape[1] != config.dim:
        raise TrainingError(
            f"the gene embedding has {corpus.gene_embedding.shape[1]} columns, "
            f"the backbone's dim is {config.dim}"
        )
    random = generator(seed, "backbone")
    embedding = torch.from_numpy(corpus.gene_embedding.astype(np.float32))
    backbone = Backbone(new_performer(config, embedding, random), corpus.vocabulary)
    task = _MaskedTask(backbone.for_panel(corpus.panel), random)
    return shared(
        _pretrain, ((backbone, task), corpus, settings, seed), hooks or Hooks(), settings.batch_size
    )


def _pretrain(
    start: tuple[Backbone, _MaskedTask],
    corpus: Corpus,
    settings: BackboneSettings,
    seed: int,
    hooks: Hooks,
    share: Share,
) -> tuple[Backbone, dict[str, Any]]:
    """Pre-train as one of several processes; see `pretrain`."""
    backbone, task = start if share.size == 1 else deepcopy(start)  # others may start again from it
    task = task.to(hooks.device)
    trained = {name: value for name, value in task.named_parameters() if "pos_emb" not in name}
    for value in trained.values():
        value.requires_grad_(True)
    if idle := share.idle(len(groups_of(torch.arange(settings.batch_size), task.performer, share.size))):
        hooks.on_notice(idle)
    fit = Fit(trained, _merit, hooks, _fingerprint(corpus, settings, seed, task), share)
    with precision(hooks.dtype, hooks.device):
        _train(task, corpus, settings, seed, fit)
    fit.take_best()
    history = {
        "format": HISTORY_FORMAT,
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped(settings.patience, settings.max_epochs),
        "n_train": len(corpus.train),
        "n_held_out": len(corpus.held_out),
    }
    # The trained network reads the panel alone; the embeddings of the whole vocabulary are kept.
    values = task.performer.to("cpu").state_dict()
    values["pos_emb.weight"] = backbone.network.pos_emb.weight.detach()
    backbone.network.load_state_dict(values)
    backbone.network.eval().requires_grad_(False)
    return backbone, history


def mask_expressed(tokens: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Return which tokens ``(cells, genes)`` to mask: each expressed one with probability ``share``.

    Some cells are drawn at a time, so that random numbers take little memory: they are the same ones.
    """
    masked = torch.empty(tokens.shape, dtype=torch.bool)
    for start in range(0, len(tokens), _MASKED_CELLS):
        rows = tokens[start : start + _MASKED_CELLS]
        masked[start : start + len(rows)] = (torch.rand(rows.shape, generator=random) < share) & (rows > 0)
    return masked


class _MaskedTask(nn.Module):
    """The backbone with logits over tokens, which only pre-training needs."""

    def __init__(self, performer: Performer, random: torch.Generator) -> None:
        super().__init__()
        self.performer = performer
        dim, n_tokens = performer.config.dim, performer.config.n_tokens
        with torch.device("meta"):
            self.to_out = nn.Linear(dim, n_tokens)
        self.to_out.to_empty(device="cpu")
        with torch.no_grad():
            self.to_out.weight.normal_(0.0, dim**-0.5, generator=random)
            self.to_out.bias.zero_()

    def forward(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Return the summed cross-entropy of the masked tokens."""
        hidden = self.performer(tokens.masked_fill(masked, MASK_TOKEN))
        logits = self.to_out(hidden[:, :-1][masked])
        return functional.cross_entropy(logits, tokens[masked].long(), reduction="sum")


def _train(task: _MaskedTask, corpus: Corpus, settings: BackboneSettings, seed: int, fit: Fit) -> None:
    """Run epochs until ``fit`` stops the training."""
    train, held_out = _tokens(corpus.train), _tokens(corpus.held_out)
    held_out_mask = mask_expressed(held_out, settings.mask_share, generator(seed, "held-out mask"))
    held_out_groups = groups_of(torch.arange(len(held_out)), task.performer)
    parameters, share = list(fit.parameters.values()), fit.share
    own_held_out = share.part(range(len(held_out_groups)))
    while not fit.stopped(settings.patience, settings.max_epochs):
        number = len(fit.epochs) + 1
        random = generator(seed, "pretraining", number)
        masked = mask_expressed(train, settings.mask_share, random)
        order = torch.randperm(len(train), generator=random)
        loss, weight = 0.0, 0
        with counted(f"epoch {number}: pre-trained on", len(order)) as count:
            for rows in torch.split(order, settings.batch_size):
                if n := int(masked[rows].sum()):

                    def losses(group: Tensor, masked: Tensor = masked, n: int = n) -> Tensor:
                        return (_loss(task, train, masked, group) / n).unsqueeze(0)

                    groups = share.part(groups_of(rows, task.performer, share.size))
                    value = float(sum_gradients(parameters, groups, losses, share))
                    fit.step(value, settings.learning_rate)
                    loss, weight = loss + n * value, weight + n
                count(len(rows))
        record: Epoch = {"epoch": number, "loss": loss / max(weight, 1)}
        with torch.no_grad(), doing(f"epoch {number}: predicting masked genes of held-out cells"):
            losses_of = torch.zeros(len(held_out_groups), dtype=torch.float64)
            losses_of[list(own_held_out)] = torch.tensor(
                in_threads(
                    lambda n: float(_loss(task, held_out, held_out_mask, held_out_groups[n])), own_held_out
                ),
                dtype=torch.float64,
            )
            held_out_loss = sum(share.merged(losses_of).tolist()) / max(int(held_out_mask.sum()), 1)
        fit.end_epoch(record | {"held_out_loss": held_out_loss})


def _tokens(cells: np.ndarray) -> Tensor:
    """Return the tokens of cells; those that are given as tokens are not copied."""
    return torch.from_numpy(cells if cells.dtype == np.uint8 else tokenize(cells))


def _loss(task: _MaskedTask, tokens: Tensor, masked: Tensor, rows: Tensor) -> Tensor:
    """Return the summed cross-entropy of the masked tokens of ``rows``."""
    device = task.to_out.weight.device
    loss: Tensor = task(tokens[rows].to(device), masked[rows].to(device))
    return loss


def _fingerprint(corpus: Corpus, settings: BackboneSettings, seed: int, task: _MaskedTask) -> str:
    tokens = {"train": _tokens(corpus.train), "held_out": _tokens(corpus.held_out)}
    return json_digest(
        {
            "start": weights_digest(task.state_dict()),
            "tokens": weights_digest(tokens),
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "torch": torch.__version__,
        }
    )


def _merit(record: Mapping[str, Any]) -> tuple[float, ...]:
    return (-record["held_out_loss"],)


# Gene embeddings.


def embed_genes(expression: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return gene embeddings by truncated SVD, float32 ``(n_genes, dim)``: co-expressed genes are close.

    Parameters
    ----------
    expression
        Training cells of the first stage, ``(n_cells, n_genes)``, standardised here gene by gene; a constant
        gene gets zeros.
    dim
        Width of the backbone. Where the matrix has fewer directions, the last columns are zeros.
    seed
        Of the randomised SVD; signs are fixed by scikit-learn, so the result repeats.

    Returns
    -------
    numpy.ndarray
        Right singular vectors times singular values, scaled to mean square 1 over the genes that vary.
    """
    from sklearn.decomposition import TruncatedSVD

    embedding = np.zeros((expression.shape[1], dim), dtype=np.float32)
    spread = expression.std(axis=0)
    varying = np.flatnonzero(spread > _SMALLEST)
    if not len(varying):
        return embedding
    values = (expression[:, varying] - expression[:, varying].mean(axis=0)) / spread[varying]
    width = min(dim, *values.shape)
    model = TruncatedSVD(width, algorithm="randomized", n_iter=7, random_state=seed).fit(values)
    directions = (model.components_ * model.singular_values_[:, None]).T
    size = math.sqrt(float(np.mean(directions.astype(np.float64) ** 2)))
    embedding[varying, :width] = directions / size
    return embedding


def place_genes(expression: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Return vectors of genes that an embedding lacks, in its space, float32 ``(n_new, dim)``.

    Of an embedding by `embed_genes`, the inner product of two genes is their correlation, times a constant.
    A new gene's vector is the one whose inner products with the known genes' vectors are closest to its
    correlations with them (ridge regression), the constant being that of the known genes among themselves. No
    rotation between two spaces is needed, and an embedding from a file works as well.

    Parameters
    ----------
    expression
        Training cells of the stage that adds the genes, ``(n_cells, n_genes + n_new)``: known genes first.
    embedding
        Vectors of the known genes, ``(n_genes, dim)``.

    Returns
    -------
    numpy.ndarray
        At most as long as the longest known vector; zeros for a constant gene.
    """
    n_known = len(embedding)
    values = standardised(expression)
    used = np.flatnonzero(values[:, :n_known].any(axis=0))
    vectors = embedding[used].astype(np.float64)
    known, new = values[:, used], values[:, n_known:]
    among = known.T @ known / max(1, len(values))
    size = float(np.sum(among**2))
    square = vectors.T @ vectors
    if size == 0 or not square.any():
        return np.zeros((new.shape[1], embedding.shape[1]), dtype=np.float32)
    constant = float(np.sum((vectors @ vectors.T) * among)) / size
    wanted = constant * (known.T @ new) / len(values)
    ridge = _RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    placed = np.linalg.solve(square + ridge, vectors.T @ wanted).T
    longest = float(np.linalg.norm(vectors, axis=1).max())
    lengths = np.maximum(np.linalg.norm(placed, axis=1, keepdims=True), _SMALLEST)
    result: np.ndarray = (placed * np.minimum(1.0, longest / lengths)).astype(np.float32)
    return result


def read_gene_embedding(path: Path, genes: Sequence[str], dim: int) -> tuple[np.ndarray, int]:
    """Return embeddings ``(len(genes), dim)`` float32 from a file, and how many genes it lacks.

    Parameters
    ----------
    path
        .csv (commas) or .tsv (tabs): a symbol and ``dim`` numbers a line; a first line of names is skipped.
    genes
        The vocabulary. A gene that the file lacks gets zeros.

    Raises
    ------
    DataError
        If the file is missing or of another kind, a line is not a symbol and ``dim`` finite numbers, a
        symbol occurs twice, or no gene of the vocabulary is found.
    """
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    if delimiter is None or not path.is_file():
        raise DataError(f"{path}: expected an existing .csv or .tsv file of gene embeddings")
    wanted = {gene: i for i, gene in enumerate(genes)}
    values = np.zeros((len(genes), dim), dtype=np.float32)
    seen: set[str] = set()
    with path.open(encoding="utf-8", newline="") as stream:
        for number, symbol, row in _rows(path, csv.reader(stream, delimiter=delimiter), dim):
            if symbol in seen:
                raise DataError(f"{path}, line {number}: {symbol} occurs twice")
            seen.add(symbol)
            if symbol in wanted:
                values[wanted[symbol]] = row
    missing = len(wanted.keys() - seen)
    if missing == len(genes):
        raise DataError(f"{path}: none of its {len(seen)} genes is among the {len(genes)} of the vocabulary")
    return values, missing


def standardised(expression: np.ndarray) -> np.ndarray:
    """Return expression with mean 0 and variance 1 gene by gene, float64; a constant gene is zeros."""
    values = expression.astype(np.float64) - expression.mean(axis=0, dtype=np.float64)
    spread = values.std(axis=0)
    varies = spread > _SMALLEST
    result: np.ndarray = np.where(varies, values / np.where(varies, spread, 1.0), 0.0)
    return result


def _rows(path: Path, lines: Iterable[list[str]], dim: int) -> Iterable[tuple[int, str, list[float]]]:
    """Yield line number, symbol and numbers, leaving out a first line of names and empty lines."""
    for number, cells in enumerate(lines, start=1):
        if not cells:
            continue
        try:
            row = [float(cell) for cell in cells[1:]]
        except ValueError as error:
            if number == 1:
                continue
            raise DataError(f"{path}, line {number}: {error}") from error
        if len(row) != dim or not all(math.isfinite(value) for value in row):
            raise DataError(
                f"{path}, line {number}: expected a symbol and {dim} finite numbers (the backbone's dim), "
                f"found {len(row)} numbers"
            )
        yield number, cells[0], row
