"""One map of cells: by type, by confidence or novelty, or by any column of obs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.colours import OF_NO_TYPE, type_colours
from canal.annotation.columns import UNASSIGNED
from canal.core.errors import DataError
from canal.io.arrays import EXAMPLES, listed
from canal.report.agreement import MOST
from canal.report.canvas import AMBER, BLUE, HEAT, INK, ORANGE, SURFACE, heat_colours, named
from canal.report.cell_tables import count

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
        signs = self._signs()
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

    def _signs(self) -> dict[str, str]:
        """Return what stands in the map for each name: itself where there are few, else its number."""
        few = len(self.counts) <= 10 and all(len(name) <= 12 for name in self.counts)
        return {
            name: named(name) if few or name == UNASSIGNED else str(i)
            for i, name in enumerate(self.counts, start=1)
        }


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
