"""The page a reviewer promotes by: one version beside another, as one offline HTML file.

Charts are drawn in the browser by the copy of Vega that stands in the page: it asks no server for anything.
A type has the colour that it has in every figure of canal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from canal.annotation.places import type_colours
from canal.core.packages import named_packages
from canal.core.progress import size, span
from canal.quality.verdict import RuleResult
from canal.registry.ledger.rulings import TOO_FEW, in_percent, shown_ruling
from canal.report.canvas import write_html
from canal.report.documents import method_lines
from canal.report.gate_tables import finding
from canal.report.page import FILTERS, count, decimal, percent, points
from canal.report.study_figures import NAMES, front_rows
from canal.report.version_charts import charts

Document = Mapping[str, Any]
_WORST = 6
_LEAST = 0.005
"""A difference of shares that no sentence is about."""


@named_packages("`canal report`")
def write_version_page(document: Document, mapped: Document | None, library: str, out: Path) -> Path:
    """Write the page of a version; the same documents give the same bytes.

    Parameters
    ----------
    document, mapped
        As `canal.app.reviewing.review` returns them.
    library
        The drawing library; see `canal.report.beside`.
    out
        The HTML file to write.
    """
    values = {
        "d": document,
        "verdict": verdict(document),
        "promotable": promotable(document),
        "to_mend": list(to_mend(document)),
        "new_types": new_types(document),
        "title": titles(document, mapped),
        "worst": worst_types(document),
        "rulings": _sorted_rulings(document),
        "matrix": _matrix(document),
        "types": _type_rows(document),
        "gate": [
            {**one, "words": finding(RuleResult.from_json(one))}
            for one in sorted(document["gate"].get("rules", ()), key=lambda one: bool(one["passed"]))
        ],
        "alone": document["evaluation"].get("alone"),
        "weight": document["method"].get("network_weight"),
        "study": None if not (document["tuned"] or {}).get("trials") else front_rows(document["tuned"]),
        "setting_names": NAMES,
        "durations": {step: span(spent) for step, spent in document["cost"]["seconds"].items()},
        "novelty": {"threshold": None, "holdouts": []} | dict(document["evaluation"]["novelty"]),
        "method": list(method_lines(document["method"])),
        "markers": document["markers"],
        "kept": _kept(document),
        "card": document["card"],
        "charts": charts(document, mapped),
        "colours": list(type_colours(document["evaluation"]["labels"]).items()),
        "library": library.replace("</script", "<\\/script"),
    }
    return write_html("version.html", out, values, FILTERS)


# What it comes to, in sentences.


def verdict(document: Document) -> str:
    """Return in one sentence what the version does better and worse than the other."""
    other, comparison = document["against"], document["comparison"]
    if other is None:
        own = document["evaluation"]["row"][document["evaluation"]["stage"]]
        return f"The first of its lineage: {percent(own)} of its stage's test cells are named rightly."
    if comparison is None or not comparison["stages"]:
        return f"It could not be compared with version {other['number']}: no test cells of both are here."
    pairs = list(comparison["stages"].values())
    better, worse = sum(one["low"] > 0 for one in pairs), sum(one["high"] < 0 for one in pairs)
    stages = "stage" if len(pairs) == 1 else "stages"
    parts = [
        f"Better on {better or 'none'} of {len(pairs)} {stages}{_most(comparison['stages'], 1, better)}",
        f"worse on {worse or 'none'}{_most(comparison['stages'], -1, worse)}",
    ]
    lost = [one for one in document["types"] if one["change"] and one["change"]["high"] < 0]
    if lost:
        one = min(lost, key=lambda row: row["change"]["difference"])
        change = one["change"]
        parts.append(
            f"{one['cell_type']} of {one['stage']} lost: {100 * change['champion']:.0f} → "
            f"{100 * change['candidate']:.0f} % [{100 * one['low']:.0f}, {100 * one['high']:.0f}]"
        )
    else:
        parts.append("no type is shown to have lost")
    return f"{'; '.join(parts)}."


def _most(stages: Document, sign: int, shown: int) -> str:
    """Return the stage on which most was gained (lost, with ``sign`` -1), with the interval in points."""
    if not shown:
        return ""
    name = max(stages, key=lambda one: sign * stages[one]["difference"])
    low, middle, high = (100 * stages[name][end] for end in ("low", "difference", "high"))
    gain = f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return f" ({name} {gain})"


def promotable(document: Document) -> str:
    """Return in one sentence whether the policy lets the version serve."""
    rulings = document["rulings"]
    failed = [one for one in rulings if not one["passed"] and not one["overridden"]]
    few = [one for one in failed if one["value"] == TOO_FEW]
    despite = sum(one["overridden"] for one in rulings)
    holds = f"{len(rulings) - len(failed) - despite} of {len(rulings)} rules of the policy hold"
    holds += f", {despite} {'is' if despite == 1 else 'are'} overridden by a person" if despite else ""
    if "champion" in document["version"]["aliases"]:
        also = f", {len(few)} had too few test cells to be judged" if few else ""
        return f"It serves: {holds} today{also}."
    if not failed:
        return f"It may be promoted: {holds}."
    if len(few) == len(failed):
        return (
            f"A person decides: {holds}, {len(few)} had too few test cells to be judged "
            '(--too-few "REASON" lets them pass).'
        )
    fails = len(failed) - len(few)
    also = f", {len(few)} had too few test cells" if few else ""
    return f"It may not be promoted: {holds}, {fails} {'fails' if fails == 1 else 'fail'}{also}."


def to_mend(document: Document) -> Iterator[str]:
    """Yield what would have to change before the version may be promoted: a sentence for each failed rule."""
    for one in document["rulings"]:
        if one["passed"] or one["overridden"] or one["value"] == TOO_FEW:
            continue
        value, bound = in_percent(one)
        yield f"{one['rule']}: {value}, asked for {bound}" + (f" ({one['note']})" if one["note"] else "")
    few = sum(one["value"] == TOO_FEW and not one["overridden"] for one in document["rulings"])
    if few:
        rules = "1 rule" if few == 1 else f"{few} rules"
        yield (
            f"{rules} had too few test cells to be judged: measure it on more cells, or let them pass for a "
            'reason (--too-few "REASON")'
        )


def worst_types(document: Document) -> list[Document]:
    """Return the types of lowest recall on any stage, the worst first."""
    wrong = (one for one in document["types"] if one["recall"] < 1)
    return sorted(wrong, key=lambda one: (one["recall"], -one["n"]))[:_WORST]


def new_types(document: Document) -> list[str]:
    """Return the types that the version knows and the other one does not, by name."""
    before = (document["against"] or {}).get("evaluation")
    return sorted({*document["evaluation"]["labels"]} - {*before["labels"]}) if before else []


# What each section found: its title.


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
        return "No stage is half a point or more below its best in the lineage"
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
    kept = f"{size(sum(spent['bytes'].values()))} are kept"
    if not spent["seconds"]:
        return f"How long it took is not recorded here; {kept}"
    return f"It took {span(sum(spent['seconds'].values()))}; {kept}"


# Tables.


def _sorted_rulings(document: Document) -> list[Document]:
    """Return the rulings, those that do not hold first, each with its state in a word."""
    rulings = sorted(document["rulings"], key=lambda one: (one["passed"], one["value"] == TOO_FEW))
    return [shown_ruling(one) for one in rulings]


def _matrix(document: Document) -> Document:
    """Return R with a row for each version of the lineage, newest first."""
    stages = document["evaluation"]["stages"]
    rows = [
        {**one, "squares": [(one["row"] or {}).get(stage) for stage in stages]}
        for one in document["lineage"]
        if one["row"]
    ]
    return {"stages": stages, "rows": rows}


def _type_rows(document: Document) -> list[Document]:
    """Return recall and precision by stage and type, those that lost most first, then by recall."""

    def order(one: Document) -> tuple[float, float]:
        return (one["change"]["difference"] if one["change"] else 0.0), one["recall"]

    called = {
        (one["stage"], one["truth"], one["predicted"]): one["n"]
        for one in document["answers"]
        if one["side"] == "after" and one["truth"] != one["predicted"]
    }
    rows: list[Document] = []
    for one in sorted(document["types"], key=order):
        wrong = {
            name: n
            for (stage, truth, name), n in called.items()
            if (stage, truth) == (one["stage"], one["cell_type"])
        }
        most = max(wrong, key=lambda name: wrong[name], default=None)
        rows.append({**one, "confused": None if most is None else f"{most} ({wrong[most]:,})"})
    return rows


def _kept(document: Document) -> list[Document]:
    """Return how many cells of each type bank, probe and sums hold, in the model's order."""
    labels = document["evaluation"]["labels"]
    totals = {name: dict.fromkeys(labels, 0) for name in document["kept"]}
    for name, rows in document["kept"].items():
        for row in rows:
            totals[name][row["cell_type"]] = totals[name].get(row["cell_type"], 0) + row["n"]
    return [{"cell_type": label, **{name: totals[name].get(label, 0) for name in totals}} for label in labels]
