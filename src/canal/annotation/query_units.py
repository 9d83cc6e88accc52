"""What units a query's values are in, when its user did not say; and whether they can be what he said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix

from canal.annotation.query import Query
from canal.config.sections import Values
from canal.core.errors import DataError
from canal.data.units import (
    BASES,
    MAX_TOTAL,
    NATURAL,
    PER_TEN_THOUSAND,
    Finding,
    Logs,
    judge_values,
    named,
    undo,
)
from canal.io.arrays import listed
from canal.io.blocks import ByCell, ByEntries

Wish = Literal["auto", "counts", "log1p_10k", "log2p_10k"]
AUTO = "auto"
WISHES: tuple[str, ...] = get_args(Wish)

_OFF = 0.05
"""How far a cell's sum may lie from the depth once it is settled."""
_NEAR = 0.02
"""How far a value may lie from a whole number where all are whole once a logarithm is undone."""
_LARGEST_TOLD = 1e12
_LOGS: dict[Values, Logs] = {values: (base,) for values, base in BASES.items()}
_PLAIN = {logs: values for values, logs in _LOGS.items()}


@dataclass(frozen=True)
class Units:
    """What a query's values are.

    Attributes
    ----------
    values : Values
        What they are once ``logs`` are undone.
    depth : float
        What each cell sums to once the logarithm is undone; 10,000 unless all cells share another sum.
    strict : bool
        Whether every value must be a whole number: they were taken for counts because some are.
    doubts : tuple of str
    logs : tuple of float
        Logarithms that are undone before anything else; see `converted`.
    """

    values: Values
    depth: float
    strict: bool
    doubts: tuple[str, ...]
    logs: Logs = ()

    def converted(self, query: Query) -> Query:
        """Return the query in the units of ``values``, its logarithms undone where it holds other ones."""
        if not self.logs:
            return query
        if isinstance(query.matrix, ByEntries):
            return replace(query, matrix=_UndoneByEntries(query.matrix, self))
        return replace(query, matrix=_UndoneByCell(query.matrix, self))

    def plain(self, data: np.ndarray) -> np.ndarray:
        """Return values of the file, float32, in the units of ``values``."""
        undone = undo(data, self.logs)
        if self.values != "counts":
            undone = np.log2(1 + undone)
        elif self.strict:
            whole = np.rint(undone)
            # What is no whole number stays as it is, for `check_block` to find.
            undone = np.where(np.abs(undone - whole) <= _NEAR * np.maximum(1, whole / 100), whole, undone)
        plain: np.ndarray = undone.astype(np.float32)
        return plain

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
        return data.astype(np.float64) if self.values == "counts" else undo(data, _LOGS[self.values])


class _UndoneByCell:
    """A matrix whose logarithms are undone as it is read."""

    def __init__(self, matrix: ByCell, units: Units) -> None:
        self._matrix, self._units, self.shape = matrix, units, matrix.shape

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return cells ``start`` to ``stop`` as float32 CSR."""
        block = self._matrix.rows(start, stop)
        return csr_matrix((self._units.plain(block.data), block.indices, block.indptr), shape=block.shape)


class _UndoneByEntries:
    """The same of a matrix whose cells do not lie together."""

    def __init__(self, matrix: ByEntries, units: Units) -> None:
        self._matrix, self._units, self.shape = matrix, units, matrix.shape

    @property
    def n_stored(self) -> int:
        """Number of stored values."""
        return self._matrix.n_stored

    def entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (cells, genes, float32 values) of the stored values."""
        for cells, genes, data in self._matrix.entries():
            yield cells, genes, self._units.plain(data)


def find_units(query: Query, wish: str) -> Units:
    """Return the units of a query, the depth its cells were scaled to, and what is doubtful about them.

    `canal.data.units.judge_values` tells what the values are, by whole rows; docs/annotate.md has the table
    of what is then decided. What can be converted exactly is converted, with a note; what can only be
    guessed is refused, or taken with a warning where nothing speaks against it.

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
    if negative := int((sample.data < 0).sum()):
        raise DataError(
            f"{query.name}: {query.layer} holds {negative} negative values in "
            f"{sample.shape[0]} cells, so it was scaled or centred and expression cannot be read from it: "
            f"{_way_out(query)}"
        )
    if unsound:
        return Units(_typed(wish), PER_TEN_THOUSAND, False, ())
    finding = judge_values(sample)
    return _told(query, sample, finding) if wish == AUTO else _wished(query, wish, finding)


def _told(query: Query, sample: csr_matrix, finding: Finding) -> Units:
    """Return the units that the values tell of; raises `DataError` if they tell of none."""
    if finding.kind == "counts":
        return Units("counts", PER_TEN_THOUSAND, True, ())
    if finding.kind == "log_of_counts":
        note = f"{finding.told}: the values were taken for logarithms of counts and undone, which is exact"
        return Units("counts", PER_TEN_THOUSAND, True, (note,), finding.logs)
    if finding.kind in ("one_depth", "depths", "multiples"):
        return _scaled_counts(finding)
    if finding.kind == "unproven":
        return _guessed(query, sample, finding)
    if finding.kind == "beyond":
        raise _beyond(query)
    why = {
        "zeros": f"{query.layer} is zero in all {sample.shape[0]} cells looked at",
        "binary": f"in {query.layer} {finding.told}, so expression cannot be read from it",
        "mixed": f"{query.layer} mixes units: {finding.told}",
    }
    raise _refusal(query, why[finding.kind], finding)


def _scaled_counts(finding: Finding) -> Units:
    """Return the units of counts that were scaled, with a logarithm or without, and how to convert them."""
    values, logs, notes = _PLAIN.get(finding.logs), finding.logs, []
    if finding.kind == "multiples" and values:
        if finding.low:
            notes.append(
                f"{finding.told_totals}: right if genes were left out of the file after the counts were "
                "scaled to 10,000; if none were, they were scaled to something else (scran, scater, a "
                "median), and labels are less certain: give counts, or name the units with --values"
            )
        return Units(values, PER_TEN_THOUSAND, False, tuple(notes))
    if finding.kind == "one_depth" and values:
        return Units(values, finding.depth or PER_TEN_THOUSAND, False, _told_depth(finding))
    if finding.kind == "one_depth" and not logs:
        note = (
            f"the values are no whole numbers, but {finding.told}: they were taken as "
            "counts scaled to that total, without a logarithm"
        )
    elif finding.kind == "multiples" and not logs:
        note = (
            f"the values are no whole numbers, but {finding.told}: they were taken as counts that were scaled"
        )
    elif finding.kind == "depths":
        note = (
            f"{finding.told}: samples were scaled to totals of their own; every cell was scaled to 10,000, "
            "which is exact"
        )
    else:
        note = f"{finding.told}: {named(logs)} was undone, which is exact"
    if finding.kind == "multiples" and logs:
        return Units("log2p_10k", PER_TEN_THOUSAND, False, (note,), logs)
    return Units("counts", PER_TEN_THOUSAND, False, (note,), logs)


def _guessed(query: Query, sample: csr_matrix, finding: Finding) -> Units:
    """Return the base by what sums allow, with a warning; raises `DataError` where sums speak against it."""
    if finding.total > MAX_TOTAL or float(_totals(sample, finding.logs).max()) > MAX_TOTAL:
        raise _beyond(query)
    values = _PLAIN[finding.logs]
    if finding.dense:
        raise _refusal(
            query,
            f"{query.layer} has hardly a value of 0 over {finding.genes:,} genes, and {finding.told}: these "
            "are no counts and no logarithms of counts (imputed, corrected or random values)",
            finding,
        )
    if finding.too_low:
        raise _refusal(query, f"{finding.told}, and {finding.told_totals}", finding)
    note = (
        f"it cannot be proven what {query.layer} holds: {finding.told}; it was taken as {values}, whose "
        f"cells sum to at most 10,000 (here {finding.total:,.0f} in the median), as after a correction"
    )
    return Units(values, PER_TEN_THOUSAND, False, (note,))


def _wished(query: Query, wish: str, finding: Finding) -> Units:
    """Return the units that were asked for, with what speaks against them."""
    if finding.kind == "counts" and wish != "counts":
        raise DataError(
            f"{query.name}: the values of {query.layer} are whole numbers, so they are no logarithms: "
            "use --values counts"
        )
    values, depth = _typed(wish), PER_TEN_THOUSAND
    doubts: list[str] = []
    right = values in BASES and finding.logs == _LOGS[values] and finding.kind in ("one_depth", "multiples")
    if right and finding.kind == "one_depth":
        depth = finding.depth or depth
        doubts += _told_depth(finding)
    elif values == "counts" and finding.kind in ("one_depth", "depths", "multiples") and not finding.logs:
        doubts.append(f"the values are no whole numbers, but {finding.told}: they were taken as counts")
    elif not right and finding.kind not in ("counts", "zeros", "unproven"):
        like = _PLAIN.get(finding.logs) if finding.kind in ("one_depth", "multiples") else None
        doubts.append(
            f"the values were taken as {values}, but {f'look like {like}: ' if like else ''}{finding.told}"
        )
    return Units(values, depth, False, tuple(doubts))


def _typed(wish: str) -> Values:
    return next(name for name in get_args(Values) if name == wish)


def _told_depth(finding: Finding) -> tuple[str, ...]:
    if finding.depth == PER_TEN_THOUSAND:
        return ()
    return (
        f"every cell sums to {finding.depth:,.0f} once the logarithm is undone, not to 10,000: the counts "
        "were scaled to another total; the values were scaled to 10,000, which is exact",
    )


def _totals(sample: csr_matrix, logs: Logs) -> np.ndarray:
    rows = np.repeat(np.arange(sample.shape[0]), np.diff(sample.indptr))
    return np.bincount(rows, weights=undo(sample.data, logs), minlength=sample.shape[0])


def _refusal(query: Query, why: str, finding: Finding) -> DataError:
    said = "" if finding.kind == "zeros" else "name its units with --values if you know them, or "
    return DataError(f"{query.name}: {why}: {said}{_way_out(query)}")


def _beyond(query: Query) -> DataError:
    most = float(_totals(query.sample, NATURAL).max())
    figure = f"{most:,.0f}" if most < _LARGEST_TOLD else "far more than 10,000"
    return DataError(
        f"{query.name}: the values of {query.layer} are no counts, and no logarithms of counts per "
        f"10,000: with base e a cell has {figure} counts per 10,000. "
        f"Scale counts to 10,000 before the logarithm, say --values counts if these are counts that were "
        f"corrected, or {_way_out(query)}"
    )


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
