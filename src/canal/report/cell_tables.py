"""A labelled file on a terminal: groups of novel cells, what carries a type, which version labelled it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.tables import table as _table
from canal.report.tables import text
from canal.report.tables import text as _text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_GENES = 8
_BATCHES = 2

Document = Mapping[str, Any]


def novel_table(found: Mapping[str, Any]) -> "Group":
    """Return the groups of `canal.annotation.novel.Novel.to_json`, and warnings."""
    from rich.console import Group

    table = _table(f"{found['n_novel']:,} novel cells in {len(found['groups'])} groups")
    table.add_column("group", justify="right", style="bold")
    table.add_column("cells", justify="right")
    table.add_column("top genes", overflow="fold")
    table.add_column("nearest types", overflow="fold")
    table.add_column("batches", overflow="fold")
    for one in found["groups"]:
        table.add_row(
            _text(one["group"]),
            f"{one['n_cells']:,}",
            _text(" ".join(gene["gene"] for gene in one["top_genes"][:_GENES]) or "-"),
            _text(", ".join(f"{name} {share:.0%}" for name, share in one["nearest_types"].items())),
            _text(_batches(one)),
        )
    left = f"{found['left_out']:,} cells are in groups too small to be shown" if found["left_out"] else ""
    warnings = [_text(f"warning: {one}", "yellow") for one in found["warnings"]]
    return Group(table, *([_text(left, "dim")] if left else []), *warnings)


def explanation_table(found: Sequence[Mapping[str, Any]]) -> "Table":
    """Return the types of `canal.annotation.markers.Explanation.to_json` with the genes that carry them."""
    table = _table("Genes that carry a type, strongest first")
    table.add_column("cell type", overflow="fold", style="bold")
    table.add_column("cells", justify="right")
    table.add_column("genes", overflow="fold")
    for one in found:
        genes = " ".join(gene["gene"] for gene in one["genes"])
        table.add_row(_text(one["cell_type"]), f"{one['n_cells']:,}", _text(genes or "-"))
    return table


def _batches(group: Mapping[str, Any]) -> str:
    if group["purity"] is None:
        return "-"
    shown = [f"{name} {n / group['n_cells']:.0%}" for name, n in list(group["batches"].items())[:_BATCHES]]
    more = len(group["batches"]) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "")


def who_group(document: Document) -> "Group":
    """Return which version labelled a file, and how that stands today; see `canal.app.who.who`."""
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in _who(document):
        grid.add_row(text(name), text(value))
    warnings = [text(f"warning: {one}", "yellow") for one in _warnings(document)]
    return Group(text(document["file"], "bold"), grid, *warnings)


def _who(document: Document) -> Iterator[tuple[str, str]]:
    record, registry = document["record"], document["registry"]
    model, given = record["model"], record.get("input") or {}
    yield "labelled by", f"{model.get('model', '?')} {model.get('version', '?')} ({model.get('stage', '?')})"
    yield "key", str(model.get("key", "not noted"))
    yield "record", str(model.get("record", "not noted"))
    yield "when", str(record.get("time", "not noted"))
    yield "input", f"{given['name']}, sha256 {given['sha256']}" if given else "not noted"
    yield "options", ", ".join(f"{name} {value}" for name, value in record["options"].items())
    yield "cells", ", ".join(f"{name} {n:,}" for name, n in record["cell_types"].items())
    if registry is None:
        yield "registry", f"could not be checked: {document['not_checked']}"
    elif not registry["known"]:
        yield "registry", f"no version of {registry['model']} has this key"
    else:
        names = ", ".join([*registry["aliases"], *(["retired"] if registry["retired"] else [])])
        yield "registry", f"version {registry['version']}, now {names or 'without an alias'}"
        yield "champion now", "none" if registry["champion"] is None else f"version {registry['champion']}"


def _warnings(document: Document) -> Iterator[str]:
    registry = document["registry"]
    if document["genuine"] is False:
        yield "the record was edited after it was written: its id is not the digest of what it says"
    if not document["labels"]["as_written"]:
        yield f"the labels are not those that were written: {document['labels']['why']}"
    if registry is None:
        return
    if registry["known"] and not registry["same_number"]:
        yield "the registry has this key under another number: it was rebuilt"
    if registry["same_record"] is False:
        yield "the version's record is another one than the file says: `canal audit` looks into it"
    if registry["retired"]:
        yield "the version was retired since: `canal show` says why; label the file again with the champion"
    if registry["logged"] is False:
        yield "annotations.jsonl does not know this record: it was labelled elsewhere, or the log was edited"
