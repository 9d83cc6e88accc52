"""Promotion on a terminal: the policy's rulings, two models compared, the ledger."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.tables import table, text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Document = Mapping[str, Any]


def rulings_table(judgement: Document) -> "Table":
    """Return every rule with its value, bound and verdict; see `canal.app.promoting.Judgement`."""
    against = "no champion yet" if judgement["champion"] is None else f"champion {judgement['champion']}"
    found = table(f"Version {judgement['version']} ({judgement['stage']}) and the policy, against {against}")
    found.add_column("rule", overflow="fold")
    found.add_column("found", overflow="fold")
    found.add_column("asked for", overflow="fold")
    found.add_column("", no_wrap=True)
    found.add_column("", overflow="fold", style="dim")
    for ruling in judgement["rulings"]:
        found.add_row(
            text(ruling["rule"]), text(ruling["value"]), text(ruling["bound"]), _verdict(ruling),
            text(ruling["note"]),
        )  # fmt: skip
    return found


def comparison_table(comparison: Document) -> "Group":
    """Return two models on the same cells, a row a stage and type; see `canal.registry.comparison`."""
    from rich.console import Group

    title = f"Version {comparison['candidate']} against version {comparison['champion']}, on the same cells"
    found = table(title)
    found.add_column("test cells of", overflow="fold")
    for name in ("n", "champion", "candidate", "change", "interval", "lost", "gained", "p"):
        found.add_column(name, justify="right", no_wrap=True)
    for name, pair in _rows(comparison):
        found.add_row(text(name), *_pair(pair))
    notes = [f"{name}: not compared: {why}" for name, why in comparison["not_compared"].items()]
    for stage, one in comparison["stages"].items():
        if few := one["too_few_to_judge"]:
            listed = ", ".join(f"{name} ({n})" for name, n in few.items())
            notes.append(f"{stage}: too few cells to judge: {listed}")
    notes.append("interval: paired bootstrap of the change; p: McNemar's exact test of lost against gained")
    return Group(found, *(text(note, "dim") for note in notes))


def ledger_table(entries: Sequence[Document]) -> "Table":
    """Return the ledger, the oldest entry first."""
    found = table("Ledger")
    found.add_column("no.", justify="right", style="bold")
    found.add_column("time", no_wrap=True)
    found.add_column("what", overflow="fold")
    found.add_column("who", overflow="fold")
    found.add_column("why", overflow="fold")
    for entry in entries:
        signed = " (signed)" if "signature" in entry else ""
        found.add_row(
            text(entry["seq"]), text(str(entry["time"]).replace("+00:00", "Z")), text(_what(entry)),
            text(f"{entry['who']}{signed}"), text(entry["why"]),
        )  # fmt: skip
    return found


def _verdict(ruling: Document) -> Any:
    if ruling["passed"]:
        return text("holds", "green")
    return text("overridden", "yellow") if ruling["overridden"] else text("FAILS", "bold red")


def _rows(comparison: Document) -> Iterator[tuple[str, Document]]:
    for stage, one in comparison["stages"].items():
        yield stage, one
        for name, pair in one["types"].items():
            yield f"  {name}", pair


def _pair(pair: Document) -> list[Any]:
    style = "red" if pair["high"] < 0 else "green" if pair["low"] > 0 else ""
    interval = f"{pair['low']:+.3f} {pair['high']:+.3f}"
    return [
        text(pair["n"]),
        text(f"{pair['champion']:.3f}"),
        text(f"{pair['candidate']:.3f}"),
        text(f"{pair['difference']:+.3f}", style),
        text(interval, style),
        text(pair["lost"]),
        text(pair["gained"]),
        text(f"{pair['p']:.2g}"),
    ]


def _what(entry: Document) -> str:
    moved = ", ".join(
        f"{alias} -> {'none' if number is None else number}" for alias, number in entry["aliases"].items()
    )
    overrides = entry["details"].get("overrides")
    parts = [f"{entry['kind']} {entry['model']} {entry['version']}"]
    if moved:
        parts.append(f"({moved})")
    if overrides:
        parts.append(f"overriding {', '.join(overrides)}")
    return " ".join(parts)
