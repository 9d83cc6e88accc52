"""A study's front as a table: what was chosen, beside what is published."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from canal.report.tables import table, text

if TYPE_CHECKING:
    from rich.console import Group

Document = Mapping[str, Any]
Row = dict[str, Any]


def front_rows(document: Document) -> list[Row]:
    """Return the trials that none beats in both aims, and the published and the chosen one, marked.

    A row has ``number``, ``marks``, the settings, ``accuracy``, ``retention``, ``harmonic_mean``, ``value``.
    """
    rows = []
    for trial in document["trials"]:
        marks = [*(["published"] if trial["published"] else [])]
        marks += ["chosen"] if trial["number"] == document["chosen"] else []
        on_front = trial["number"] in document["front"]
        if trial["state"] == "complete" and (marks or on_front):
            kept = {name: trial[name] for name in ("accuracy", "retention", "harmonic_mean", "value")}
            marks = marks if on_front else [*marks, "beaten"]
            rows.append({"number": trial["number"], "marks": marks, **trial["settings"], **kept})
    return sorted(rows, key=lambda row: (-row["accuracy"], row["number"]))


def tuning_table(document: Document) -> "Group":
    """Return the front of a study as a table, with what was chosen and why."""
    from rich.console import Group

    found = table(f"Stage {document['stage']}: trials that no other one beats in both aims")
    found.add_column("trial", justify="right", style="bold")
    extra = [name for name in document["choice"] if name not in ("distillation", "bank_size")]
    for name in ("λ", "L", *extra, "new cells, %", "kept, %", "value"):
        found.add_column(name, justify="right")
    found.add_column("", style="cyan")
    for row in front_rows(document):
        settings = [f"{row[name]:g}" for name in ("distillation", "bank_size", *extra)]
        scores = [f"{100 * row['accuracy']:.1f}", f"{100 * row['retention']:.1f}", f"{row['value']:.3f}"]
        style = "green" if "chosen" in row["marks"] else ""
        cells = [text(value, style) for value in (row["number"], *settings, *scores)]
        found.add_row(*cells, text(", ".join(row["marks"])))
    return Group(found, *(text(line, "dim") for line in _lines(document)))


def _lines(document: Document) -> list[str]:
    states, rule = document["states"], document["rule"]
    sure = document.get("n_effective")
    no_surer = f" (types count alike: no surer than {sure:g} cells)" if sure is not None else ""
    probes = ", ".join(f"{n} probe cells of {stage}" for stage, n in document["n_probe"].items())
    lines = [
        f"{states['complete']} trials of {document['tuning']['epochs']} epochs to their end, "
        f"{states['pruned']} ended early, {states['failed']} failed",
        f"judged on {document['n_validation']} validation cells of its own{no_surer}, {probes}",
    ]
    wanted = f"{100 * rule['min_retention']:g} %"
    if rule["below"]:
        lines.append(f"no trial keeps {wanted} of the past: chosen is the one that keeps most")
    else:
        lines.append(f"chosen by {rule['name']} among those that keep at least {wanted} of the past")
    if rule.get("passed_over") is not None:
        lines.append(
            f"trial {rule['passed_over']} looks better than the published point by too little to be sure "
            f"(least_gain {rule['least_gain']:g}): the published point is kept"
        )
    if not document["reproducible"]:
        lines.append("another run might choose otherwise: " + "; ".join(document["because"]))
    return lines
