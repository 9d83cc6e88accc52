"""What an audit found, what a reproduction gave, and what a rebuilding made, on a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Document = Mapping[str, Any]


def audit_report(document: Document) -> "Group":
    """Return what `canal.registry.audit.Report.to_json` gives: findings, notes, how much was looked at."""
    from rich.console import Group

    findings, notes = document["findings"], document["notes"]
    parts: list[Any] = [_table("Does not hold", findings)] if findings else []
    parts += [_table("To know", notes)] if notes else []
    return Group(*parts, _sum(document))


def _table(title: str, rows: Sequence[Document]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("where", overflow="fold")
    table.add_column("check", style="dim")
    table.add_column("what", overflow="fold")
    for row in rows:
        table.add_row(Text(row["subject"]), Text(row["check"]), Text(row["what"]))
    return table


def _sum(document: Document) -> "Text":
    from rich.text import Text

    looked = ", ".join(f"{number:,} {name}" for name, number in document["counts"].items() if number)
    number = len(document["findings"])
    said = "everything holds" if not number else f"{number} findings"
    return Text(f"{said}: {looked or 'nothing is registered'}, {document['seconds']:.1f} s", "" if not number else "bold")
