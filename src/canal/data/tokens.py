"""Tokens: expression in six levels, as the network reads it (scBERT, Yang et al. 2022)."""

import numpy as np

from canal.core.errors import DataError

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
