"""Convert values to expression, log2(1 + counts per 10,000), align them to genes, and tokenize them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from canal.core.errors import DataError

if TYPE_CHECKING:
    from canal.config.sections import Values

SCALE = 1e4
LOG_OF_2 = float.fromhex("0x1.62e42fefa39efp-1")
"""The natural logarithm of 2, the same on every machine."""

_BELOW = (1 << 29) - 1
"""The bits of a float64 that a float32 lacks (for normal numbers)."""
_MIDDLE = 1 << 28
"""The value of these bits halfway between two float32 numbers."""
_DOUBT = 16
"""Largest error of a machine's logarithm in units of float64's last place; usually 1 to 4."""
_EXACT = Context(prec=60, Emax=10**6, Emin=-(10**6))


def to_expression(matrix: csr_matrix, values: Values, totals: np.ndarray | None = None) -> csr_matrix:
    """Return ``matrix`` (n_cells, n_genes) as expression, float32 log2(1 + counts per 10,000).

    Parameters
    ----------
    matrix
        *All* genes of the file, unless ``totals`` are given.
    values
        The units of ``matrix``. Logarithms are taken as they are, for their file may have lost genes since.
    totals
        The divisor of each cell's counts, ``(n_cells,)``; by default their sum.
    """
    data = matrix.data.astype(np.float64)
    if values == "counts":
        if totals is None:
            totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        per_value = np.repeat(totals, np.diff(matrix.indptr))
        with np.errstate(divide="ignore", invalid="ignore"):
            data = log2_single(1.0 + data * SCALE / per_value)
    elif values == "log1p_10k":
        data = data / LOG_OF_2
    return csr_matrix((data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def log2_single(values: np.ndarray) -> np.ndarray:
    """Return log2 of float64 values as float32, rounded correctly: the same on every machine.

    Libraries differ in the last bits of a float64 logarithm. They matter only where it lies in the middle
    between two numbers of float32, which one in some ten million does: there, it is computed anew in decimal
    numbers of 60 digits.
    """
    logs = np.log2(values)
    single: np.ndarray = logs.astype(np.float32)
    below = (logs.view(np.int64) + (_DOUBT - _MIDDLE)) & _BELOW
    for i in np.flatnonzero(below <= 2 * _DOUBT):
        single[i] = _rounded(float(values[i]), float(logs[i]))
    return single


def _rounded(value: float, near: float) -> np.float32:
    """Return the float32 next to log2 of ``value``, which lies ``near`` the middle between two of them."""
    if not np.isfinite(near) or value <= 0:
        return np.float32(near)
    bits = np.array(near).view(np.int64)
    middle = ((bits & ~_BELOW) | _MIDDLE).view(np.float64)
    exact = _EXACT.divide(_EXACT.ln(Decimal(value)), _EXACT.ln(Decimal(2)))
    beyond = np.inf if exact > Decimal(float(middle)) else -np.inf
    return np.float32(np.nextafter(middle, beyond))


def align(matrix: csr_matrix, own: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return ``matrix`` (n, len(own)) dense with the columns ``wanted``; a gene it lacks is zero."""
    column = {gene: i for i, gene in enumerate(own)}
    known = [i for i, gene in enumerate(wanted) if gene in column]
    result = np.zeros((matrix.shape[0], len(wanted)), dtype=np.float32)
    result[:, known] = matrix[:, [column[wanted[i]] for i in known]].toarray()
    return result


# Tokens: expression in six levels, as the network reads it (scBERT, Yang et al. 2022).

MAX_TOKEN = 5
MASK_TOKEN = 6
N_TOKENS = 7
"""Six levels of expression and one token for what is masked."""


def tokenize(expression: np.ndarray) -> np.ndarray:
    """Return min(floor(expression), 5) as uint8, of the same shape.

    Raises
    ------
    DataError
        If a value is negative or not a number.
    """
    wrong = ~(expression >= 0)  # NaN is not >= 0 either
    if wrong.any():
        raise DataError(
            f"expression must be >= 0, found {int(wrong.sum())} other value(s), "
            f"such as {expression[wrong][0]}: check the source's declared values"
        )
    tokens: np.ndarray = np.minimum(expression, MAX_TOKEN).astype(np.uint8)
    return tokens
