"""One map of cells, by type, confidence, novelty or any column of obs; and how labels agree, as dots."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

from canal.annotation.columns import UNASSIGNED
from canal.annotation.places import OF_NO_TYPE, type_colours
from canal.core.errors import DataError
from canal.core.progress import count
from canal.io.arrays import EXAMPLES, listed
from canal.report.canvas import AMBER, BLUE, GRID, HEAT, INK, MUTED, ORANGE, SURFACE, heat_colours, named

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_UNSURE_TO_SURE = (ORANGE, AMBER, "#c3ccd4", "#7fb3d8", BLUE)
_KNOWN_TO_NOVEL = ("#d3dae0", *("#c3ccd4",) * 3, "#b7c0c8", "#c4b182", AMBER, ORANGE, "#6b2700")
"""Grey in between, or for what is usual (0.5 is what known cells have): what needs a look stands out."""

_BESIDE = 20
"""Most names of a legend beside a map."""
_ACROSS = 190
"""Letters of a legend below maps."""
_NONE = "none"
_FEW = 40
"""Cells that a name would hide."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: the values of a column, a colour for each name or a scale for numbers, and its title."""

    values: np.ndarray
    title: str
    colours: dict[str, str]
    scale: Sequence[str] = ()

    @classmethod
    def of(cls, adata: AnnData, column: str, canals: dict[str, str]) -> Panel:
        """Return the map of a column of obs; raises `DataError` if it holds neither numbers nor few names."""
        values = adata.obs[column]
        if values.dtype == object:
            values = values.where(values.isna(), values.astype(str))  # of lists, too
        if values.dtype.kind in "fiu" and (values.nunique() > 2 or column in canals.values()):
            numbers = values.to_numpy(dtype=float)
            if not np.isfinite(numbers).any():
                raise DataError(f"color: obs column {column!r} holds no number that could be drawn")
            return cls(numbers, *_told(adata.obs, column, canals))
        if values.nunique() > MOST:
            raise DataError(
                f"color: expected numbers or at most {MOST} different names in obs column {column!r}, found "
                f"{values.nunique():,}, such as {listed([str(one) for one in values.unique()[:EXAMPLES]])}"
            )
        names = values.astype(object).where(values.notna(), _NONE).astype(str).to_numpy(dtype=object)
        title = named(column)
        if column == canals["cell_type"]:
            known = names != UNASSIGNED
            kinds = len(set(names[known]))
            title = f"{int(known.sum()):,} of {len(names):,} cells are of {kinds} known types"
        return cls(names, title, _colours(adata, column, names))

    @property
    def counts(self) -> dict[str, int]:
        """Cells of each name, most frequent first, "Unassigned" last."""
        names, counts = np.unique(self.values.astype(str), return_counts=True)
        pairs = zip(names.tolist(), counts.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: (pair[0] == UNASSIGNED, -pair[1], pair[0])))

    def legend_size(self, below: bool) -> tuple[float, int]:
        """Return the inches that the legend takes beside the map, and its lines below all maps."""
        if self.scale:
            return 0.6, 0
        if self.is_long and below:
            return 0.0, math.ceil(len(self.counts) / self._columns(below))
        return 0.075 * (self._longest + 12) * self._columns(below), 0

    @property
    def is_long(self) -> bool:
        """Whether the legend is too long to stand beside the map in one column."""
        return not self.scale and len(self.counts) > _BESIDE

    @property
    def _longest(self) -> int:
        return max(len(named(name)) for name in self.counts)

    def _columns(self, below: bool) -> int:
        if below and self.is_long:
            return max(1, _ACROSS // (self._longest + 12))
        return math.ceil(len(self.counts) / _BESIDE)

    def draw(self, axis: Axes, places: np.ndarray, below: bool) -> None:
        """Draw the cells at ``places``, (n_cells, 2); a long legend below all maps or beside this one."""
        low, high = places.min(axis=0), places.max(axis=0)
        span = float((high - low).max())
        half = 0.54 * (span if span > 1e-6 * max(1.0, float(np.abs(places).max())) else 1.0)
        (left, right), (bottom, top) = np.stack([(low + high) / 2 - half, (low + high) / 2 + half], axis=1)
        axis.set(xlim=(left, right), ylim=(bottom, top))
        axis.set_box_aspect(1)
        size = float(np.clip(60_000 / len(places), 1.0, 40.0)) / 4
        style: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
        if self.scale:
            self._draw_numbers(axis, places, style)
            return
        order = np.random.default_rng(0).permutation(len(places))  # no type lies on top of another
        drawn = [self.colours[str(name)] for name in self.values[order]]
        axis.scatter(places[order, 0], places[order, 1], c=drawn, **style)
        # What stands in the map for each name: itself where there are few, else its number.
        few = len(self.counts) <= 10 and all(len(name) <= 12 for name in self.counts)
        signs = {
            name: named(name) if few or name == UNASSIGNED else str(i)
            for i, name in enumerate(self.counts, start=1)
        }
        for name, sign in signs.items():
            if name != UNASSIGNED:
                _write_at_middle(axis, places[self.values == name], sign)
        labels = [
            f"{signs[name]}  {named(name)} ({n:,})" if signs[name].isdigit() else f"{named(name)} ({n:,})"
            for name, n in self.counts.items()
        ]
        handles = [axis.scatter([], [], s=22, color=self.colours[name]) for name in self.counts]
        style = {
            "handletextpad": 0.2,
            "columnspacing": 1.0,
            "labelspacing": 0.35,
            "ncols": self._columns(below),
        }
        if self.is_long and below:
            axis.figure.legend(handles, labels, loc="outside lower left", fontsize=7.5, **style)
        else:
            axis.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), **style)

    def _draw_numbers(self, axis: Axes, places: np.ndarray, style: dict[str, Any]) -> None:
        order = np.argsort(np.nan_to_num(self.values, nan=-np.inf), kind="stable")
        x, y = places[order].T
        dots = axis.scatter(x, y, c=self.values[order], cmap=heat_colours(self.scale), **style)
        inside = bool(np.nanmin(self.values) >= 0 and np.nanmax(self.values) <= 1)
        dots.set_clim(*((0, 1) if inside else (None, None)))
        bar = axis.figure.colorbar(dots, ax=axis, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)


def _told(
    obs: pd.DataFrame, column: str, canals: dict[str, str]
) -> tuple[str, dict[str, str], Sequence[str]]:
    """Return the title of a map of numbers, for canal's own columns what they show, and the scale."""
    if column == canals["confidence"]:
        unsure = int((obs[column] < 0.5).sum())
        return (
            f"Median confidence {obs[column].median():.2f}; {count(unsure)} below 0.5",
            {},
            _UNSURE_TO_SURE,
        )
    if column != canals["novelty"]:
        return named(column), {}, HEAT[1:]
    unassigned = int((obs[canals["cell_type"]].astype(str) == UNASSIGNED).sum())
    title = f"Median novelty {obs[column].median():.2f}; {count(unassigned)} {UNASSIGNED}"
    return title, {}, _KNOWN_TO_NOVEL


def _write_at_middle(axis: Axes, places: np.ndarray, text: str) -> None:
    """Write at the cell that lies nearest to the median of ``places``; above it where cells are few."""
    middle = places[np.abs(places - np.median(places, axis=0)).sum(axis=1).argmin()]
    box = {"boxstyle": "round,pad=0.12", "facecolor": SURFACE, "edgecolor": "none", "alpha": 0.7}
    axis.annotate(
        text, (middle[0], middle[1]), (0, 8 if len(places) < _FEW else 0), textcoords="offset points",
        ha="center", va="center", fontsize=8, color=INK, bbox=box, zorder=4,
    )  # fmt: skip


def _colours(adata: AnnData, column: str, names: np.ndarray) -> dict[str, str]:
    """Return the colour of each name: that of uns where it has them, else the name's own; no type is grey."""
    values, given = adata.obs[column], adata.uns.get(f"{column}_colors")
    found = type_colours(sorted(set(names.tolist())))
    if values.dtype.name == "category" and given is not None:
        own, kinds = _hex_colours(given), [str(one) for one in values.cat.categories]
        if own is not None and len(own) == len(kinds):
            found |= dict(zip(kinds, own, strict=True))
        else:
            found_there = "something else" if own is None else f"{len(own)}"
            warnings.warn(
                f"uns {column + '_colors'!r}: expected a colour for each of its {len(kinds)} categories, "
                f"found {found_there}: canal's own colours are drawn",
                stacklevel=2,
            )
    found |= {_NONE: "#dbe1e6", UNASSIGNED: OF_NO_TYPE[UNASSIGNED]}
    return {name: found[name] for name in set(names.tolist())}


def _hex_colours(given: Any) -> list[str] | None:
    """Return colours as matplotlib writes them; None where they are no list of colours."""
    from matplotlib.colors import is_color_like, to_hex

    is_list = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str | bytes)
    if not is_list or getattr(given, "ndim", 1) != 1:
        return None
    colours = [one.decode() if isinstance(one, bytes) else one for one in given]
    return [to_hex(one) for one in colours] if all(map(is_color_like, colours)) else None


# How labels agree: dots and bars.

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
