"""What differs between two versions, on a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.tables import table, text
from canal.report.trace_tables import count

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Document = Mapping[str, Any]

_LONGEST = 60
_SHOWN = 8


def difference_group(document: Document) -> "Group":
    """Return what differs between two versions; see `canal.registry.provenance.diff.difference`."""
    from rich.console import Group
    from rich.text import Text

    before, after = document["before"], document["after"]
    heading = f"From version {before['version']} ({before['stage']}) to {after['version']} ({after['stage']})"
    added, removed = document["labels"]["added"], document["labels"]["removed"]
    parts: list[Any] = [
        text(heading, "bold"),
        text(document["relation"]),
        text(f"types added: {', '.join(added) or 'none'}; removed: {', '.join(removed) or 'none'}"),
    ]
    more, fewer = document["genes"]["added"], document["genes"]["removed"]
    if more or fewer:
        parts.append(text(f"genes added: {_some(more)}; removed: {_some(fewer)}"))
    if said := sums_told(document["sums"]):
        parts.append(text(said))
    for name in ("params", "data", "code"):
        parts += [Text(), _changes_table(name, document[name])]
    parts += [Text(), _recall_table(document)]
    if document["file"] is not None:
        parts += [Text(), _flows_table(document["file"])]
    return Group(*parts)


def sums_told(sums: Document) -> str:
    """Return in words which sums two versions share; empty where none of them has any."""
    stages = sums["stages"]
    if not stages:
        return ""
    words = {True: "the same", False: "differ", None: "in one alone"}
    kinds = {
        word: [stage for stage, one in stages.items() if one["same"] is same] for same, word in words.items()
    }
    told = "; ".join(f"{word}: {', '.join(names)}" for word, names in kinds.items() if names)
    basis = {True: "one basis", False: "of two bases", None: "kept by one of them alone"}
    return f"sums ({basis[sums['basis']['same']]}): {told}"


def _changes_table(name: str, changes: Sequence[Document]) -> Any:
    if not changes:
        return text(f"{name}: the same", "dim")
    found = table(name)
    for heading in ("", "before", "after"):
        found.add_column(heading, overflow="fold")
    for one in changes:
        found.add_row(text(one["path"]), text(_value(one["before"])), text(_value(one["after"])))
    return found


def _some(names: Sequence[str]) -> str:
    """Return how many names there are and the first of them."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})" if names else "none"


def _value(value: Any) -> str:
    """Return a value short enough for a table; a digest by its first digits."""
    words = str(value)
    if len(words) in (40, 64) and set(words) <= set("0123456789abcdef"):
        return words[:12]
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _recall_table(document: Document) -> "Table":
    found = table("Accuracy of each stage and recall of each type, %")
    found.add_column("test cells of", overflow="fold")
    for name in ("cells", "before", "after", "change"):
        found.add_column(name, justify="right")
    for stage, one in document["accuracy"].items():
        found.add_row(text(stage, "bold"), "", *_pair(one))
        for name, pair in document["recall"].get(stage, {}).items():
            found.add_row(text(f"  {name}"), f"{pair['n']:,}", *_pair(pair))
    return found


def _pair(pair: Document) -> list[Any]:
    change = pair["change"]
    style = "" if not change else "green" if change > 0 else "red"
    numbers = ["-" if pair[side] is None else f"{100 * pair[side]:.1f}" for side in ("before", "after")]
    return [*map(text, numbers), text("-" if change is None else f"{100 * change:+.1f}", style)]


def _flows_table(file: Document) -> "Table":
    found = table(f"{file['name']}: {file['changed']:,} of {count(file['n_cells'])} change their label")
    found.add_column("from", overflow="fold")
    found.add_column("to", overflow="fold")
    found.add_column("cells", justify="right")
    found.add_column("such as", overflow="fold", style="dim")
    for one in file["flows"]:
        found.add_row(
            text(one["from"]), text(one["to"]), f"{one['n']:,}", text(", ".join(one["examples"][:3]))
        )
    return found
