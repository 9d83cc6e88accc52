"""Own labels against predicted types, one dot for each pair: counted, ordered along a diagonal, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

from canal.annotation.columns import UNASSIGNED
from canal.core.errors import DataError
from canal.io.arrays import EXAMPLES, listed
from canal.report.canvas import GRID, INK, MUTED, SURFACE, heat_colours, named

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST = 200
"""Most labels that are drawn: more are no cell types, but names of cells or numbers."""

_SHARES = (0.1, 0.25, 0.5, 1.0)
_SMALL = 8.5


@dataclass(frozen=True, eq=False)
class Agreement:
    """Own labels against types, in the order in which they are drawn.

    ``counts``, ``shares`` of a row and median ``confidence`` are float64 ``(n_own, n_types)``, the latter NaN
    where no cell is.
    """

    own: list[str]
    types: list[str]
    counts: np.ndarray
    shares: np.ndarray
    confidence: np.ndarray
    n_without: int

    @classmethod
    def of(cls, obs: pd.DataFrame, groupby: str, columns: dict[str, str]) -> Agreement:
        """Count the cells of obs by own label and type; raises `DataError` if ``groupby`` holds no labels."""
        if not isinstance(groupby, str) or groupby not in obs:
            raise DataError(
                f"groupby: expected a column of obs with your own labels, found {groupby!r}; obs has the "
                f"columns {listed([str(one) for one in obs][:20])}"
            )
        there = obs[groupby].notna().to_numpy() & (obs[groupby].astype(str).str.strip() != "").to_numpy()
        own = obs[groupby][there].astype(str)
        if not 0 < own.nunique() <= MOST:
            what = f"{own.nunique():,} different values, such as {listed(sorted(set(own))[:EXAMPLES])}"
            raise DataError(
                f"groupby: expected 1 to {MOST} labels in obs column {groupby!r}, found "
                f"{what if len(own) else 'none'}: name the column that holds your cell types or clusters"
            )
        types = obs[columns["cell_type"]][there].astype(str)
        cells = obs[columns["confidence"]][there].astype(float).groupby([own.to_numpy(), types.to_numpy()])
        counts = cells.size().unstack(fill_value=0)
        matrix = counts.to_numpy(dtype=float)
        shares = matrix / matrix.sum(axis=1, keepdims=True)
        rows, order = _diagonal(shares, [str(one) for one in counts.columns])
        names = [str(counts.index[row]) for row in rows], [str(counts.columns[one]) for one in order]
        at = np.ix_(rows, order)
        median = cells.median().unstack().to_numpy(dtype=float)
        return cls(*names, matrix[at], shares[at], median[at], int((~there).sum()))

    def title(self, letters: int) -> str:
        """Return the fate of the most frequent label, and of the worst one, in lines of ``letters``."""
        best, most = self.shares.max(axis=1), int(self.counts.sum(axis=1).argmax())
        worst = int(best.argmin())
        lines = [f"{self._finding(most, 'of your ')} here"]
        if len(self.own) > 1:
            lines.append(f"least agreed on: {self._finding(worst)}")
        return "\n".join(part for line in lines for part in wrap(line, letters, subsequent_indent="   "))

    def _finding(self, row: int, of: str = "") -> str:
        to = int(self.counts[row].argmax())
        n, total = int(self.counts[row, to]), int(self.counts[row].sum())
        return f"{n:,} of {total:,} {of}'{named(self.own[row])}' are {named(self.types[to])}"


def _diagonal(shares: np.ndarray, types: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of rows and columns in which the greatest shares lie along a diagonal.

    Columns that share rows are neighbours, by an optimal order of the leaves of a tree; rows follow their
    greatest column.
    """
    known = np.array([i for i, name in enumerate(types) if name != UNASSIGNED], dtype=int)
    if len(known) > 2:
        profiles = shares[:, known].T
        profiles = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
        known = known[leaves_list(linkage(profiles, "average", optimal_ordering=True))]
    order = np.array([*known, *(i for i, name in enumerate(types) if name == UNASSIGNED)], dtype=int)
    position = np.empty(len(order))
    position[order] = np.arange(len(order))
    best = shares.argmax(axis=1)
    rows: np.ndarray = np.lexsort((shares @ position, position[best]))
    return rows, order


def draw_dots(axis: Axes, found: Agreement, cell: float) -> Any:
    """Draw the dots, a ring around each row's largest, and return them."""
    rows, columns = np.nonzero(found.counts)
    shares = found.shares[rows, columns]
    largest = np.zeros_like(found.shares, dtype=bool)
    largest[np.arange(len(largest)), found.shares.argmax(axis=1)] = True
    rings = [INK if one else SURFACE for one in largest[rows, columns]]
    dots = axis.scatter(
        columns, rows, s=shares * _area(cell), c=found.confidence[rows, columns], cmap=heat_colours(),
        vmin=0, vmax=1, edgecolors=rings, linewidths=0.7, zorder=3, clip_on=False,
    )  # fmt: skip
    n_rows, n_columns = found.shares.shape
    axis.set(xlim=(-0.6, n_columns - 0.4), ylim=(n_rows - 0.4, -0.6))
    axis.set_axisbelow(True)
    axis.grid(True, linewidth=0.6)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return dots


def _area(cell: float) -> float:
    """Return the area, in square points, of the dot of a whole label in squares of ``cell`` inches."""
    return (0.92 * cell * 72) ** 2


def name_axes(axis: Axes, names: tuple[list[str], list[str]], groupby: str) -> None:
    """Write own labels and types beside the dots, long ones upright or slanted."""
    axis.set_yticks(range(len(names[0])), names[0])
    slanted = len(names[1]) <= 12
    axis.set_xticks(range(len(names[1])), names[1], rotation=45 if slanted else 90)
    for label in axis.get_xticklabels():
        label.set(ha="right" if slanted else "center", rotation_mode="anchor" if slanted else "default")
    axis.set(xlabel="Type by canal", ylabel=f"Your labels ({named(groupby)})")
    if max(map(len, names)) > 25:
        axis.tick_params(labelsize=7.5)


def count_bars(axis: Axes, counts: np.ndarray, upwards: bool) -> None:
    """Draw the number of cells of each column (upwards) or row, and write it at the bar's end."""
    numbers = [f"{int(n):,}" for n in counts]
    places = np.arange(len(counts))
    if upwards:
        bars = axis.bar(places, counts, width=0.7, color=GRID)
        axis.set_ylim(0, 1.7 * counts.max())
    else:
        bars = axis.barh(places, counts, height=0.7, color=GRID)
        axis.set_xlim(0, 1.9 * counts.max())
    crowded = upwards and (len(counts) > 6 or counts.max() >= 10_000)
    axis.bar_label(bars, numbers, fontsize=7, color=MUTED, padding=2, rotation=90 if crowded else 0)
    axis.set_axis_off()


def draw_legend(axis: Axes, dots: Any, cell: float, height: float) -> None:
    """Draw what colour and area of a dot mean into a column of ``height`` inches, from its top down."""
    axis.set_axis_off()
    inset = axis.inset_axes((0.06, 1 - 0.45 / height, 0.8, 0.12 / height))
    bar = axis.figure.colorbar(dots, cax=inset, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    inset.set_title("Median confidence", fontsize=_SMALL, fontweight="normal", pad=4)
    diameter = _area(cell) ** 0.5 / _SMALL  # in letters
    samples = [axis.scatter([], [], s=share * _area(cell), color=MUTED) for share in _SHARES]
    samples.append(axis.scatter([], [], s=_area(cell) / 2, facecolor="none", edgecolor=INK, linewidths=0.7))
    axis.legend(
        samples, [*(f"{share:.0%}" for share in _SHARES), "largest"], loc="upper left", alignment="left",
        title="Share of the\nlabel's cells", title_fontsize=_SMALL, bbox_to_anchor=(0, 1 - 0.95 / height),
        borderaxespad=0, handlelength=diameter, labelspacing=max(0.4, diameter - 0.8),
    )  # fmt: skip
