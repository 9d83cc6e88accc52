"""What units a query's values are in, when its user did not say; and whether they can be what he said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix, vstack

from canal.annotation.query import Query
from canal.config import Values
from canal.data.h5ad_tables import listed
from canal.errors import DataError
from canal.quality.values import BASES, MAX_TOTAL, PER_TEN_THOUSAND, looks_like

Wish = Literal["auto", "counts", "log1p_10k", "log2p_10k"]
AUTO = "auto"
WISHES: tuple[str, ...] = get_args(Wish)

_BLOCKS = 5
_BLOCK_CELLS = 40
_SAME_TOTAL = 0.01


def find_values(query: Query, wish: str) -> tuple[Values, list[str]]:
    """Return the units of a query and what is doubtful about them.

    Whole numbers are counts. Logarithms are told by their base: undone with the right one, a cell's values
    are whole multiples of its smallest. Where that does not tell, the base is the one (e before 2) that
    leaves every cell at most 10,000 counts per 10,000.

    Parameters
    ----------
    query
        Up to 200 of its cells, evenly spread, are looked at.
    wish
        One of `WISHES`; anything but ``auto`` is taken as it is unless the values contradict it.

    Raises
    ------
    DataError
        If the wish is unknown, there are negative or no values, or no known units fit.
    """
    if wish not in WISHES:
        raise DataError(f"values must be one of {', '.join(WISHES)}, found {wish!r}")
    sample = _sample(query)
    seen = looks_like(sample)
    if seen == "scaled":
        raise DataError(
            f"{query.name}: {query.layer} holds {int((sample.data < 0).sum())} negative values in "
            f"{sample.shape[0]} cells, so it was scaled or centred and expression cannot be read from it: "
            f"{_way_out(query)}"
        )
    values = _told(query, sample, seen) if wish == AUTO else _checked(query, wish, seen)
    return values, _doubts(sample, values, seen)


def _sample(query: Query) -> csr_matrix:
    size = min(_BLOCK_CELLS, query.n_cells)
    starts = np.unique(np.linspace(0, query.n_cells - size, _BLOCKS).astype(np.int64)).tolist()
    sample = csr_matrix(vstack([query.matrix.rows(start, start + size) for start in starts]))
    sample.eliminate_zeros()
    return sample


def _told(query: Query, sample: csr_matrix, seen: str | None) -> Values:
    """Return the units by what the values look like, or by what their sums allow."""
    if seen == "counts":
        return "counts"
    if seen in BASES:
        return "log1p_10k" if seen == "log1p_10k" else "log2p_10k"
    if not sample.nnz:
        raise DataError(
            f"{query.name}: {query.layer} is zero in all {sample.shape[0]} cells looked at: {_way_out(query)}"
        )
    fits = [name for name in BASES if seen is None and _totals(sample, name).max() <= MAX_TOTAL]
    if not fits:
        raise DataError(
            f"{query.name}: the values of {query.layer} are no counts, and no logarithms of counts per "
            f"10,000: with base e a cell has {_totals(sample, 'log1p_10k').max():,.0f} counts per 10,000. "
            f"Scale counts to 10,000 before the logarithm, or {_way_out(query)}"
        )
    return fits[0]


def _checked(query: Query, wish: str, seen: str | None) -> Values:
    """Return the wish, typed, unless whole numbers are said to be logarithms."""
    if seen == "counts" and wish != "counts":
        raise DataError(
            f"{query.name}: the values of {query.layer} are whole numbers, so they are no logarithms: "
            "use --values counts"
        )
    return next(name for name in get_args(Values) if name == wish)


def _doubts(sample: csr_matrix, values: Values, seen: str | None) -> list[str]:
    doubts = []
    if seen not in (None, "counts", values):
        doubts.append(f"the values were taken as {values}, but look like {seen}")
    if values in BASES and sample.nnz:
        totals = _totals(sample, values)
        middle = float(np.median(totals))
        same = float(np.ptp(totals)) <= _SAME_TOTAL * middle
        if same and sample.shape[0] > 1 and abs(middle - PER_TEN_THOUSAND) > _SAME_TOTAL * PER_TEN_THOUSAND:
            doubts.append(
                f"every cell sums to {middle:,.0f} once the logarithm is undone, not to 10,000: the counts "
                "seem scaled to another total, which shifts every value; better annotate the counts"
            )
    return doubts


def _totals(sample: csr_matrix, values: Values) -> np.ndarray:
    """Return each cell's counts per 10,000 in all, the logarithm undone."""
    with np.errstate(over="ignore"):
        data = np.expm1(sample.data.astype(np.float64) * np.log(BASES[values]))
    rows = np.repeat(np.arange(sample.shape[0]), np.diff(sample.indptr))
    return np.bincount(rows, weights=data, minlength=sample.shape[0])


def check_block(query: Query, block: csr_matrix, start: int, whole: bool) -> None:
    """Raise unless every value is finite and not negative and, where ``whole``, a whole number.

    Raises
    ------
    DataError
        Naming the first cell (by position) with such a value, and how many values there are.
    """
    data = block.data
    problems: Sequence[tuple[str, np.ndarray]] = (
        ("no finite number", ~np.isfinite(data)),
        ("negative", data < 0),
        ("no whole number, where cells looked at first hold counts", data != np.rint(data)),
    )
    for what, wrong in problems if whole else problems[:2]:
        if wrong.any():
            row = start + int(np.searchsorted(block.indptr, np.flatnonzero(wrong)[0], side="right")) - 1
            raise DataError(
                f"{query.name}: {int(wrong.sum())} values of {query.layer} are {what}, the first in cell "
                f"{row} (counted from 0): {_way_out(query)}"
            )


def _way_out(query: Query) -> str:
    others = [name for name in query.layers if name != query.layer]
    if others:
        return f"name a matrix of counts or plain logarithms with --layer; there are also {listed(others)}"
    return "the file has no other matrix, so export it again with counts"
