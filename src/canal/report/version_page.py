"""The page a reviewer promotes by: one version beside another, as one offline HTML file.

Charts are drawn in the browser by the copy of Vega that stands in the page: it asks no server for anything.
A type has the colour that it has in every figure of canal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from canal.annotation.places import type_colours
from canal.core.packages import named_packages
from canal.quality.verdict import RuleResult
from canal.registry.ledger.rulings import TOO_FEW
from canal.report.canvas import write_html
from canal.report.documents import method_lines
from canal.report.gate_tables import finding
from canal.report.page import FILTERS, percent
from canal.report.study_figures import NAMES, front_rows
from canal.report.version_charts import charts
from canal.report.version_findings import duration, titles

Document = Mapping[str, Any]
_WORST = 6


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
        "title": titles(document, mapped),
        "worst": worst_types(document),
        "rulings": _sorted_rulings(document),
        "matrix": _matrix(document),
        "types": _type_rows(document),
        "gate": [
            {**one, "words": finding(RuleResult(*(one[field.name] for field in fields(RuleResult))))}
            for one in sorted(document["gate"].get("rules", ()), key=lambda one: bool(one["passed"]))
        ],
        "alone": document["evaluation"].get("alone"),
        "weight": document["method"].get("network_weight"),
        "study": None if not (document["tuned"] or {}).get("trials") else front_rows(document["tuned"]),
        "setting_names": NAMES,
        "durations": {step: duration(spent) for step, spent in document["cost"]["seconds"].items()},
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
    parts = [
        f"Better on {better or 'none'} of {len(pairs)} {'stage' if len(pairs) == 1 else 'stages'}",
    ]
    parts.append(f"worse on {worse}" if worse else "worse on none")
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


def promotable(document: Document) -> str:
    """Return in one sentence whether the policy lets the version serve."""
    rulings = document["rulings"]
    failed = [one for one in rulings if not one["passed"] and not one["overridden"]]
    few = [one for one in failed if one["value"] == TOO_FEW]
    holds = f"{len(rulings) - len(failed)} of {len(rulings)} rules of the policy hold"
    if "champion" in document["version"]["aliases"]:
        return f"It serves: {holds} today."
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
        yield f"{one['rule']}: {one['value']}, asked for {one['bound']}" + (
            f" ({one['note']})" if one["note"] else ""
        )
    few = sum(one["value"] == TOO_FEW and not one["overridden"] for one in document["rulings"])
    if few:
        rules = "1 rule" if few == 1 else f"{few} rules"
        yield (
            f"{rules} had too few test cells to be judged: measure it on more cells, or let them pass for a "
            'reason (--too-few "REASON")'
        )


def worst_types(document: Document) -> list[Document]:
    """Return the types of lowest recall on any stage, the worst first."""
    return sorted(document["types"], key=lambda one: (one["recall"], -one["n"]))[:_WORST]


# Tables.


def _sorted_rulings(document: Document) -> list[Document]:
    """Return the rulings, those that do not hold first, each with its state in a word."""
    rulings: list[Document] = []
    for one in sorted(document["rulings"], key=lambda one: (one["passed"], one["value"] == TOO_FEW)):
        state = "too few to judge" if one["value"] == TOO_FEW else "fails"
        state = "holds" if one["passed"] else "overridden" if one["overridden"] else state
        rulings.append({**one, "state": state})
    return rulings


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
