"""From a source's own units to expression, log2(1 + counts per 10,000), and onto a list of genes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from canal.config import Values

SCALE = 1e4


def to_expression(matrix: csr_matrix, values: Values, totals: np.ndarray | None = None) -> csr_matrix:
    """Return ``matrix`` (n_cells, n_genes) as expression, float32 log2(1 + counts per 10,000).

    Parameters
    ----------
    matrix
        *All* genes of the file, unless ``totals`` are given.
    values
        The units of ``matrix``. Logarithms are taken as they are, for their file may have lost genes since.
    totals
        What each cell's counts are scaled by, ``(n_cells,)``; by default their sum.
    """
    data = matrix.data.astype(np.float64)
    if values == "counts":
        if totals is None:
            totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        per_value = np.repeat(totals, np.diff(matrix.indptr))
        with np.errstate(divide="ignore", invalid="ignore"):
            data = np.log2(1.0 + data * SCALE / per_value)
    elif values == "log1p_10k":
        data = data / math.log(2)
    return csr_matrix((data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def align(matrix: csr_matrix, own: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return ``matrix`` (n, len(own)) dense with the columns ``wanted``; a gene it lacks is zero."""
    column = {gene: i for i, gene in enumerate(own)}
    known = [i for i, gene in enumerate(wanted) if gene in column]
    result = np.zeros((matrix.shape[0], len(wanted)), dtype=np.float32)
    result[:, known] = matrix[:, [column[wanted[i]] for i in known]].toarray()
    return result
