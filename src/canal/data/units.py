"""Classify the values of a matrix: counts, logarithms with their base and depth, or neither.

`canal annotate` and the gate both use `judge_values`; docs/annotate.md has the table of its results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from canal.config.sections import Values

PER_TEN_THOUSAND = 1e4
MAX_TOTAL = 1.01 * PER_TEN_THOUSAND
"""The most a cell's values may sum to once the logarithm is undone; 1 % is left for rounding."""
TELLING_GENES = 10
"""A cell with fewer expressed genes may hold whole numbers by chance, whatever its units."""

Logs = tuple[float, ...]
"""Bases of the logarithms (of 1 + x) that were taken, the last one taken first; empty: none."""

NATURAL: Logs = (float(np.e),)
BINARY: Logs = (2.0,)
BASES: dict[Values, float] = {"log1p_10k": NATURAL[0], "log2p_10k": BINARY[0]}
"""The base of the logarithm in each declared unit that has one."""

_KNOWN = (NATURAL, BINARY)
_OTHER = ((10.0,), NATURAL * 2, NATURAL + BINARY, BINARY + NATURAL, BINARY * 2)

Kind = Literal[
    "zeros",
    "counts",
    "binary",
    "mixed",
    "log_of_counts",
    "one_depth",
    "depths",
    "multiples",
    "beyond",
    "unproven",
]

_WHOLE, _SHARE, _FITS = 0.02, 0.98, 0.9
_FEW = 2.5
_LARGEST = 200
"""Multiples beyond this are not looked at: rounding of the file's numbers reaches a hundredth of one."""
_PART = 0.1
"""Share of the cells that counts as a sample of its own."""
_ENOUGH = 5
"""Cells that must share a total before it says anything."""
_SAME, _VERY_SAME = 0.01, 1e-3
_TIGHT = 1e-4
_MOST_DEPTHS = 20
_WHOLE_GENOME, _LEAST_SHARE = 20_000, 0.4
_MANY_GENES, _HALF = 2000, 0.5
_DENSE, _DENSE_GENES = 0.9, 500


@dataclass(frozen=True)
class Finding:
    """The classification of some cells' values, with its figures.

    Attributes
    ----------
    kind
        ``counts``; ``binary`` (one value only, or whole numbers of which none is 0); ``log_of_counts``
        (whole numbers once ``logs`` are undone); ``one_depth`` (every cell sums to ``depth`` then);
        ``depths`` (each sample's cells do, to a depth of their own); ``multiples`` (of a cell's smallest
        value, and at most 10,000 in all); ``beyond`` (likewise, but more than 10,000); ``mixed`` (cells
        differ in what they are); ``zeros``; ``unproven``.
    logs
        The logarithms that were taken.
    depth
        What every cell sums to once they are undone, where that is the same.
    message
        A clause with the figures, for messages.
    total
        The median of what cells sum to once the logarithms are undone; of the first base that leaves each
        cell at most 10,000 where nothing is proven.
    genes
        How many genes the matrix has.
    dense
        Whether nearly every value is other than 0, which counts of thousands of genes never are.
    whole_libraries
        Whether, scaled to 10,000, the value of one count implies a whole total of counts in each cell.
    """

    kind: Kind
    logs: Logs = ()
    depth: float | None = None
    message: str = ""
    total: float = 0.0
    genes: int = 0
    dense: bool = False
    whole_libraries: bool = False

    @property
    def too_low(self) -> bool:
        """Whether totals are lower than those of any choice of so many genes after scaling to 10,000."""
        share = min(1.0, self.genes / _WHOLE_GENOME) * _LEAST_SHARE
        return self.genes >= _MANY_GENES and self.total < share * PER_TEN_THOUSAND

    @property
    def low(self) -> bool:
        """Whether totals are far from 10,000 though thousands of genes are there, and nothing explains it."""
        far = self.genes >= _MANY_GENES and self.total < _HALF * PER_TEN_THOUSAND
        return far and not self.whole_libraries

    @property
    def totals_message(self) -> str:
        """A clause about the totals, for messages."""
        return (
            f"a median cell sums to {self.total:,.0f} over {self.genes:,} genes once the logarithm is "
            "undone, not to 10,000"
        )


def judge_values(sample: csr_matrix) -> Finding:
    """Classify the values of some cells.

    Parameters
    ----------
    sample
        ``(n_cells, n_genes)``, *all* genes of the file, without stored zeros; finite, not negative.
    """
    if not sample.nnz:
        return Finding("zeros", message="every value is 0")
    cells = _Cells(sample)
    return (
        _whole(cells) or _shared_depth(cells) or _own_depths(cells) or _multiples(cells) or cells.unproven()
    )


class _Cells:
    """A sample of cells, with a cache of its values after undoing logarithms."""

    def __init__(self, sample: csr_matrix) -> None:
        self.sample, self.n = sample, sample.shape[0]
        self.genes = np.diff(sample.indptr)
        self.rows = np.repeat(np.arange(self.n), self.genes)
        self.telling = self.genes >= TELLING_GENES
        self._undone: dict[Logs, np.ndarray] = {}

    def undone(self, logs: Logs) -> np.ndarray:
        if logs not in self._undone:
            self._undone[logs] = undo(self.sample.data, logs)
        return self._undone[logs]

    def totals(self, logs: Logs) -> np.ndarray:
        totals: np.ndarray = np.bincount(self.rows, weights=self.undone(logs), minlength=self.n)
        return totals

    def whole(self, logs: Logs) -> np.ndarray:
        """Return which telling cells hold whole numbers of counts once ``logs`` are undone.

        A cell of counts has some of one or two; the share of one count in 10,000 may be whole by chance.
        """
        values = self.undone(logs)
        looked = values < _LARGEST
        near = looked & (np.abs(values - np.rint(np.where(looked, values, 0))) < _WHOLE) & (values > _HALF)
        n_looked = np.bincount(self.rows[looked], minlength=self.n)
        n_near = np.bincount(self.rows[near], minlength=self.n)
        small = np.bincount(self.rows[near & (values < _FEW)], minlength=self.n) > 0
        enough = n_looked >= TELLING_GENES // 2
        whole = (n_near >= _SHARE * np.maximum(n_looked, 1)) & enough & small
        informative: np.ndarray = whole[self.telling]
        return informative

    def finding(self, kind: Kind, logs: Logs, message: str, depth: float | None = None) -> Finding:
        totals = self.totals(logs)
        total = float(np.median(totals[totals > 0])) if (totals > 0).any() else 0.0
        density = self.sample.nnz / max(1, self.n * self.sample.shape[1])
        dense = density > _DENSE and self.sample.shape[1] >= _DENSE_GENES
        libraries = kind == "multiples" and _whole_libraries(self.sample, self.undone(logs))
        return Finding(kind, logs, depth, message, total, self.sample.shape[1], dense, libraries)

    def unproven(self) -> Finding:
        fits = [logs for logs in _KNOWN if self.totals(logs).max() <= MAX_TOTAL]
        message = (
            "they are no whole multiples of a cell's smallest value, and cells do not share one sum, "
            "whatever logarithm is undone"
        )
        return self.finding("unproven", fits[0] if fits else NATURAL, message)


def undo(data: np.ndarray, logs: Logs) -> np.ndarray:
    """Return float64 ``data`` with its logarithms of 1 + x undone; what is too large becomes infinite."""
    values: np.ndarray = data.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for base in logs:
            values = np.expm1(values * np.log(base))
    return values


def named(logs: Logs) -> str:
    """Return logarithms in words."""
    kinds = {float(np.e): "the natural logarithm"}
    names = [kinds.get(base, f"the logarithm to base {base:g}") for base in logs]
    if not logs:
        return "no logarithm"
    return " of ".join(names)


def wholeness(values: csr_matrix, logs: Logs) -> np.ndarray:
    """Return the share of each cell's values that are whole multiples of its smallest, ``(n_cells,)``.

    A cell with too few genes to tell has NaN.
    """
    undone = undo(values.data, logs)
    shares = []
    for begin, end in zip(values.indptr[:-1], values.indptr[1:], strict=True):
        cell = undone[begin:end]
        cell = cell[np.isfinite(cell) & (cell > 0)]
        multiples = cell / cell.min() if cell.size else cell
        multiples = multiples[(multiples > 1.5) & (multiples < _LARGEST)]
        enough = multiples.size >= TELLING_GENES // 2
        shares.append(float(np.mean(np.abs(multiples - np.rint(multiples)) < _WHOLE)) if enough else np.nan)
    return np.array(shares)


def middle(shares: np.ndarray) -> float:
    """Return the median of the shares of `wholeness`, 0 where all are NaN."""
    valid = shares[~np.isnan(shares)]
    return float(np.median(valid)) if valid.size else 0.0


def _whole(cells: _Cells) -> Finding | None:
    """Detect counts, logarithms of counts, and mixtures of either with other values."""
    data, n_telling = cells.sample.data, int(cells.telling.sum())
    if np.ptp(data) == 0 and n_telling >= _ENOUGH:
        return cells.finding("binary", (), f"every value other than 0 is {data[0]:g}")
    off = int((data != np.rint(data)).sum())
    if not off:
        return _counts(cells)
    if n_telling < _ENOUGH:
        return None
    plain = float(cells.whole(()).mean())
    for logs in (*_KNOWN, *_OTHER):
        share = float(cells.whole(logs).mean())
        # 2^x - 1 of whole numbers are whole numbers, too.
        if share >= 1 - _PART / 2 and share > plain:
            message = f"all are whole numbers once {named(logs)} is undone"
            return cells.finding("log_of_counts", logs, message)
    if plain >= 1 - _PART / 2:
        message = f"{off:,} of {data.size:,} values are no whole numbers, the others are"
        return cells.finding("mixed", (), message)
    for logs in ((), *_KNOWN):
        whole = cells.whole(logs)
        if whole.mean() >= _PART and whole.sum() >= _ENOUGH:
            undone = f" once {named(logs)} is undone" if logs else ""
            message = f"{int(whole.sum())} of {n_telling} cells hold whole numbers{undone}, the others do not"
            return cells.finding("mixed", logs, message)
    return None


def _counts(cells: _Cells) -> Finding:
    """Detect counts by whole numbers, unless none is 0: no cell expresses all of many genes."""
    if cells.sample.nnz == np.prod(cells.sample.shape) and cells.sample.shape[1] >= _DENSE_GENES:
        least = float(cells.sample.data.min())
        message = f"all are whole numbers and none is 0 (was {least:g} added to each of them?)"
        return cells.finding("binary", (), message)
    return cells.finding("counts", (), "all are whole numbers")


def _shared_depth(cells: _Cells) -> Finding | None:
    """Detect values that were scaled to one depth, with no genes removed."""
    spreads: dict[Logs, float] = {}
    for logs in (*_KNOWN, (), *_OTHER):
        spread = _spread(cells.totals(logs))
        if spread <= (_VERY_SAME if logs in _OTHER else _SAME):
            spreads[logs] = round(spread, 6)
    if not spreads:
        return None
    logs = min(spreads, key=spreads.__getitem__)
    totals = cells.totals(logs)
    median = float(np.median(totals[totals > 0]))
    power = 10.0 ** round(np.log10(median))
    depth = power if abs(median - power) <= _SAME * power else median
    undone = f" once {named(logs)} is undone" if logs else ""
    return cells.finding("one_depth", logs, f"every cell sums to {depth:,.0f}{undone}", depth)


def _spread(totals: np.ndarray) -> float:
    totals = totals[totals > 0]
    if len(totals) < _ENOUGH or not np.isfinite(totals).all():
        return np.inf
    return float(np.ptp(totals) / np.median(totals))


def _own_depths(cells: _Cells) -> Finding | None:
    """Detect samples of different depths: many cells share a total exactly, but not all the same one."""
    for logs in (*_KNOWN, (), _OTHER[0]):
        totals = np.sort(cells.totals(logs)[cells.telling])
        if len(totals) < 2 * _ENOUGH or not np.isfinite(totals).all():
            continue
        groups = np.split(totals, np.flatnonzero(np.diff(totals) > _TIGHT * totals[:-1]) + 1)
        large = sorted((group for group in groups if len(group) >= _ENOUGH), key=len, reverse=True)
        # A chain of neighbours is no depth.
        large = [group for group in large if np.ptp(group) <= _TIGHT * group[0]]
        covered = sum(map(len, large))
        undone = f" once {named(logs)} is undone" if logs else ""
        if len(large) in range(2, _MOST_DEPTHS + 1) and covered >= _FITS * len(totals):
            depths = " or ".join(f"{np.median(group):,.0f}" for group in large[:3])
            more = " …" if len(large) > 3 else ""
            message = f"cells sum to {len(large)} different totals{undone}: {depths}{more}"
            return cells.finding("depths", logs, message)
        most = large[0] if large else totals[:0]
        if len(most) < max(2 * _ENOUGH, _PART * len(totals)):
            continue
        at = float(np.median(most))
        # Beside cells of all genes there may be a sample that lost some after the scaling.
        if abs(at - PER_TEN_THOUSAND) > _SAME * at or (logs and totals[-1] > MAX_TOTAL):
            message = f"{len(most)} of {len(totals)} cells sum to {at:,.0f}{undone}, the others do not"
            return cells.finding("mixed", logs, message)
    return None


def _multiples(cells: _Cells) -> Finding | None:
    """Detect scaled counts, even with genes removed, by whole multiples of a cell's smallest value."""
    shares = {logs: wholeness(cells.sample, logs) for logs in _KNOWN}
    natural, binary = (shares[logs] for logs in _KNOWN)
    either = [int(((a >= _FITS) & (b < _HALF)).sum()) for a, b in ((natural, binary), (binary, natural))]
    if min(either) >= max(_ENOUGH, _PART * cells.n):
        message = f"{either[0]} cells look like natural logarithms, {either[1]} like logarithms to base 2"
        return cells.finding("mixed", NATURAL, message)
    fits = {logs: middle(share) for logs, share in shares.items()}
    best = max(fits, key=fits.__getitem__)
    if min(fits.values()) >= _FITS:
        return None
    if fits[best] < _FITS:
        others = [logs for logs in ((), *_OTHER) if middle(wholeness(cells.sample, logs)) >= _FITS]
        if len(others) != 1:
            return None
        best = others[0]
    undone = f" once {named(best)} is undone" if best else ""
    message = f"each cell's values are whole multiples of its smallest{undone}"
    beyond = bool(best) and float(cells.totals(best).max()) > MAX_TOTAL
    return cells.finding("beyond" if beyond else "multiples", best, message)


def _whole_libraries(sample: csr_matrix, undone: np.ndarray) -> bool:
    """Return whether the scaled value of one count implies a whole number of counts in nearly every cell.

    A cell of N counts scaled to 10,000 has 10,000 / N for a count, so 10,000 by that is N; scaled by another
    factor it is whole by chance only.
    """
    off = []
    for begin, end in zip(sample.indptr[:-1], sample.indptr[1:], strict=True):
        cell = undone[begin:end]
        if not cell.size or not cell.min() > 0:
            continue
        counts = np.rint(cell / cell.min())
        small = counts < _LARGEST
        library = PER_TEN_THOUSAND * counts[small].sum() / cell[small].sum()
        off.append(abs(library - np.rint(library)))
    return bool(off) and float(np.mean(np.array(off) < 5 * _WHOLE)) >= _FITS
