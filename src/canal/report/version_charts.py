"""Charts of a version's page, as Vega-Lite made by Altair: what changed, confusions, calibration, a map.

A chart is drawn in the browser; here it is a specification with its numbers. Its title is in the page's text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.annotation.places import type_colours
from canal.core.packages import lazy_module
from canal.report.canvas import BLUE, INK, MUTED, ORANGE, PALETTE

if TYPE_CHECKING:
    import altair as alt
else:  # a second, and an extra
    alt = lazy_module("altair")

Document = Mapping[str, Any]
_HEIGHT = 260
_LONGEST = 170
"""Pixels that the name of a cell type may take beside an axis."""


def charts(document: Document, mapped: Document | None) -> list[dict[str, str]]:
    """Return the charts of a page: the place of each, what it shows in words, its specification as JSON."""
    found = []
    for place, words, chart in _drawn(document, mapped):
        drawn = chart.to_dict()
        drawn.pop("$schema", None)
        spec = json.dumps(drawn, sort_keys=True, separators=(",", ":"))
        found.append(
            {"place": place, "words": words, "spec": spec.replace("<", "\\u003c")}
        )  # it stands in a page
    return found


def _drawn(document: Document, mapped: Document | None) -> Iterator[tuple[str, str, Any]]:
    changed = [one for one in document["types"] if one["change"]]
    if changed:
        yield "changes", f"Change of recall of {len(changed)} types with its interval.", _changes(changed)
    if document["answers"]:
        words = (
            "What test cells of each type are called, in counts; the table above has recall and precision."
        )
        yield "confusion", words, _confusion(document)
    calibration = document["evaluation"]["calibration"]
    if calibration and calibration.get("bins"):
        words = f"Share of right labels against confidence; calibration error {calibration['ece']:.3f}."
        yield "calibration", words, _calibration(document)
    if document["novelty"]:
        yield "novelty", "How many test cells have which novelty, and the threshold.", _novelty(document)
    if mapped is not None:
        n = len(mapped["cells"])
        yield "map", f"{n:,} validation cells in one layout, coloured by type.", _map(document, mapped)
        yield (
            "unsure",
            f"The same {n:,} cells, coloured by confidence or novelty.",
            _dots(
                mapped["cells"],
                alt.param(
                    name="shown",
                    value="confidence",
                    bind=alt.binding_select(options=["confidence", "novelty"], name="colour: "),
                ),
                alt.Color("value:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=_above()),
                ["truth", "after"],
            ),
        )
    history = document["history"]
    if history and history.get("epochs"):
        words = f"Validation accuracy over {len(history['epochs'])} epochs."
        yield "epochs", words, _epochs(history)


def _of(rows: Sequence[Document]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _tips(*names: str, **formats: str) -> list[alt.Tooltip]:
    plain = [alt.Tooltip(f"{name}:N") for name in names]
    return [*plain, *(alt.Tooltip(f"{name}:Q", format=how) for name, how in formats.items())]


def _above() -> alt.Legend:
    return alt.Legend(title=None, orient="top")


def _changes(types: Sequence[Document]) -> Any:
    """Return the change of each type's recall with its interval, the greatest loss first."""
    states = {"lost": ORANGE, "no change shown": MUTED, "gained": BLUE}
    rows = []
    for one in types:
        change = one["change"]
        state = "lost" if change["high"] < 0 else "gained" if change["low"] > 0 else "no change shown"
        points = {name: round(100 * change[name], 2) for name in ("difference", "low", "high")}
        rows.append({"type": f"{one['cell_type']} ({one['stage']})", "n": one["n"], "state": state, **points})
    rows.sort(key=lambda row: row["difference"])
    colour = alt.Color(
        "state:N", scale=alt.Scale(domain=list(states), range=list(states.values())), legend=_above()
    )
    names = alt.Y("type:N", sort=None, title=None, axis=alt.Axis(labelLimit=2 * _LONGEST))
    base = _of(rows).encode(
        y=names, color=colour, tooltip=_tips("type", n=",", difference="+.1f", low="+.1f", high="+.1f")
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="change, points"), x2="high:Q")
    dots = base.mark_point(filled=True, size=60).encode(x="difference:Q")
    zero = _of([{"x": 0}]).mark_rule(strokeDash=[3, 3], color=MUTED).encode(x="x:Q")
    return alt.layer(zero, bars, dots).properties(width="container", height=alt.Step(18))


def _confusion(document: Document) -> alt.HConcatChart:
    """Return the confusion matrices of both versions in one order; a list chooses the stage."""
    answers = document["answers"]
    stages = list(dict.fromkeys(one["stage"] for one in answers))
    named = {one[name] for one in answers for name in ("truth", "predicted")}
    labels = [*document["evaluation"]["labels"]]
    labels += sorted(named - set(labels))
    totals: dict[tuple[str, str, str], int] = {}
    for one in answers:
        row = (one["side"], one["stage"], one["truth"])
        totals[row] = totals.get(row, 0) + one["n"]
    numbers = {"before": (document["against"] or {}).get("number"), "after": document["version"]["number"]}
    halves: list[Any] = []
    for side in ("before", "after"):
        rows = [
            {**one, "share": round(one["n"] / totals[side, one["stage"], one["truth"]], 4)}
            for one in answers
            if one["side"] == side
        ]
        if rows:
            halves.append(_matrix(rows, labels, f"version {numbers[side]}", first=not halves))
    chosen = alt.binding_select(options=stages, name="test cells of ")
    whole: alt.HConcatChart = alt.hconcat(*halves).add_params(
        alt.param(name="stage", value=stages[0], bind=chosen)
    )
    return whole


def _matrix(rows: Sequence[Document], labels: Sequence[str], title: str, first: bool) -> Any:
    order = alt.Scale(domain=list(labels))
    across = alt.X(
        "predicted:N", scale=order, title="called", axis=alt.Axis(labelAngle=-60, labelLimit=_LONGEST)
    )
    beside = alt.Axis(labelLimit=_LONGEST) if first else alt.Axis(labels=False, ticks=False)
    down = alt.Y("truth:N", scale=order, title="is" if first else None, axis=beside)
    base = (
        _of(rows)
        .transform_filter("datum.stage == stage")
        .encode(x=across, y=down, tooltip=_tips("truth", "predicted", n=",", share=".1%"))
    )
    shade = alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    ink = alt.condition("datum.share > 0.5", alt.value("white"), alt.value(INK))
    squares, counts = base.mark_rect().encode(color=shade), base.mark_text(fontSize=9)
    layers = alt.layer(squares, counts.encode(text="n:Q", color=ink), title=title)
    return layers.properties(width=alt.Step(26), height=alt.Step(22))


def _calibration(document: Document) -> Any:
    """Return reliability curves of both versions; a calibrated one lies on the diagonal."""
    sides = {document["version"]["number"]: document["evaluation"]}
    if document["against"] and document["against"]["evaluation"]:
        sides[document["against"]["number"]] = document["against"]["evaluation"]
    rows = [
        {**bin_, "version": f"version {number}"}
        for number, evaluation in sides.items()
        for bin_ in (evaluation["calibration"] or {}).get("bins", [])
    ]
    whole = alt.Scale(domain=[0, 1])
    diagonal = _of([{"x": 0, "y": 0}, {"x": 1, "y": 1}]).mark_line(strokeDash=[3, 3], color=MUTED)
    curves = (
        _of(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("confidence:Q", title="confidence", scale=whole),
            y=alt.Y("accuracy:Q", title="share that is right", scale=whole),
            color=alt.Color("version:N", scale=alt.Scale(range=[BLUE, ORANGE]), legend=_above()),
            tooltip=_tips("version", n=",", confidence=".3f", accuracy=".3f"),
        )
    )
    line = diagonal.encode(x="x:Q", y="y:Q")
    return alt.layer(line, curves).properties(width="container", height=_HEIGHT)


def _novelty(document: Document) -> Any:
    """Return how many test cells have which novelty, by stage; a line at the threshold."""
    stages = document["evaluation"]["stages"]
    colours = alt.Scale(domain=stages, range=[PALETTE[i % len(PALETTE)] for i in range(len(stages))])
    bars = (
        _of(document["novelty"])
        .mark_bar()
        .encode(
            x=alt.X("novelty:Q", bin="binned", title="novelty", scale=alt.Scale(domain=[0, 1])),
            x2="to:Q",
            y=alt.Y("sum(n):Q", title="test cells"),
            color=alt.Color("stage:N", scale=colours, legend=_above()),
            tooltip=_tips("stage", novelty=".2f", n=","),
        )
    )
    threshold = document["evaluation"]["novelty"].get("threshold")
    layers = [bars]
    if threshold is not None:
        layers.append(_of([{"x": threshold}]).mark_rule(color=ORANGE, strokeWidth=2).encode(x="x:Q"))
    return alt.layer(*layers).properties(width="container", height=_HEIGHT)


def _map(document: Document, mapped: Document) -> alt.Chart:
    """Return the map of cells; a list chooses between both versions' types, true types and stages."""
    cells, evaluation = mapped["cells"], document["evaluation"]
    colours = type_colours(evaluation["labels"])
    fields = {"after": f"type by version {document['version']['number']}", "truth": "true type"}
    if "before" in cells[0]:
        fields["before"] = f"type by version {document['against']['number']}"
    others = sorted({cell[field] for cell in cells for field in fields} - set(colours))
    colours |= dict.fromkeys(others, MUTED)
    for place, stage in enumerate(evaluation["stages"]):
        colours.setdefault(stage, PALETTE[place % len(PALETTE)])
    fields["stage"] = "stage"
    chosen = alt.binding_select(options=list(fields), labels=list(fields.values()), name="colour: ")
    return _dots(
        cells,
        alt.param(name="shown", value="after", bind=chosen),
        alt.Color(
            "value:N",
            scale=alt.Scale(domain=list(colours), range=list(colours.values())),
            legend=None,
        ),
        list(fields),
    )


def _dots(cells: Sequence[Document], shown: Any, colour: alt.Color, names: Sequence[str]) -> alt.Chart:
    places = alt.Scale(zero=False, nice=False, padding=8)
    chart: alt.Chart = (
        _of(cells)
        .transform_calculate(value="datum[shown]")
        .mark_circle(size=22, opacity=0.85)
        .encode(
            x=alt.X("x:Q", axis=None, scale=places),
            y=alt.Y("y:Q", axis=None, scale=places),
            color=colour,
            tooltip=_tips("cell_id", *names, confidence=".2f", novelty=".2f"),
        )
        .add_params(shown)
        .properties(width="container", height=420)
        .interactive()
    )
    return chart


def _epochs(history: Document) -> alt.Chart:
    """Return validation accuracy by epoch, and accuracy on the probe cells of earlier stages."""
    rows = [
        {"epoch": one["epoch"], "cells": cells, "accuracy": value}
        for one in history["epochs"]
        for cells, value in {
            "validation": one.get("validation_accuracy"),
            **{f"probe of {stage}": value for stage, value in one.get("probe_accuracy", {}).items()},
        }.items()
        if value is not None
    ]
    chart: alt.Chart = (
        _of(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("accuracy:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("cells:N", scale=alt.Scale(range=list(PALETTE)), legend=_above()),
            tooltip=_tips("cells", epoch=",", accuracy=".3f"),
        )
        .properties(width="container", height=_HEIGHT)
    )
    return chart
