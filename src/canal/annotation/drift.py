"""Whether labelled cells are still like those on which a version was measured: statistics, nothing else.

A file or a month is a row of counts, so that thousands are judged in one pass. The range of a measure is what
the version's stages show, stage by stage: a row leaves it only by more than sampling explains and by more
than a stated tolerance. What was not recorded, or not measured, is said to be so, and is no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from canal.annotation.columns import UNASSIGNED

BINS = 50
"""Confidence, novelty and shares of genes are counted in fiftieths of 0...1; 1 belongs to the last."""

CONFIDENCE, NOVELTY, DEPTH = "confidence", "novelty", "depth"
HISTOGRAMS = (CONFIDENCE, NOVELTY, DEPTH)
"""What is counted in fiftieths; depth is the share of the file's genes of the model that a cell expresses."""

UNASSIGNED_SHARE, TYPES, GENES = "unassigned", "types", "genes"
MEASURES = (UNASSIGNED_SHARE, NOVELTY, CONFIDENCE, TYPES, GENES, DEPTH)
"""In the order in which they are shown."""

MIN_CELLS = 100
"""Fewer cells are too few to judge."""
LEVEL = 0.99
"""Of all intervals: of a hundred rows that are like the test cells at most one is an alarm by a measure."""
SHARE_TOLERANCE = 0.01
"""How far the Unassigned share may be above that of every stage, beyond sampling."""
CURVE_TOLERANCE = 0.1
"""What share of cells may lie beyond the distributions of every stage, beyond sampling."""
TYPES_TOLERANCE = 0.2
"""What share of cells may be of types that are commoner than in any stage, beyond sampling."""
GENES_TOLERANCE = 0.05
"""How far the share of the model's genes that are found may be below that of every stage."""
DEPTH_RATIO = 1.5
"""How many times shallower or deeper than every stage a median cell may be."""

ALARM, IN_RANGE, TOO_FEW, NOT_MEASURED, NOT_RECORDED = (
    "alarm", "in range", "too few", "not measured", "not recorded",
)  # fmt: skip

_Z = 2.5758
"""Quantile of the normal distribution of `LEVEL`, on two sides."""
_ALPHA = 1 - LEVEL
_MOST = 1 << 40
"""Cells of a file; more are a damaged number."""

Document = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """Counts of cells, one row a file, a month or a stage.

    Attributes
    ----------
    n, unassigned : numpy.ndarray
        Cells, and those of no known type, int64 ``(n_rows,)``.
    labels : tuple of str
        The cell types.
    types : numpy.ndarray
        Assigned cells of each type, int64 ``(n_rows, n_types)``.
    histograms : dict
        Measure of `HISTOGRAMS` -> cells in fiftieths, int64 ``(n_rows, 50)``; zeros where not recorded.
    genes : numpy.ndarray
        Sum over cells of the share of the model's genes that their file has, and the number of cells of
        which that is known, float64 ``(n_rows, 2)``.
    like : numpy.ndarray
        Likewise for whether a cell lies among those of the learned studies, float64 ``(n_rows, 2)``.
    """

    n: np.ndarray
    unassigned: np.ndarray
    labels: tuple[str, ...]
    types: np.ndarray
    histograms: Mapping[str, np.ndarray]
    genes: np.ndarray
    like: np.ndarray

    def __len__(self) -> int:
        return len(self.n)

    def pooled(self, group: np.ndarray, n_groups: int) -> Rows:
        """Return the rows added up by group, ``group`` being the number of each row's, int ``(n_rows,)``."""

        def added(values: np.ndarray) -> np.ndarray:
            result = np.zeros((n_groups, *values.shape[1:]), dtype=values.dtype)
            np.add.at(result, group, values)
            return result

        return Rows(
            added(self.n),
            added(self.unassigned),
            self.labels,
            added(self.types),
            {name: added(counts) for name, counts in self.histograms.items()},
            added(self.genes),
            added(self.like),
        )


def histogram(values: np.ndarray) -> list[int]:
    """Return how many values lie in each fiftieth of 0...1; what is beyond counts in the outermost ones."""
    places = np.clip((np.asarray(values, dtype=np.float64) * BINS).astype(np.int64), 0, BINS - 1)
    counts: list[int] = np.bincount(places, minlength=BINS).tolist()
    return counts


def is_sound(record: Mapping[str, Any]) -> bool:
    """Whether the numbers of cells in an annotation record can be: none below 0, and the types' sum right."""
    counts, n = record["cell_types"].values(), record["n_cells"]
    return 0 < n <= _MOST and min(counts, default=0) >= 0 and sum(counts) == n


def rows_of(records: Sequence[Mapping[str, Any]]) -> Rows:
    """Return annotation records that are sound as rows.

    ``Unassigned`` are the cells that the version itself leaves so: not those that ``--max-novelty`` and
    ``--min-confidence`` cut.
    """
    labels = tuple(sorted({name for one in records for name in one["cell_types"]} - {UNASSIGNED}))
    place = {name: i for i, name in enumerate(labels)}
    types = np.zeros((len(records), len(labels)), dtype=np.int64)
    for row, one in enumerate(records):
        for name, n in one["cell_types"].items():
            if name != UNASSIGNED:
                types[row, place[name]] = n
    n = np.array([one["n_cells"] for one in records], dtype=np.int64)
    return Rows(
        n,
        np.array([_unassigned(one) for one in records], dtype=np.int64),
        labels,
        types,
        {name: _histograms(records, name) for name in HISTOGRAMS},
        np.array([_weighed(_genes_found(one), one["n_cells"]) for one in records]).reshape(-1, 2),
        np.array([_weighed(_like(one), one["n_cells"]) for one in records]).reshape(-1, 2),
    )


def _unassigned(record: Mapping[str, Any]) -> int:
    by = record.get("unassigned_by")
    if isinstance(by, Mapping) and all(isinstance(by.get(name), int) for name in ("low_quality", "is_novel")):
        return int(by["low_quality"] + by["is_novel"])
    return int(record["cell_types"].get(UNASSIGNED, 0))


def _histograms(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Return a histogram of each record; zeros where it has none, or what is there is none."""
    none: list[Any] = [0] * BINS
    held = [one.get("distributions") for one in records]
    found = [one.get(name) if isinstance(one, Mapping) else None for one in held]
    lists = [one if isinstance(one, list) and len(one) == BINS else none for one in found]
    try:
        counts: np.ndarray = np.array(lists).reshape(-1, BINS)
    except ValueError:  # lists within one of them
        counts = np.zeros(0, dtype=object)
    if counts.dtype.kind != "i" or counts.min(initial=0) < 0:
        most = [one["n_cells"] for one in records]
        sound = [all(type(n) is int and 0 <= n <= m for n in one) for one, m in zip(lists, most, strict=True)]
        lists = [one if good else none for one, good in zip(lists, sound, strict=True)]
        counts = np.array(lists, dtype=np.int64).reshape(-1, BINS)
    return counts


def _genes_found(record: Mapping[str, Any]) -> float | None:
    genes = record.get("genes")
    found, panel = (genes.get("found"), genes.get("panel")) if isinstance(genes, Mapping) else (None, None)
    if type(found) is not int or type(panel) is not int or not 0 <= found <= panel or not panel:
        return None
    return found / panel


def _like(record: Mapping[str, Any]) -> float | None:
    study = record.get("study")
    like = study.get("like_learned") if isinstance(study, Mapping) else None
    return float(like) if isinstance(like, int | float) and 0 <= like <= 1 else None


def _weighed(share: float | None, n: int) -> tuple[float, float]:
    return (0.0, 0.0) if share is None else (share * n, n)


@dataclass(frozen=True, eq=False)
class Stage:
    """What was measured of a stage's cells: its test cells by the version, its depth and genes by the gate.

    Attributes
    ----------
    name : str
    n, unassigned : int
        Test cells of types that the version knows, and those of them that it left Unassigned.
    types : dict
        Assigned test cells by predicted type; empty where not measured.
    histograms : dict
        ``confidence`` and ``novelty`` of the test cells in fiftieths, where they were measured.
    genes, depth : float or None
        Share of the model's genes that its file has, and the median share of those that a cell expresses.
    """

    name: str
    n: int = 0
    unassigned: int = 0
    types: Mapping[str, int] = field(default_factory=dict)
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)
    genes: float | None = None
    depth: float | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """What a measure says of each row.

    Attributes
    ----------
    states : list of str
        ``alarm``, ``in range``, ``too few``, ``not measured`` (of the version) or ``not recorded`` (of the
        cells).
    values : numpy.ndarray
        Share, or median, NaN where there is none, float64 ``(n_rows,)``.
    low, high : float or None
        What the stages' cells have: the lowest and the highest; None where not measured.
    details : list of dict
        Where a row left the range: what shows it most.
    """

    states: list[str]
    values: np.ndarray
    low: float | None
    high: float | None
    details: list[Document]


def judge(rows: Rows, stages: Sequence[Stage]) -> dict[str, Finding]:
    """Return for each measure what it says of every row, beside the stages' cells."""
    return {
        UNASSIGNED_SHARE: _judge_share(rows, stages),
        NOVELTY: _judge_curve(rows, stages, NOVELTY, up=True),
        CONFIDENCE: _judge_curve(rows, stages, CONFIDENCE, up=False),
        TYPES: _judge_types(rows, stages),
        GENES: _judge_genes(rows, stages),
        DEPTH: _judge_depth(rows, stages),
    }


def _states(n: np.ndarray, enough: bool, alarm: np.ndarray) -> list[str]:
    """Return each row's state: ``n`` are the cells with the measure, ``enough`` whether it has a range."""
    if not enough:
        return [NOT_MEASURED] * len(n)
    return [
        NOT_RECORDED if not cells else TOO_FEW if cells < MIN_CELLS else ALARM if out else IN_RANGE
        for cells, out in zip(n.tolist(), alarm.tolist(), strict=True)
    ]


def wilson(k: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval of a share (1927) at `LEVEL`, for ``k`` of ``n`` cells; 0...1 for none."""
    share, safe = k / np.maximum(n, 1), np.maximum(n, 1)
    middle = (share + _Z**2 / (2 * safe)) / (1 + _Z**2 / safe)
    half = _Z * np.sqrt(share * (1 - share) / safe + _Z**2 / (4 * safe**2)) / (1 + _Z**2 / safe)
    low, high = np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
    return np.where(n > 0, low, 0), np.where(n > 0, high, 1)


def _judge_share(rows: Rows, stages: Sequence[Stage]) -> Finding:
    """Judge the Unassigned share by Newcombe's interval of a difference (1998), from every stage."""
    measured = [one for one in stages if one.n]
    values = _ratio(rows.unassigned, rows.n)
    lower, _ = wilson(rows.unassigned, rows.n)
    excess = np.full(len(rows), np.inf)
    shares = []
    for one in measured:
        share = one.unassigned / one.n
        _, upper = wilson(np.array(one.unassigned), np.array(one.n))
        least = values - share - np.sqrt((values - lower) ** 2 + (float(upper) - share) ** 2)
        excess = np.minimum(excess, least)
        shares.append(share)
    states = _states(rows.n, bool(measured), excess > SHARE_TOLERANCE)
    details = [{"cells": int(k), "of": int(n)} for k, n in zip(rows.unassigned, rows.n, strict=True)]
    return _finding(states, values, shares, details)


def _judge_curve(rows: Rows, stages: Sequence[Stage], name: str, *, up: bool) -> Finding:
    """Judge a distribution by its cumulative curve, on one side, by the bound of Kolmogorov and Smirnov.

    A row is out where, at some cut, it lies beyond the curves of all stages: cells that are a mixture of the
    stages' never do.
    """
    held = [np.array(one.histograms[name]) for one in stages if name in one.histograms]
    held = [counts for counts in held if counts.sum()]
    counts = rows.histograms[name]
    n = counts.sum(axis=1)
    curve, beyond = _curves(counts), np.full((len(rows), BINS - 1), np.inf)
    for one in held:
        bound = np.sqrt(math.log(2 / _ALPHA) / 2 * (1 / np.maximum(n, 1) + 1 / one.sum()))
        apart = _curves(one[None]) - curve if up else curve - _curves(one[None])
        beyond = np.minimum(beyond, apart - bound[:, None])
    cuts = beyond.argmax(axis=1) if held else np.zeros(len(rows), dtype=np.int64)
    alarm = beyond[np.arange(len(rows)), cuts] > CURVE_TOLERANCE
    at = np.array([_curves(one[None])[0] for one in held]).reshape(-1, BINS - 1)
    details: list[Document] = [{} for _ in range(len(rows))]
    for row in np.flatnonzero(alarm).tolist() if held else ():
        cut = int(cuts[row])
        share, those = curve[row, cut], at[:, cut]
        share, those = (1 - share, 1 - those) if up else (share, those)
        ends = [float(those.min()), float(those.max())]
        side = "from" if up else "below"
        details[row] = {side: (cut + 1) / BINS, "share": float(share), "on_test_cells": ends}
    medians = [float(quantile(one[None], 0.5)[0]) for one in held]
    return _finding(_states(n, bool(held), alarm), quantile(counts, 0.5), medians, details)


def _judge_types(rows: Rows, stages: Sequence[Stage]) -> Finding:
    """Judge what share of the assigned cells is of types beyond their share in every stage.

    It takes two stages: one alone shows no range of compositions.
    """
    held = [one.types for one in stages if sum(one.types.values())]
    n = rows.types.sum(axis=1)
    details: list[Document] = [{} for _ in range(len(rows))]
    if len(held) < 2:
        return _finding(_states(n, False, n > 0), np.full(len(rows), np.nan), [], details)
    cells, m = np.maximum(n, 1)[:, None], np.array([[sum(one.values())] for one in held])
    shares = rows.types / cells
    those = np.array([[one.get(name, 0) for name in rows.labels] for one in held]).reshape(len(held), -1) / m
    most = those.max(axis=0)
    over = np.maximum(shares - most, 0)
    spread = np.sqrt(shares * (1 - shares) / cells).sum(axis=1) / 2
    spread += np.sqrt(those * (1 - those) / m).max(axis=0).sum() / 2
    spread += np.sqrt(math.log(1 / _ALPHA) / 2 * (1 / cells[:, 0] + 1 / m.min()))
    alarm = over.sum(axis=1) - spread > TYPES_TOLERANCE
    for row in np.flatnonzero(alarm).tolist():
        first = int(over[row].argmax())
        ends = [float(those[:, first].min()), float(most[first])]
        share = float(shares[row, first])
        details[row] = {"type": rows.labels[first], "share": share, "on_test_cells": ends}
    return _finding(_states(n, True, alarm), np.where(n > 0, over.sum(axis=1), np.nan), [0.0], details)


def _judge_genes(rows: Rows, stages: Sequence[Stage]) -> Finding:
    """Judge the share of the model's genes that the files have, weighed by their cells; fewer is out."""
    those = [one.genes for one in stages if one.genes is not None]
    values = _ratio(rows.genes[:, 0], rows.genes[:, 1])
    alarm = values < min(those, default=0.0) - GENES_TOLERANCE
    n = rows.genes[:, 1].astype(np.int64)
    return _finding(_states(n, bool(those), alarm), values, those, [{} for _ in range(len(rows))])


def _judge_depth(rows: Rows, stages: Sequence[Stage]) -> Finding:
    """Judge the median depth by its interval of order statistics (Dvoretzky, Kiefer, Wolfowitz)."""
    those = [one.depth for one in stages if one.depth]
    counts = rows.histograms[DEPTH]
    n = counts.sum(axis=1)
    bound = np.sqrt(math.log(2 / _ALPHA) / 2 / np.maximum(n, 1))
    low, high = quantile(counts, 0.5 - bound), quantile(counts, 0.5 + bound)
    alarm = (high < min(those, default=0) / DEPTH_RATIO) | (low > max(those, default=1) * DEPTH_RATIO)
    values = quantile(counts, 0.5)
    return _finding(_states(n, bool(those), alarm), values, those, [{} for _ in range(len(rows))])


def _finding(
    states: list[str], values: np.ndarray, those: Iterable[float], details: list[Document]
) -> Finding:
    ends = sorted(those)
    return Finding(
        states, values, float(ends[0]) if ends else None, float(ends[-1]) if ends else None, details
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _curves(counts: np.ndarray) -> np.ndarray:
    """Return the share of cells below each inner cut, 1/50...49/50, float64 ``(n_rows, 49)``."""
    whole = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    result: np.ndarray = np.cumsum(counts, axis=1)[:, :-1] / whole
    return result


def quantile(counts: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Return the quantile of each histogram ``(n_rows, 50)``, even within a fiftieth; NaN without cells."""
    n = counts.sum(axis=1)
    ends = np.cumsum(counts, axis=1)
    wanted = np.clip(np.broadcast_to(share, n.shape), 0, 1) * n
    places = (ends >= np.maximum(wanted, 1e-9)[:, None]).argmax(axis=1)
    at = np.arange(len(n))
    inside = counts[at, places]
    part = np.divide(wanted - (ends[at, places] - inside), inside, out=np.zeros(len(n)), where=inside > 0)
    result: np.ndarray = np.where(n > 0, (places + np.clip(part, 0, 1)) / BINS, np.nan)
    return result
