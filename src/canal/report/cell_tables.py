"""What a labelled file was found to hold, on a terminal: groups of novel cells, and what carries a type."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.tables import table as _table
from canal.report.tables import text as _text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_GENES = 8
_BATCHES = 2


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
    """Return the types of `canal.annotation.explain.Explanation.to_json` with the genes that carry them."""
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
