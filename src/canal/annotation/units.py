"""What units a query's values are in, when its user did not say; and whether they can be what he said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.query import Query
from canal.config import Values
from canal.data.h5ad_tables import listed
from canal.errors import DataError
from canal.quality.values import BASES, MAX_TOTAL, PER_TEN_THOUSAND, looks_like

Wish = Literal["auto", "counts", "log1p_10k", "log2p_10k"]
AUTO = "auto"
WISHES: tuple[str, ...] = get_args(Wish)

_SAME_TOTAL = 0.01
"""How far sums may lie apart to count as one depth, of their median."""
_OFF = 0.05
"""How far a cell's sum may lie from the depth once it is settled."""
_ENOUGH = 5
"""Cells that must share a sum before it says anything."""


@dataclass(frozen=True)
class Units:
    """What a query's values are.

    Attributes
    ----------
    values : Values
    depth : float
        What each cell sums to once the logarithm is undone; 10,000 unless all cells share another sum.
    strict : bool
        Whether every value must be a whole number: they were taken for counts because some are.
    doubts : tuple of str
    """

    values: Values
    depth: float
    strict: bool
    doubts: tuple[str, ...]

    def scaled(self, query: Query, block: csr_matrix, totals: np.ndarray, start: int) -> csr_matrix:
        """Return logarithms of another depth as those of counts per 10,000, which is exact; else the block.

        Raises
        ------
        DataError
            If a cell with values does not sum to the depth that all cells looked at share.
        """
        if self.depth == PER_TEN_THOUSAND:
            return block
        off = np.flatnonzero((totals > 0) & (np.abs(totals - self.depth) > _OFF * self.depth))
        if off.size:
            raise DataError(
                f"{query.name}: the cells looked at first sum to {self.depth:,.0f} once the logarithm of "
                f"{query.layer} is undone, but {off.size} others do not, the first being cell "
                f"{start + off[0]} (counted from 0) with {_figure(totals[off[0]])}: {_way_out(query)}"
            )
        base = np.log(BASES[self.values])
        data = block.data.astype(np.float64)
        data = np.log1p(np.expm1(data * base) * (PER_TEN_THOUSAND / self.depth)) / base
        return csr_matrix((data.astype(np.float32), block.indices, block.indptr), shape=block.shape)

    def undone(self, data: np.ndarray) -> np.ndarray:
        """Return logarithms undone, float64; counts as they are."""
        return data.astype(np.float64) if self.values == "counts" else _undone(data, self.values)


def find_units(query: Query, wish: str) -> Units:
    """Return the units of a query, the depth its cells were scaled to, and what is doubtful about them.

    Raises
    ------
    DataError
        As `find_values`.
    """
    values, doubts = find_values(query, wish)
    depth = PER_TEN_THOUSAND if values == "counts" else _depth(query.sample, values) or PER_TEN_THOUSAND
    strict = values == "counts" and wish == AUTO and looks_like(query.sample) == "counts"
    return Units(values, depth, strict, tuple(doubts))


def find_values(query: Query, wish: str) -> tuple[Values, list[str]]:
    """Return the units of a query and what is doubtful about them.

    Whole numbers are counts. Logarithms are told by their base: undone with the right one, a cell's values
    are whole multiples of its smallest, or all cells sum to one depth. Where that does not tell, the base is
    the one (e before 2) that leaves every cell at most 10,000 counts per 10,000. Values that sum to one depth
    as they are were scaled without a logarithm; like counts, they are scaled to 10,000.

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
    sample = query.sample
    if (unsound := int((~np.isfinite(sample.data)).sum())) and wish == AUTO:
        raise DataError(
            f"{query.name}: {unsound} values of {query.layer} in {sample.shape[0]} cells are no finite "
            f"number: {_way_out(query)}"
        )
    seen = looks_like(sample)
    if seen == "scaled":
        raise DataError(
            f"{query.name}: {query.layer} holds {int((sample.data < 0).sum())} negative values in "
            f"{sample.shape[0]} cells, so it was scaled or centred and expression cannot be read from it: "
            f"{_way_out(query)}"
        )
    values = _told(query, sample, seen) if wish == AUTO else _checked(query, wish, seen)
    return values, _doubts(sample, values, seen)


def _told(query: Query, sample: csr_matrix, seen: str | None) -> Values:
    """Return the units by what the values look like, or by what their sums allow."""
    if seen == "counts":
        return "counts"
    if seen in BASES:
        return "log1p_10k" if seen == "log1p_10k" else "log2p_10k"
    for name in BASES:
        if _depth(sample, name) and seen in (None, name.removesuffix("_10k")):
            return name
    if not sample.nnz:
        raise DataError(
            f"{query.name}: {query.layer} is zero in all {sample.shape[0]} cells looked at: {_way_out(query)}"
        )
    if _same(_sums(sample)) is not None and seen is None:
        return "counts"
    fits = [name for name in BASES if seen is None and _totals(sample, name).max() <= MAX_TOTAL]
    if not fits:
        raise DataError(
            f"{query.name}: the values of {query.layer} are no counts, and no logarithms of counts per "
            f"10,000: with base e a cell has {_figure(_totals(sample, 'log1p_10k').max())} counts per "
            f"10,000. Scale counts to 10,000 before the logarithm, say --values counts if these are "
            f"counts that were corrected, or {_way_out(query)}"
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
    if values in BASES and (depth := _depth(sample, values)) and depth != PER_TEN_THOUSAND:
        doubts.append(
            f"every cell sums to {depth:,.0f} once the logarithm is undone, not to 10,000: the counts were "
            "scaled to another total; the values were scaled to 10,000, which is exact"
        )
    if values == "counts" and seen is None and (depth := _same(_sums(sample))):
        doubts.append(
            f"the values are no whole numbers, but every cell sums to {depth:,.0f}: they were taken as "
            "counts scaled to that total, without a logarithm"
        )
    return doubts


def _depth(sample: csr_matrix, values: Values) -> float | None:
    """Return what all cells sum to once the logarithm is undone, None where they differ.

    They differ, too, where genes were dropped after the scaling: such values are taken as they are.
    """
    return _same(_totals(sample, values))


def _same(totals: np.ndarray) -> float | None:
    totals = totals[totals > 0]
    if len(totals) < _ENOUGH or not np.isfinite(totals).all():
        return None
    middle = float(np.median(totals))
    if float(np.ptp(totals)) > _SAME_TOTAL * middle:
        return None
    whole = 10.0 ** round(np.log10(middle))
    return whole if abs(middle - whole) <= _SAME_TOTAL * whole else middle


def _sums(sample: csr_matrix) -> np.ndarray:
    sums: np.ndarray = np.asarray(sample.sum(axis=1, dtype=np.float64)).ravel()
    return sums


def _totals(sample: csr_matrix, values: Values) -> np.ndarray:
    """Return each cell's counts per 10,000 in all, the logarithm undone."""
    rows = np.repeat(np.arange(sample.shape[0]), np.diff(sample.indptr))
    return np.bincount(rows, weights=_undone(sample.data, values), minlength=sample.shape[0])


def _undone(data: np.ndarray, values: Values) -> np.ndarray:
    with np.errstate(over="ignore"):
        undone: np.ndarray = np.expm1(data.astype(np.float64) * np.log(BASES[values]))
    return undone


def check_block(query: Query, block: csr_matrix, start: int, whole: bool) -> None:
    """Raise unless every value of cells ``start`` … is finite, not negative and, where ``whole``, whole.

    Raises
    ------
    DataError
        Naming the first cell (by position) with such a value, and how many values there are.
    """
    if not _sound(block.data, whole):
        check_entries(
            query, start + np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)), block.data, whole
        )


def check_entries(query: Query, cells: np.ndarray, values: np.ndarray, whole: bool) -> None:
    """Raise as `check_block` does; ``cells`` are the positions of the values' cells."""
    if _sound(values, whole):
        return
    problems: Sequence[tuple[str, np.ndarray]] = (
        ("no finite number", ~np.isfinite(values)),
        ("negative", values < 0),
        ("no whole number, where cells looked at first hold counts", values != np.rint(values)),
    )
    for what, wrong in problems if whole else problems[:2]:
        if wrong.any():
            raise DataError(
                f"{query.name}: {int(wrong.sum())} values of {query.layer} are {what}, the first in cell "
                f"{cells[wrong].min()} (counted from 0): {_way_out(query)}"
            )


def _sound(values: np.ndarray, whole: bool) -> bool:
    sound = bool(np.isfinite(values).all()) and not bool((values < 0).any())
    return sound and not (whole and bool((values != np.rint(values)).any()))


def _figure(value: float) -> str:
    """Return a number as a person reads it: values that are no logarithms undo to 150 digits."""
    return (
        f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.0e}" if np.isfinite(value) else "infinitely many"
    )


def _way_out(query: Query) -> str:
    others = [name for name in query.layers if name != query.layer]
    if others:
        raw = " (for raw: --use-raw)" if "raw" in others else ""
        return (
            f"name a matrix of counts or plain logarithms with --layer; there are also {listed(others)}{raw}"
        )
    return "the file has no other matrix, so export it again with counts"
