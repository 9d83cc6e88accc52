"""The table of `benchmarks/continual.py` for docs, and its page of figures, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from canal.core.files import new_file
from canal.report.canvas import BLUE, MUTED, ORANGE, new_figure, styled, svg_uri

Found = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes
    ----------
    key, title : str
        Of a figure.
    form : str
        ``share`` (.931), ``points`` (+0.4), ``number`` (1,234), ``short`` (0.12) or ``mega`` (of bytes).
    with_interval : bool
        Whether its 95 % interval stands beside it.
    best : int
        1: the larger the better, -1: the smaller, 0: neither.
    """

    key: str
    title: str
    form: str = "share"
    with_interval: bool = False
    best: int = 1


COLUMNS = (
    Column("average", "A_T", with_interval=True),
    Column("types", "mean over types", with_interval=True),
    Column("macro_f1", "macro-F1"),
    Column("forgetting", "forgetting, points", "points", best=-1),
    Column("transfer", "BWT, points", "points"),
    Column("left_out", "study left out", with_interval=True),
    Column("left_out_unassigned", "its known cells Unassigned", best=-1),
    Column("h_score", "novel: H"),
    Column("auroc", "AUROC"),
    Column("ece", "ECE", best=-1),
    Column("cpu_seconds", "one more stage, CPU s", "short", best=-1),
    Column("peak_mib", "MiB", "number", best=-1),
    Column("cells_a_cpu_second", "cells a CPU s", "number"),
    Column("bytes_kept", "kept, MB", "mega", best=-1),
    Column("cells_kept", "cells kept", "number", best=-1),
)
ABLATION_COLUMNS = tuple(
    Column(one.key, one.title, "points", True)
    for one in COLUMNS
    if one.key in ("average", "types", "macro_f1", "left_out")
) + (Column("left_out_types", "mean over types", "points", True),)


def values_of(figures: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return a figure under every seed that measured it."""
    return np.array([one[key] for one in figures if one.get(key) is not None], dtype=np.float64)


def reach(values: np.ndarray) -> float | None:
    """Return half the 95 % interval of a mean (Student's t over seeds); None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def shown(values: np.ndarray, column: Column) -> str:
    """Return a mean as the table has it; "–" where nothing was measured."""
    if not len(values):
        return "–"
    mean, apart = float(values.mean()), reach(values) if column.with_interval else None
    if column.form == "share":
        return _share(mean) + ("" if apart is None else f" ±{_share(apart)}")
    if column.form == "points":
        return f"{100 * mean:+.1f}" + ("" if apart is None else f" ±{100 * apart:.1f}")
    if column.form == "mega":
        return f"{mean / 1e6:,.2f}"
    return f"{mean:,.2f}" if column.form == "short" else f"{mean:,.0f}"


def _share(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def ranked(found: Found) -> list[str]:
    """Return the rivals that were measured, best A_T first."""
    names = [name for name, figures in found.items() if figures]
    return sorted(names, key=lambda name: -float(values_of(found[name], "average").mean()))


def rows_of(found: Found, titles: Mapping[str, str], columns: Sequence[Column]) -> list[list[str]]:
    """Return a row a rival: its title, its seeds, its figures."""
    rows = []
    for name in ranked(found):
        cells = [shown(values_of(found[name], one.key), one) for one in columns]
        rows.append([titles[name], str(len(found[name])), *cells])
    return rows


def markdown(stream: str, found: Found, titles: Mapping[str, str], of_variants: bool = False) -> str:
    """Return a stream's table for docs; of variants, the differences from the first one, in points."""
    columns = ABLATION_COLUMNS if of_variants else COLUMNS
    if of_variants:
        rows = [[name, str(len(one)), *_apart(found, name, columns)] for name, one in found.items()]
    else:
        rows = rows_of(found, titles, columns)
    heads = ["variant" if of_variants else "rival", "seeds", *(one.title for one in columns)]
    lines = [heads, ["---"] * len(heads), *rows]
    return f"\n{stream}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _apart(found: Found, name: str, columns: Sequence[Column]) -> list[str]:
    first = next(iter(found))
    cells = []
    for column in columns:
        own, base = values_of(found[name], column.key), values_of(found[first], column.key)
        if not len(own):
            cells.append("–")
        elif name == first:
            cells.append(f"{100 * float(own.mean()):.2f}")
        else:
            gap, apart = own - base, reach(own - base)
            interval = "" if apart is None else f" ±{100 * apart:.2f}"
            cells.append(f"{100 * float(gap.mean()):+.2f}{interval}")
    return cells


def page(path: Path, found: Mapping[str, Found], titles: Mapping[str, str]) -> Path:
    """Write one HTML page with the tables and figures of all streams."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>canal beside its rivals</title>",
        "<meta name='viewport' content='width=device-width'><style>",
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}",
        "table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .5rem;text-align:right}",
        "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#8881}",
        ".wide{overflow-x:auto}img{max-width:100%}:root{color-scheme:light dark}</style>",
        "<h1>canal beside its rivals</h1>",
        "<p>Test cells; means over split seeds with 95 % intervals of the mean. Same splits, same genes, "
        "same cells for all; how it was measured stands in docs/benchmarks.md.</p>",
    ]
    for stream, one in found.items():
        if not ranked(one):
            continue
        best = titles[ranked(one)[0]]
        parts.append(f"<h2>{escape(stream)}: {escape(best)} has the highest A_T</h2>")
        drawn = svg_uri(figure(one, titles))
        said = f"A_T, study left out, forgetting and cost of each rival on {escape(stream)}"
        parts.append(f"<img alt='{said}' src='{drawn}'>")
        heads = "".join(f"<th>{escape(name)}" for name in ("rival", "seeds", *(c.title for c in COLUMNS)))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows_of(one, titles, COLUMNS)
        )
        parts.append(f"<div class='wide' tabindex='0'><table><tr>{heads}{body}</table></div>")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


@styled
def figure(found: Found, titles: Mapping[str, str]) -> Any:
    """Draw accuracy, accuracy on studies left out, forgetting and cost, a line a rival, with intervals."""
    names = ranked(found)[::-1]
    panels = {
        "average": "A_T",
        "left_out": "Study left out",
        "forgetting": "Forgetting",
        "cpu_seconds": "One more stage, CPU s",
    }
    drawn = new_figure(12, 1.1 + 0.24 * len(names))
    for axis, (key, title) in zip(drawn.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for row, name in enumerate(names):
            values = values_of(found[name], key)
            if not len(values):
                continue
            colour = ORANGE if titles[name].startswith("canal") else BLUE
            error = reach(values)
            axis.errorbar(values.mean(), row, xerr=error, fmt="o", color=colour, ecolor=MUTED, capsize=2)
        axis.set_title(title)
        axis.grid(True, axis="x")
        if key == "cpu_seconds":
            axis.set_xscale("log")
    drawn.axes[0].set_yticks(range(len(names)), [titles[name] for name in names])
    return drawn
