"""Fixed gene embeddings: from co-expression in training cells, or from a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from canal.core.errors import DataError

_SMALLEST = 1e-6
_RIDGE = 0.1


def embed_genes(expression: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return gene embeddings by truncated SVD, float32 ``(n_genes, dim)``: genes of like course lie together.

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
    So a new gene's vector is the one whose inner products with the known genes' vectors come nearest to its
    correlations with them (ridge regression), the constant being that of the known genes among themselves. It
    needs no space of its own to be turned into the old one, and an embedding from a file will do as well.

    Parameters
    ----------
    expression
        Training cells of the stage that adds the genes, ``(n_cells, n_genes + n_new)``: known genes first.
    embedding
        Vectors of the known genes, ``(n_genes, dim)``.

    Returns
    -------
    numpy.ndarray
        None longer than the longest known vector; zeros for a gene that does not vary.
    """
    n_known = len(embedding)
    values = _standardised(expression)
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


def _standardised(expression: np.ndarray) -> np.ndarray:
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
