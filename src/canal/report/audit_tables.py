"""What an audit found, what a reproduction gave, and what a rebuilding made, on a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from canal.registry.rebuild import Rebuilt

Document = Mapping[str, Any]


def audit_report(document: Document) -> "Group":
    """Return what `canal.registry.audit.Report.to_json` gives: findings, notes, how much was looked at."""
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
