"""Detect the units of a query's values, or check the units that the user gave against the values."""

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

UnitsOption = Literal["auto", "counts", "log1p_10k", "log2p_10k"]
AUTO = "auto"
UNITS_OPTIONS: tuple[str, ...] = get_args(UnitsOption)

_OFF = 0.05
"""Relative deviation of a cell's sum from the detected depth that is tolerated."""
_NEAR = 0.02
"""Deviation from a whole number that is tolerated once a logarithm is undone."""
_LARGEST_TOLD = 1e12
_LOGS: dict[Values, Logs] = {values: (base,) for values, base in BASES.items()}
_PLAIN = {logs: values for values, logs in _LOGS.items()}


@dataclass(frozen=True)
class Units:
    """The units of a query's values.

    Attributes
    ----------
    values : Values
        The units once ``logs`` are undone.
    depth : float
        The sum of each cell once the logarithm is undone; 10,000 unless all cells share another sum.
    strict : bool
        Whether every value must be a whole number: counts were detected from a sample of cells.
    doubts : tuple of str
        Warnings about the units.
    logs : tuple of float
        Bases of logarithms that are undone first; see `converted`.
    """

    values: Values
    depth: float
    strict: bool
    doubts: tuple[str, ...]
    logs: Logs = ()

    def converted(self, query: Query) -> Query:
        """Return the query in the units of ``values``, with ``logs`` undone as it is read."""
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
            # Other values stay as they are, for `check_block` to report.
            undone = np.where(np.abs(undone - whole) <= _NEAR * np.maximum(1, whole / 100), whole, undone)
        plain: np.ndarray = undone.astype(np.float32)
        return plain

    def scaled(self, query: Query, block: csr_matrix, totals: np.ndarray, start: int) -> csr_matrix:
        """Return a block of logarithms rescaled (exactly) from ``depth`` to counts per 10,000.

        Raises
        ------
        DataError
            If a cell's sum is not the depth that all sampled cells share.
        """
        if self.depth == PER_TEN_THOUSAND:
            return block
        off = np.flatnonzero((totals > 0) & (np.abs(totals - self.depth) > _OFF * self.depth))
        if off.size:
            raise DataError(
                f"{query.name}: the sampled cells sum to {self.depth:,.0f} once the logarithm of "
                f"{query.layer} is undone, but {off.size} others do not, the first being cell "
                f"{start + off[0]} (counted from 0) with {_figure(totals[off[0]])}: {_advice(query)}"
            )
        base = np.log(BASES[self.values])
        data = block.data.astype(np.float64)
        data = np.log1p(np.expm1(data * base) * (PER_TEN_THOUSAND / self.depth)) / base
        return csr_matrix((data.astype(np.float32), block.indices, block.indptr), shape=block.shape)

    def undone(self, data: np.ndarray) -> np.ndarray:
        """Return logarithms undone, float64; counts as they are."""
        return data.astype(np.float64) if self.values == "counts" else undo(data, _LOGS[self.values])


class _UndoneByCell:
    """A matrix stored by cell whose logarithms are undone as it is read."""

    def __init__(self, matrix: ByCell, units: Units) -> None:
        self._matrix, self._units, self.shape = matrix, units, matrix.shape

    def rows(self, start: int, stop: int) -> csr_matrix:
        """Return cells ``start`` to ``stop`` as float32 CSR."""
        block = self._matrix.rows(start, stop)
        return csr_matrix((self._units.plain(block.data), block.indices, block.indptr), shape=block.shape)


class _UndoneByEntries:
    """A matrix stored by gene whose logarithms are undone as it is read."""

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


def find_units(query: Query, given: str) -> Units:
    """Return the units of a query, the depth its cells were scaled to, and warnings.

    `canal.data.units.judge_values` classifies the values; docs/annotate.md has the table of decisions. Exact
    conversions are made, with a warning that says so; uncertain units raise, or are accepted with a warning
    where the values do not contradict them.

    Parameters
    ----------
    query
        The cells; up to 200 of them, evenly spread, are sampled.
    given
        One of `UNITS_OPTIONS`; anything but ``auto`` is accepted unless the values contradict it.

    Raises
    ------
    DataError
        If the option is unknown, values are negative or all zero, or no known units fit.
    """
    if given not in UNITS_OPTIONS:
        raise DataError(f"--values must be one of {', '.join(UNITS_OPTIONS)}, found {given!r}")
    sample = query.sample
    if (unsound := int((~np.isfinite(sample.data)).sum())) and given == AUTO:
        raise DataError(
            f"{query.name}: {unsound} values of {query.layer} in {sample.shape[0]} cells are not finite "
            f"numbers: {_advice(query)}"
        )
    if negative := int((sample.data < 0).sum()):
        raise DataError(
            f"{query.name}: {query.layer} holds {negative} negative values in "
            f"{sample.shape[0]} cells, so it was scaled or centred and expression cannot be read from it: "
            f"{_advice(query)}"
        )
    if unsound:
        return Units(_as_values(given), PER_TEN_THOUSAND, False, ())
    finding = judge_values(sample)
    return _detect(query, sample, finding) if given == AUTO else _check_given(query, given, finding)


def _detect(query: Query, sample: csr_matrix, finding: Finding) -> Units:
    """Return the units detected from the values; raises `DataError` if none fit."""
    if finding.kind == "counts":
        return Units("counts", PER_TEN_THOUSAND, True, ())
    if finding.kind == "log_of_counts":
        note = f"{finding.message}: the values were taken for logarithms of counts and undone, which is exact"
        return Units("counts", PER_TEN_THOUSAND, True, (note,), finding.logs)
    if finding.kind in ("one_depth", "depths", "multiples"):
        return _scaled_counts(finding)
    if finding.kind == "unproven":
        return _guess(query, sample, finding)
    if finding.kind == "beyond":
        raise _beyond(query)
    why = {
        "zeros": f"{query.layer} is zero in all {sample.shape[0]} sampled cells",
        "binary": f"in {query.layer} {finding.message}, so expression cannot be read from it",
        "mixed": f"{query.layer} mixes units: {finding.message}",
    }
    raise _refusal(query, why[finding.kind], finding)


def _scaled_counts(finding: Finding) -> Units:
    """Return the units of scaled counts, with a logarithm or without."""
    values, logs, notes = _PLAIN.get(finding.logs), finding.logs, []
    if finding.kind == "multiples" and values:
        if finding.low:
            notes.append(
                f"{finding.totals_message}: right if genes were left out of the file after the counts were "
                "scaled to 10,000; if none were, they were scaled to something else (scran, scater, a "
                "median), and labels are less certain: give counts, or name the units with --values"
            )
        return Units(values, PER_TEN_THOUSAND, False, tuple(notes))
    if finding.kind == "one_depth" and values:
        return Units(values, finding.depth or PER_TEN_THOUSAND, False, _depth_warning(finding))
    if finding.kind == "one_depth" and not logs:
        note = (
            f"the values are no whole numbers, but {finding.message}: they were taken as "
            "counts scaled to that total, without a logarithm"
        )
    elif finding.kind == "multiples" and not logs:
        note = (
            f"the values are no whole numbers, but {finding.message}: they were taken as counts that were "
            "scaled"
        )
    elif finding.kind == "depths":
        note = (
            f"{finding.message}: samples were scaled to totals of their own; every cell was scaled to "
            "10,000, which is exact"
        )
    else:
        note = f"{finding.message}: {named(logs)} was undone, which is exact"
    if finding.kind == "multiples" and logs:
        return Units("log2p_10k", PER_TEN_THOUSAND, False, (note,), logs)
    return Units("counts", PER_TEN_THOUSAND, False, (note,), logs)


def _guess(query: Query, sample: csr_matrix, finding: Finding) -> Units:
    """Return the base of the logarithm that sums allow, with a warning; raises `DataError` if none does."""
    if finding.total > MAX_TOTAL or float(_totals(sample, finding.logs).max()) > MAX_TOTAL:
        raise _beyond(query)
    values = _PLAIN[finding.logs]
    if finding.dense:
        raise _refusal(
            query,
            f"{query.layer} has hardly a value of 0 over {finding.genes:,} genes, and {finding.message}: "
            "these are no counts and no logarithms of counts (imputed, corrected or random values)",
            finding,
        )
    if finding.too_low:
        raise _refusal(query, f"{finding.message}, and {finding.totals_message}", finding)
    note = (
        f"it cannot be proven what {query.layer} holds: {finding.message}; it was taken as {values}, whose "
        f"cells sum to at most 10,000 (here {finding.total:,.0f} in the median), as after a correction"
    )
    return Units(values, PER_TEN_THOUSAND, False, (note,))


def _check_given(query: Query, given: str, finding: Finding) -> Units:
    """Return the units that the user gave, with warnings where the values do not fit."""
    if finding.kind == "counts" and given != "counts":
        raise DataError(
            f"{query.name}: the values of {query.layer} are whole numbers, so they are no logarithms: "
            "use --values counts"
        )
    values, depth = _as_values(given), PER_TEN_THOUSAND
    doubts: list[str] = []
    right = values in BASES and finding.logs == _LOGS[values] and finding.kind in ("one_depth", "multiples")
    if right and finding.kind == "one_depth":
        depth = finding.depth or depth
        doubts += _depth_warning(finding)
    elif values == "counts" and finding.kind in ("one_depth", "depths", "multiples") and not finding.logs:
        doubts.append(f"the values are no whole numbers, but {finding.message}: they were taken as counts")
    elif not right and finding.kind not in ("counts", "zeros", "unproven"):
        like = _PLAIN.get(finding.logs) if finding.kind in ("one_depth", "multiples") else None
        doubts.append(
            f"the values were taken as {values}, but {f'look like {like}: ' if like else ''}{finding.message}"
        )
    return Units(values, depth, False, tuple(doubts))


def _as_values(given: str) -> Values:
    return next(name for name in get_args(Values) if name == given)


def _depth_warning(finding: Finding) -> tuple[str, ...]:
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
    option = "" if finding.kind == "zeros" else "name its units with --values if you know them, or "
    return DataError(f"{query.name}: {why}: {option}{_advice(query)}")


def _beyond(query: Query) -> DataError:
    most = float(_totals(query.sample, NATURAL).max())
    figure = f"{most:,.0f}" if most < _LARGEST_TOLD else "far more than 10,000"
    return DataError(
        f"{query.name}: the values of {query.layer} are no counts, and no logarithms of counts per "
        f"10,000: with base e a cell has {figure} counts per 10,000. "
        f"Scale counts to 10,000 before the logarithm, say --values counts if these are counts that were "
        f"corrected, or {_advice(query)}"
    )


def check_block(query: Query, block: csr_matrix, start: int, whole: bool) -> None:
    """Raise unless every value of cells ``start`` … is finite, not negative and, where ``whole``, whole.

    Raises
    ------
    DataError
        With the first cell (by position) that has such a value, and the number of values.
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
        ("no whole number, where sampled cells hold counts", values != np.rint(values)),
    )
    for what, wrong in problems if whole else problems[:2]:
        if wrong.any():
            raise DataError(
                f"{query.name}: {int(wrong.sum())} values of {query.layer} are {what}, the first in cell "
                f"{cells[wrong].min()} (counted from 0): {_advice(query)}"
            )


def _sound(values: np.ndarray, whole: bool) -> bool:
    sound = bool(np.isfinite(values).all()) and not bool((values < 0).any())
    return sound and not (whole and bool((values != np.rint(values)).any()))


def _figure(value: float) -> str:
    """Return a readable number: undoing a logarithm that was never taken gives up to 150 digits."""
    return (
        f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.0e}" if np.isfinite(value) else "infinitely many"
    )


def _advice(query: Query) -> str:
    others = [name for name in query.layers if name != query.layer]
    if others:
        raw = " (for raw: --use-raw)" if "raw" in others else ""
        return (
            f"name a matrix of counts or plain logarithms with --layer; there are also {listed(others)}{raw}"
        )
    return "the file has no other matrix, so export it again with counts"
