"""What each section of a version's page found, in a sentence: the section's title."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from canal.report.page import count, decimal, percent, points

Document = Mapping[str, Any]

_LEAST = 0.005
"""A difference of shares that no sentence is about."""


def titles(document: Document, mapped: Document | None) -> dict[str, str]:
    """Return the title of each section of a page."""
    return {
        "matrix": forgotten(document),
        "types": lost_most(document),
        "confusion": most_confused(document),
        "sure": how_sure(document),
        "map": mapped_rightly(mapped),
        "genes": strongest_gene(document),
        "sides": sides(document),
        "study": study(document["tuned"]),
        "cost": cost(document["cost"]),
    }


def forgotten(document: Document) -> str:
    """Return which stage lost most since a version of the lineage was best on it."""
    best: dict[str, tuple[float, int]] = {}
    for one in document["lineage"]:
        for stage, value in (one["row"] or {}).items():
            if value is not None and value > best.get(stage, (-1.0, 0))[0]:
                best[stage] = value, one["version"]
    row = document["evaluation"]["row"]
    fallen = [
        (top - row[stage], stage, top, number)
        for stage, (top, number) in best.items()
        if row.get(stage) is not None
    ]
    if not fallen:
        return "No stage was measured"
    loss, stage, top, number = max(fallen)
    if loss < _LEAST:
        return "No stage is below its best of the lineage"
    return f"{stage} is furthest below its best: {percent(top)} (version {number}) → {percent(row[stage])}"


def lost_most(document: Document) -> str:
    """Return which type lost most beside the other version, or is named worst."""
    changed = [one for one in document["types"] if one["change"]]
    if not changed:
        worst = min(document["types"], key=lambda one: one["recall"], default=None)
        if worst is None:
            return "No test cells of it are here"
        return f"{worst['cell_type']} of {worst['stage']} is named worst: {percent(worst['recall'])}"
    one = min(changed, key=lambda row: row["change"]["difference"])
    gained = sum(row["change"]["low"] > 0 for row in changed)
    more = f"; {gained} {'type' if gained == 1 else 'types'} gained" if gained else ""
    change = one["change"]
    if change["difference"] > -_LEAST:
        judged = f"{len(changed)} with enough test cells"
        return f"No type fell of the {judged}{more}"
    shown = "" if change["high"] < 0 else ", by no more than chance"
    return (
        f"{one['cell_type']} of {one['stage']} fell most: {percent(change['champion'])} → "
        f"{percent(change['candidate'])}{shown}{more}"
    )


def most_confused(document: Document) -> str:
    """Return the most frequent confusion, of all test cells of its type and stage."""
    totals: dict[tuple[str, str], int] = {}
    wrong: list[tuple[int, str, str, str]] = []
    for one in document["answers"]:
        if one["side"] == "after":
            place = one["stage"], one["truth"]
            totals[place] = totals.get(place, 0) + one["n"]
            if one["truth"] != one["predicted"]:
                wrong.append((one["n"], *place, one["predicted"]))
    if not wrong:
        return "No test cell is called by another type’s name" if totals else "No test cells of it are here"
    n, stage, truth, predicted = max(
        wrong, key=lambda one: (one[0], one[0] / totals[one[1], one[2]], one[1:])
    )
    of = totals[stage, truth]
    called = f"called {predicted}: {count(n)} of {count(of)} test cells"
    return f"Most often confused: {truth} of {stage}, {called}"


def how_sure(document: Document) -> str:
    """Return how far a confidence may be believed, and how well unknown cells are noticed."""
    evaluation = document["evaluation"]
    error = (evaluation["calibration"] or {}).get("ece")
    believed = (
        "Confidence was not measured" if error is None else f"Confidence is off by {points(error)} on average"
    )
    held_out = evaluation["novelty"].get("holdouts") or []
    if not held_out:
        return f"{believed}; no type was left out to test the threshold"
    cells = sum(one["n_unknown"] for one in held_out)
    noticed = sum(one["n_unknown"] * one["unknown_accuracy"] for one in held_out) / max(cells, 1)
    return f"{believed}; {percent(noticed)} of the cells of left-out types are noticed"


def mapped_rightly(mapped: Document | None) -> str:
    """Return how many cells on the map are named rightly, by both versions where both answer."""
    if mapped is None:
        return "It keeps no cells to lay out"
    cells = mapped["cells"]

    def right(side: str) -> float:
        return sum(bool(cell[side] == cell["truth"]) for cell in cells) / len(cells)

    before = f", {percent(right('before'))} before" if "before" in cells[0] else ""
    return f"{percent(right('after'))} of the cells it keeps are named rightly{before}"


def strongest_gene(document: Document) -> str:
    """Return the gene that carries the greatest share of a type."""
    found = [(one["genes"][0]["share"], one) for one in document["markers"] or () if one["genes"]]
    if not found:
        return "No gene carries a type"
    share, one = max(found, key=lambda pair: pair[0])
    return f"{one['genes'][0]['gene']} carries most of a type: {percent(share)} of {one['cell_type']}"


def sides(document: Document) -> str:
    """Return what network and sums each contribute, averaged over the stages that were measured."""
    method, alone = document["method"], document["evaluation"].get("alone")
    if not alone:
        if method["name"] == "published":
            return "The network answers; it keeps no sums to ask"
        return "The sums answer; what a network alone would answer was not measured"
    names = [name for name, value in document["evaluation"]["row"].items() if value is not None]

    def mean(values: Mapping[str, float | None]) -> float:
        measured = [value for name in names if (value := values.get(name)) is not None]
        return sum(measured) / max(len(measured), 1)

    both = percent(mean(document["evaluation"]["row"]))
    parts = ", ".join(f"the {name} alone {percent(mean(values))}" for name, values in alone.items())
    return f"Network and sums name {both} rightly, {parts}"


def study(tuned: Document | None) -> str:
    """Return what a study chose, and what that gained over the published settings."""
    if not tuned or not tuned.get("trials"):
        return "Its settings were not tuned: params.yaml sets them"
    by_number = {one["number"]: one for one in tuned["trials"]}
    chosen = by_number[tuned["chosen"]]
    published = next((one for one in tuned["trials"] if one["published"]), None)
    if chosen["published"]:
        return f"Of {len(by_number)} trials none is surely better than the published settings"
    words = f"Trial {chosen['number']} of {len(by_number)} was chosen"
    if published is None or published["state"] != "complete":
        return f"{words}: value {decimal(chosen['value'])}"
    return f"{words}: value {decimal(published['value'])} → {decimal(chosen['value'])}"


def cost(spent: Document) -> str:
    """Return how long the stage took, and what it keeps on disk."""
    size = f"{sum(spent['bytes'].values()) / 1e6:.1f} MB are kept"
    if not spent["seconds"]:
        return f"How long it took is not recorded here; {size}"
    return f"It took {duration(sum(spent['seconds'].values()))}; {size}"


def duration(seconds: float) -> str:
    """Return seconds as a reader counts them: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
