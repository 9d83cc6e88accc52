"""The pages of `canal ui`: templates, the line of versions and the map of cells as SVG, style and script.

Whatever somebody wrote is escaped; there is no script, style or address in a page but the board's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from canal.core.errors import visible
from canal.core.progress import count, percent, points, size, span
from canal.registry.ledger.rulings import shown_ruling

Document = Mapping[str, Any]

WIDTH, HEIGHT = 1000, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 34, 30
_TICKS = (0, 25, 50, 75, 100)
_MOST_DOTS = 30
"""Versions from which on a line has no dots: they would cover it."""
_MOST_NUMBERS = 25


def render(template: str, values: Document) -> str:
    """Return a page."""
    return _environment().get_template(f"board_{template}.html").render(values)


def style() -> str:
    """Return the style of all pages: that of canal's reports, and what the board adds."""
    return _read("page.css") + _read("board.css")


def icon() -> str:
    """Return the board's icon, an SVG."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path fill="none" stroke="#00714f" '
        'stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round" '
        'd="M8 15V8M8 9C8 5 5 3 2 3c0 4 3 6 6 6M8 7c0-3 2-5 6-5 0 4-3 6-6 6"/></svg>'
    )


def script() -> str:
    """Return the script: what waits looks again, and a file is sent with its progress shown."""
    return _read("board.js")


@cache
def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("canal", "report"),
        autoescape=True,  # labels, donors, reasons, names of people and files are whatever somebody wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "count": count,
        "size": size,
        "span": span,
        "time": _time,
        "visible": visible,
        "shown_ruling": shown_ruling,
        "address": lambda text: quote(str(text), safe=""),
        "thousands": lambda n: f"{n:,}",
    }
    environment.globals |= {"trend": trend}
    return environment


def _time(text: str) -> str:
    """Return a time of a record or an entry to the minute, such as "2026-01-02 03:04"."""
    return str(text)[:16].replace("T", " ")


def trend(rows: Sequence[Document], colours: Mapping[str, str]) -> dict[str, Any]:
    """Return recall by type along the versions, as what an SVG needs.

    Parameters
    ----------
    rows
        Versions, oldest first, each with ``number``, ``stage``, ``aliases`` and ``recall`` by type.
    colours
        Of each type.
    """
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(rows) - 1)
    xs = [_LEFT + step * place for place in range(len(rows))] if len(rows) > 1 else [WIDTH / 2] * len(rows)

    lowest = min((value for row in rows for value in row["recall"].values()), default=0.0)
    floor = int(4 * min(lowest, 0.99)) / 4  # what is drawn begins at a quarter: most types are near the top

    def y(share: float) -> float:
        return _TOP + (1 - share) / (1 - floor) * (HEIGHT - _TOP - _BOTTOM)

    every = max(1, -(-len(rows) // _MOST_NUMBERS))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": HEIGHT - _BOTTOM,
        "lines": list(_lines(rows, colours, xs, y)),
        "ticks": [
            {"y": round(y(tick / 100), 1), "text": f"{tick}"} for tick in _TICKS if tick >= 100 * floor
        ],
        "versions": [
            {
                "x": round(x, 1),
                "number": row["number"],
                "stage": row["stage"],
                "aliases": row["aliases"],
                "retired": row["retired"],
                "named": place % every == 0 or place == len(rows) - 1,
            }
            for place, (x, row) in enumerate(zip(xs, rows, strict=True))
        ],
    }


def _lines(
    rows: Sequence[Document], colours: Mapping[str, str], xs: Sequence[float], y: Callable[[float], float]
) -> Iterator[dict[str, Any]]:
    """Yield the line of each type: its points, dots where versions are few, first and last recall."""
    for name in dict.fromkeys(name for row in rows for name in row["recall"]):
        at = [(x, row["recall"][name]) for x, row in zip(xs, rows, strict=True) if name in row["recall"]]
        first, last = at[0][1], at[-1][1]
        yield {
            "name": name,
            "colour": colours.get(name, "#595959"),
            "points": " ".join(f"{x:.1f},{y(value):.1f}" for x, value in at),
            "dots": [
                {"x": round(x, 1), "y": round(y(value), 1)}
                for x, value in (at if len(rows) <= _MOST_DOTS or len(at) == 1 else ())
            ],
            "first": first,
            "last": last,
            "change": last - first if len(at) > 1 else None,
        }
