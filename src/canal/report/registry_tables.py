"""The registry on a terminal: the policy's rulings, two models compared, the ledger.

And what an audit found, what a reproduction gave, and what a rebuilding made.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.tables import table, text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from canal.registry.versions.rebuild import Rebuilt

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
    """Return two models on the same cells, a row a stage and type; see `canal.registry.promotion.policy`."""
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


def audit_report(document: Document) -> "Group":
    """Return what `full_audit.Report.to_json` gives: findings, notes, how much was looked at."""
    from rich.console import Group

    findings, notes = document["findings"], document["notes"]
    parts: list[Any] = [_table("Does not hold", findings)] if findings else []
    parts += [_table("To know", notes)] if notes else []
    return Group(*parts, _sum(document))


def reproduction_report(document: Document) -> "Group":
    """Return what `canal.app.reproducing.Reproduction.to_json` gives, in a few lines."""
    from rich.console import Group
    from rich.text import Text

    name, commit = f"version {document['version']}", document["commit"][:12]
    if not document["differing"]:
        what = "everything, byte for byte" if document["same_key"] else "the same weights, bit for bit"
    else:
        number, tensors = len(document["differing"]), ", ".join(document["differing"][:5])
        what = f"{number} other tensors ({tensors}{', ...' if number > 5 else ''})"
    lines = [Text(f"{name} learned again at commit {commit} in {document['seconds']:.0f} s: {what}", "bold")]
    for stage, (before, after) in document["accuracy"].items():
        lines.append(Text(f"  accuracy on {stage}: registered {_share(before)}, now {_share(after)}"))
    if document["differing"]:
        machine = (
            "this machine had to give the same bits"
            if document["same_machine"]
            else ("this machine is another one, which may round differently")
        )
        lines.append(Text(f"{'reproduced' if document['reproduced'] else 'not reproduced'}: {machine}"))
    return Group(*lines)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def rebuilt_view(rebuilt: "Rebuilt") -> dict[str, Any]:
    """Return what a rebuilding made, and what it could not, as a JSON document."""
    return {
        "versions": [
            {
                "model": one.model,
                "version": one.number,
                "stage": one.stage,
                "aliases": list(one.aliases),
                "retired": one.retired,
                "key": one.key,
            }
            for one in rebuilt.made
        ],
        "gone": [
            {"model": gap.entry.model, "version": gap.entry.version, "why": gap.why} for gap in rebuilt.gone
        ],
    }


def rebuilt_table(view: Document) -> "Group":
    """Return `rebuilt_view` as tables: the versions that are there again, and those that are gone."""
    from rich.console import Group
    from rich.text import Text

    table = _plain("Registered again", ("model", "no.", "stage", "aliases", "key"))
    for one in view["versions"]:
        aliases = ", ".join([*one["aliases"], *(["retired"] if one["retired"] else [])])
        cells = (one["model"], str(one["version"]), one["stage"], aliases, one["key"][:8])
        table.add_row(*(Text(cell) for cell in cells))
    parts: list[Any] = [table]
    if view["gone"]:
        gone = _plain("Gone: the number stays free", ("model", "no.", "why"))
        for one in view["gone"]:
            gone.add_row(*(Text(cell) for cell in (one["model"], str(one["version"]), one["why"])))
        parts.append(gone)
    return Group(*parts)


def _plain(title: str, columns: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _table(title: str, rows: Sequence[Document]) -> "Table":
    from rich.text import Text

    table = _plain(title, ("where", "check", "what"))
    for row in rows:
        table.add_row(Text(row["subject"]), Text(row["check"], "dim"), Text(row["what"]))
    return table


def _sum(document: Document) -> "Text":
    from rich.text import Text

    looked = ", ".join(f"{name} {number:,}" for name, number in document["counts"].items() if number)
    number = len(document["findings"])
    said = "everything holds" if not number else f"findings: {number}"
    what = looked or "nothing is registered"
    return Text(f"{said} ({what}; {document['seconds']:.1f} s)", "bold" if number else "")
