"""Charts of a version's page, as Vega-Lite: changes, confusions, calibration, novelty, study, a map.

A chart is drawn in the browser; here it is a specification with its numbers, and a sentence that says what it
shows. They are written as Vega-Lite's own JSON, which every command can do in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from canal.annotation.places import type_colours
from canal.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PALETTE
from canal.report.page import decimal, percent
from canal.report.study_figures import NAMES

Document = Mapping[str, Any]
Spec = dict[str, Any]
_HEIGHT = 260
_LONGEST = 170
"""Pixels that the name of a cell type may take beside an axis."""


def charts(document: Document, mapped: Document | None) -> list[dict[str, str]]:
    """Return the charts of a page: the place of each, what it shows in words, its specification as JSON."""
    return [
        {
            "place": place,
            "words": words,
            # it stands in a page
            "spec": json.dumps(spec, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c"),
        }
        for place, words, spec in _drawn(document, mapped)
    ]


def _drawn(document: Document, mapped: Document | None) -> Iterator[tuple[str, str, Spec]]:
    evaluation = document["evaluation"]
    changed = [one for one in document["types"] if one["change"]]
    if changed:
        yield "changes", _said_of_changes(changed), _changes(changed)
    if document["answers"]:
        words = (
            "What test cells of each type are called, in counts; the table above has recall and precision."
        )
        yield "confusion", words, _confusion(document)
    calibration = evaluation["calibration"]
    if calibration and calibration.get("bins"):
        words = f"Share of right labels against confidence; calibration error {decimal(calibration['ece'])}."
        yield "calibration", words, _calibration(document)
    if document["novelty"]:
        threshold = evaluation["novelty"].get("threshold")
        words = "How many test cells have which novelty; "
        words += "no threshold." if threshold is None else f"the threshold is {decimal(threshold)}."
        yield "novelty", words, _novelty(document)
    if evaluation.get("alone"):
        words = "Accuracy on the test cells of each stage by network and sums together, and by each alone."
        yield "sides", words, _sides(evaluation)
    if mapped is not None:
        yield from _maps(document, mapped)
    history = document["history"]
    if history and history.get("epochs"):
        words = f"Validation accuracy over {len(history['epochs'])} epochs."
        yield "epochs", words, _epochs(history)
    if document["tuned"] and document["tuned"].get("trials"):
        done = sum(one["state"] == "complete" for one in document["tuned"]["trials"])
        words = f"Accuracy on new cells against what was kept, for {done} trials; the chosen one stands out."
        yield "study", words, _study(document["tuned"])


def _said_of_changes(changed: Sequence[Document]) -> str:
    lost = sum(one["change"]["high"] < 0 for one in changed)
    gained = sum(one["change"]["low"] > 0 for one in changed)
    many = f"{len(changed)} {'type' if len(changed) == 1 else 'types'}"
    words = (
        f"Change of recall of {many} with enough test cells, with its interval: {lost} lost, {gained} gained"
    )
    worst = min(changed, key=lambda one: one["change"]["difference"])
    if worst["change"]["difference"] >= 0:
        return f"{words}."
    change = worst["change"]
    return (
        f"{words}; furthest down {worst['cell_type']} of {worst['stage']}, "
        f"{percent(change['champion'])} → {percent(change['candidate'])}."
    )


# Parts of specifications.


def _of(rows: Sequence[Document]) -> Spec:
    return {"data": {"values": list(rows)}}


def _quantity(field: str, title: str | None = None, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **({} if title is None else {"title": title}), **more}


def _name(field: str, title: str | None = None, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": title, **more}


def _tips(*names: str, **formats: str) -> list[Spec]:
    plain = [{"field": name, "type": "nominal"} for name in names]
    return [*plain, *(_quantity(name, format=how) for name, how in formats.items())]


_ABOVE: Spec = {"title": None, "orient": "top"}
_WIDE: Spec = {"width": "container", "height": _HEIGHT}


def _colour(field: str, names: Sequence[str], colours: Sequence[str], legend: Spec | None = _ABOVE) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(names), "range": list(colours)},
        "legend": legend,
    }


def _list(name: str, value: str, options: Sequence[str], words: str, labels: Sequence[str] = ()) -> Spec:
    """Return a parameter that a list beside the chart chooses."""
    bind: Spec = {"input": "select", "options": list(options), "name": words}
    return {"name": name, "value": value, "bind": {**bind, **({"labels": list(labels)} if labels else {})}}


def _changes(types: Sequence[Document]) -> Spec:
    """Return the change of each type's recall with its interval, the greatest loss first."""
    states = {"lost": ORANGE, "no change shown": MUTED, "gained": BLUE}
    rows = []
    for one in types:
        change = one["change"]
        state = "lost" if change["high"] < 0 else "gained" if change["low"] > 0 else "no change shown"
        points = {name: round(100 * change[name], 2) for name in ("difference", "low", "high")}
        rows.append({"type": f"{one['cell_type']} ({one['stage']})", "n": one["n"], "state": state, **points})
    rows.sort(key=lambda row: row["difference"])
    shared = {
        "y": _name("type", sort=None, axis={"labelLimit": 2 * _LONGEST}),
        "color": _colour("state", list(states), list(states.values())),
        "tooltip": _tips("type", n=",", difference="+.1f", low="+.1f", high="+.1f"),
    }
    across = {"x": _quantity("low", "change, points"), "x2": {"field": "high"}}
    zero = {"type": "rule", "strokeDash": [3, 3], "color": MUTED}
    return {
        "layer": [
            _of([{"x": 0}]) | {"mark": zero, "encoding": {"x": _quantity("x")}},
            _of(rows) | {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**shared, **across}},
            _of(rows)
            | {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {**shared, "x": _quantity("difference")},
            },
        ],
        "width": "container",
        "height": {"step": 18},
    }


def _confusion(document: Document) -> Spec:
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
    halves: list[Spec] = []
    for side in ("before", "after"):
        rows = [
            {**one, "share": round(one["n"] / totals[side, one["stage"], one["truth"]], 4)}
            for one in answers
            if one["side"] == side
        ]
        if rows:
            halves.append(_matrix(rows, labels, f"version {numbers[side]}", first=not halves))
    return {"hconcat": halves, "params": [_list("stage", stages[0], stages, "test cells of ")]}


def _matrix(rows: Sequence[Document], labels: Sequence[str], title: str, first: bool) -> Spec:
    order = {"domain": list(labels)}
    beside: Spec = {"labelLimit": _LONGEST} if first else {"labels": False, "ticks": False}
    shared = {
        "x": _name("predicted", "called", scale=order, axis={"labelAngle": -60, "labelLimit": _LONGEST}),
        "y": _name("truth", "is" if first else None, scale=order, axis=beside),
        "tooltip": _tips("truth", "predicted", n=",", share=".1%"),
    }
    shade = _quantity("share", scale={"scheme": "blues", "domain": [0, 1]}, legend=None)
    ink = {"condition": {"test": "datum.share > 0.5", "value": "white"}, "value": INK}
    return _of(rows) | {
        "transform": [{"filter": "datum.stage == stage"}],
        "title": title,
        "layer": [
            {"mark": "rect", "encoding": {**shared, "color": shade}},
            {
                "mark": {"type": "text", "fontSize": 9},
                "encoding": {**shared, "text": _quantity("n"), "color": ink},
            },
        ],
        "width": {"step": 26},
        "height": {"step": 22},
    }


def _calibration(document: Document) -> Spec:
    """Return reliability curves of both versions; a calibrated one lies on the diagonal."""
    sides = {document["version"]["number"]: document["evaluation"]}
    if document["against"] and document["against"]["evaluation"]:
        sides[document["against"]["number"]] = document["against"]["evaluation"]
    rows = [
        {**bin_, "version": f"version {number}"}
        for number, evaluation in sides.items()
        for bin_ in (evaluation["calibration"] or {}).get("bins", [])
    ]
    whole = {"domain": [0, 1]}
    diagonal = _of([{"x": 0, "y": 0}, {"x": 1, "y": 1}]) | {
        "mark": {"type": "line", "strokeDash": [3, 3], "color": MUTED},
        "encoding": {"x": _quantity("x"), "y": _quantity("y")},
    }
    curves = _of(rows) | {
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": _quantity("confidence", "confidence", scale=whole),
            "y": _quantity("accuracy", "share that is right", scale=whole),
            "color": _colour("version", [f"version {number}" for number in sides], (BLUE, ORANGE)),
            "tooltip": _tips("version", n=",", confidence=".3f", accuracy=".3f"),
        },
    }
    return {"layer": [diagonal, curves], **_WIDE}


def _novelty(document: Document) -> Spec:
    """Return how many test cells have which novelty, by stage; a line at the threshold."""
    stages = document["evaluation"]["stages"]
    bars = _of(document["novelty"]) | {
        "mark": "bar",
        "encoding": {
            "x": _quantity("novelty", "novelty", bin="binned", scale={"domain": [0, 1]}),
            "x2": {"field": "to"},
            "y": _quantity("n", "test cells", aggregate="sum"),
            "color": _colour("stage", stages, _palette(len(stages))),
            "tooltip": _tips("stage", novelty=".2f", n=","),
        },
    }
    layers = [bars]
    threshold = document["evaluation"]["novelty"].get("threshold")
    if threshold is not None:
        mark = {"type": "rule", "color": ORANGE, "strokeWidth": 2}
        layers.append(_of([{"x": threshold}]) | {"mark": mark, "encoding": {"x": _quantity("x")}})
    return {"layer": layers, **_WIDE}


def _sides(evaluation: Document) -> Spec:
    """Return accuracy by stage of network and sums together, and of each alone."""
    colours = {"together": INK, "network alone": ORANGE, "sums alone": BLUE}
    by_side = {"together": evaluation["row"]} | {
        f"{name} alone": values for name, values in evaluation["alone"].items()
    }
    rows = [
        {"stage": stage, "answers": side, "accuracy": value}
        for side, values in by_side.items()
        for stage, value in values.items()
        if value is not None
    ]
    return _of(rows) | {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
        "encoding": {
            "x": _quantity("accuracy", "accuracy on test cells", scale={"zero": False}, axis={"format": "%"}),
            "y": _name("stage", sort=None, axis={"labelLimit": _LONGEST}),
            "color": _colour("answers", list(colours), [MUTED, ORANGE, BLUE]),
            "shape": {"field": "answers", "type": "nominal", "legend": None},
            "tooltip": _tips("stage", "answers", accuracy=".1%"),
        },
        "width": "container",
        "height": {"step": 26},
    }


def _maps(document: Document, mapped: Document) -> Iterator[tuple[str, str, Spec]]:
    cells = mapped["cells"]
    n = f"{len(cells):,}" + (f" of {mapped['kept']:,}" if mapped["kept"] > len(cells) else "")
    yield "map", f"{n} validation cells in one layout, coloured by type.", _map(document, mapped)
    shown = _list("shown", "confidence", ["confidence", "novelty"], "colour: ")
    shade = _quantity("value", scale={"scheme": "viridis", "domain": [0, 1]}, legend=_ABOVE)
    words = f"The same {len(cells):,} cells, coloured by confidence or novelty."
    yield "unsure", words, _dots(cells, shown, shade, ["truth", "after"])


def _map(document: Document, mapped: Document) -> Spec:
    """Return the map of cells; a list chooses between both versions' types, true types and stages."""
    cells, evaluation = mapped["cells"], document["evaluation"]
    colours = type_colours(evaluation["labels"])
    fields = {"after": f"type by version {document['version']['number']}", "truth": "true type"}
    if "before" in cells[0]:
        fields["before"] = f"type by version {document['against']['number']}"
    others = sorted({cell[field] for cell in cells for field in fields} - set(colours))
    colours |= dict.fromkeys(others, MUTED)
    for stage, colour in zip(evaluation["stages"], _palette(len(evaluation["stages"])), strict=True):
        colours.setdefault(stage, colour)
    fields["stage"] = "stage"
    shown = _list("shown", "after", list(fields), "colour: ", list(fields.values()))
    shade = _colour("value", list(colours), list(colours.values()), legend=None)
    return _dots(cells, shown, shade, list(fields))


def _dots(cells: Sequence[Document], shown: Spec, colour: Spec, names: Sequence[str]) -> Spec:
    places = {"zero": False, "nice": False, "padding": 8}
    return _of(cells) | {
        "transform": [{"calculate": "datum[shown]", "as": "value"}],
        "params": [shown, {"name": "moved", "select": "interval", "bind": "scales"}],
        "mark": {"type": "circle", "size": 22, "opacity": 0.85},
        "encoding": {
            "x": _quantity("x", axis=None, scale=places),
            "y": _quantity("y", axis=None, scale=places),
            "color": colour,
            "tooltip": _tips("cell_id", *names, confidence=".2f", novelty=".2f"),
        },
        "width": "container",
        "height": 420,
    }


def _epochs(history: Document) -> Spec:
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
    names = list(dict.fromkeys(row["cells"] for row in rows))
    return _of(rows) | {
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": _quantity("epoch", axis={"tickMinStep": 1}),
            "y": _quantity("accuracy", scale={"zero": False}),
            "color": _colour("cells", names, _palette(len(names))),
            "tooltip": _tips("cells", epoch=",", accuracy=".3f"),
        },
        **_WIDE,
    }


def _study(tuned: Document) -> Spec:
    """Return accuracy and retention of each finished trial; the chosen and the published one stand out."""
    colours = {"chosen": ORANGE, "published settings": GREEN, "other": BLUE}
    rows = []
    for one in tuned["trials"]:
        if one["state"] == "complete":
            what = "chosen" if one["number"] == tuned["chosen"] else "other"
            what = "published settings" if one["published"] and what == "other" else what
            settings = {NAMES.get(name, name): value for name, value in one["settings"].items()}
            scores = {name: one[name] for name in ("number", "accuracy", "retention")}
            rows.append({"trial": what, **scores, **settings})
    names = [name for name in rows[0] if name not in ("accuracy", "retention")] if rows else []
    return _of(rows) | {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9},
        "encoding": {
            "x": _quantity("retention", "kept of the earlier stages’ accuracy", scale={"zero": False}),
            "y": _quantity("accuracy", "balanced accuracy, new cells", scale={"zero": False}),
            "color": _colour("trial", list(colours), list(colours.values())),
            "tooltip": _tips(*names, accuracy=".3f", retention=".3f"),
        },
        **_WIDE,
    }


def _palette(n: int) -> list[str]:
    return [PALETTE[place % len(PALETTE)] for place in range(n)]
