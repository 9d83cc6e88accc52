"""The drift watch (`canal.app.watching.watch`) as a table on a terminal, and as a figure over months."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from canal.core.errors import DataError, visible
from canal.core.progress import count, first_names, percent
from canal.report.canvas import BLUE, GRID, INK, ORANGE, new_figure, number_or_gap, save, short, styled
from canal.report.listing import Column, Listing, figures, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]

HEADINGS = {
    "unassigned": "Unassigned",
    "novelty": "novelty",
    "confidence": "confidence",
    "types": "other types",
    "genes": "genes",
    "depth": "depth",
}
_MEDIANS = ("novelty", "confidence")
_NOTE = (
    "novelty, confidence: medians; other types: cells of types that are commoner than in any stage; genes: "
    "share of the model's genes in the files; depth: share of them that a median cell expresses; !: out of "
    "range; (): too few cells to judge; -: not recorded"
)
_ADVICE = itemgetter("row", "cause", "advice", "command")
_LABELS = 5
"""Most names below a panel: more would run into each other."""
_KINDS = (".svg", ".png", ".pdf")


def watch_group(document: Document) -> Group:
    """Return what was labelled month by month, what is off, what to do, and what was left out."""
    which = f"version {document['version']} ({document['stage']})"
    told = [text(line, "dim") for line in _left_out(document)]
    if not document["rows"]:
        since = f" since {document['since']}" if document["since"] else ""
        nothing = text(f"No file that {which} labelled{since} is on record. Next:")
        return Group(nothing, *_commands("canal annotate FILE -o LABELLED.h5ad"), *told)
    columns = (
        Column(document["by"], style="bold"),
        *figures("files", "cells", *HEADINGS.values()),
    )
    found = Listing(f"Cells labelled by {which}, and the range on its test cells", columns)
    tested = sum(one["test_cells"] for one in document["stages"])
    found.add("test cells", "", f"{tested:,}", *(_range(document, name) for name in HEADINGS))
    for row in document["rows"]:
        cells = [_cell(name, row["measures"][name]) for name in HEADINGS]
        found.add(row["name"], str(row["files"]), f"{row['cells']:,}", *cells)
    found.note = _NOTE
    missing = [
        text(f"not measured: {HEADINGS[name]}: {why}", "dim") for name, why in document["why_not"].items()
    ]
    return Group(found, *missing, *told, *_outside(document), *_alarms(document))


def shown_rows(document: Document) -> list[dict[str, Any]]:
    """Return the test cells' ranges and each row, newest first, as texts for a page."""
    tested = sum(one["test_cells"] for one in document["stages"])
    ranges = [{"text": _range(document, name).plain, "state": ""} for name in HEADINGS]
    first = {"name": "test cells", "files": None, "cells": tested, "cells_of": ranges}
    return [
        first,
        *(
            {
                "name": row["name"],
                "files": row["files"],
                "cells": row["cells"],
                "cells_of": [
                    {"text": _shown(name, row["measures"][name]), "state": row["measures"][name]["state"]}
                    for name in HEADINGS
                ],
            }
            for row in reversed(document["rows"])
        ),
    ]


def _shown(name: str, measure: Document) -> str:
    value = measure["value"]
    return "-" if value is None or measure["state"] == "not recorded" else _number(name, value)


def _cell(name: str, measure: Document) -> Any:
    shown, state = _shown(name, measure), measure["state"]
    if shown == "-":
        return text("-", "dim")
    if state == "alarm":
        return text(f"{shown} !", "bold red")
    return text(f"({shown})", "dim") if state == "too few" else text(shown)


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name in _MEDIANS else percent(value)


def _range(document: Document, name: str) -> Any:
    ends = document["ranges"][name]
    if ends is None or name == "types":
        return text("-" if ends is None else "", "dim")
    low, high = (_number(name, end) for end in ends)
    return text(low if low == high else f"{low.removesuffix(' %')}-{high}", "dim")


def _alarms(document: Document) -> Iterator[Any]:
    """Yield what is off, with the command on a line of its own, or that all is in range."""
    yield Text()
    if not document["alarms"]:
        judged = any(row["state"] == "in range" for row in document["rows"])
        yield (
            text("All that could be judged is in range.", "green")
            if judged
            else text("Nothing could be judged.")
        )
        return
    yield text("What is off", "bold")
    for (_, cause, advice, command), alarms in groupby(document["alarms"], _ADVICE):
        for one in alarms:
            yield text(f"- {one['what']}{', ' if one['where'] else ''}{one['where']}", "yellow")
        yield text(f"  {cause}: {advice}")
        yield from _commands(command)


def _commands(command: str) -> list[Text]:
    return [Text(f"  {visible(command)}", "cyan", no_wrap=True)]


def _outside(document: Document) -> Iterator[Any]:
    """Yield files that left a range though their month did not."""
    for row in document["rows"] if document["by"] == "month" else ():
        out = {name for name, one in row["measures"].items() if one["state"] == "alarm"}
        files = [one["file"] for one in row["outside"] if not out & set(one["measures"])]
        if files:
            yield text(f"{row['name']}: by itself out of range: {first_names(files)} (--by file)", "yellow")


def _left_out(document: Document) -> Iterator[str]:
    """Yield the records that count nowhere, and why."""
    left = document["left_out"]
    for name, why in (
        ("unreadable", "cannot be read: the log annotations.jsonl was damaged"),
        ("edited", "edited after it was written"),
        ("damaged", "with numbers of cells that cannot be"),
        ("future", "of a time that has not come: look at the clock of the machine that labelled"),
        ("again", "of a file that counts already: it was labelled again"),
    ):
        if left[name]:
            yield f"not counted: {count(left[name], 'record')} {why}"
    for version, n in left["other_versions"].items():
        name = "of models from elsewhere" if version == "elsewhere" else f"of version {version}"
        more = "" if version == "elsewhere" else f": canal watch {version}"
        yield f"not counted: {count(n, 'record')} {name}{more}"


def plot(document: Document, path: Path) -> Path:
    """Write what `drawn` draws, and return the file.

    Raises
    ------
    DataError
        If the file's suffix names no format, or there is nothing to draw.
    """
    if path.suffix not in _KINDS:
        raise DataError(
            f"{path}: a figure is written as {', '.join(_KINDS)}: give an output with that suffix"
        )
    if not document["rows"]:
        raise DataError("there is nothing to draw: no file that this version labelled is on record")
    return save(drawn(document), path)


@styled
def drawn(document: Document) -> "Figure":
    """Draw each measure over the rows, with the range of the test cells; what is out is a square."""
    figure = new_figure(10.9, 5.2)
    for axis, name in zip(figure.subplots(2, 3).flat, HEADINGS, strict=True):
        _draw(axis, document, name)
    return figure


def _draw(axis: "Axes", document: Document, name: str) -> None:
    rows, ends = document["rows"], document["ranges"][name]
    places = range(len(rows))
    measures = [row["measures"][name] for row in rows]
    if ends is not None:
        axis.axhspan(*ends, color=GRID, zorder=0)
        for end in ends:
            axis.axhline(end, color=GRID, zorder=0)
    values = [number_or_gap(one["value"]) for one in measures]
    axis.plot(places, values, color=BLUE, marker="o", markersize=4)
    out = [place for place in places if measures[place]["state"] == "alarm"]
    axis.plot(out, [values[place] for place in out], color=ORANGE, marker="s", linestyle="", markersize=7)
    step = -(-len(rows) // _LABELS)
    axis.set_xticks(list(places)[::step], [short(row["name"], 14) for row in rows][::step], color=INK)
    axis.set_title(f"{HEADINGS[name][:1].upper()}{HEADINGS[name][1:]}{'' if ends else ' (not measured)'}")
    axis.margins(x=0.06)
    top = max([*(value for value in values if value == value), *(ends or ()), 0.1])
    axis.set_ylim(0, min(1.1 * top, 1.02))
    if name not in _MEDIANS:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
