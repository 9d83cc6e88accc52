"""How every table on a terminal looks, and text that rich never reads as markup."""

from typing import TYPE_CHECKING, Any

from canal.core.messages import visible

if TYPE_CHECKING:
    from rich.table import Table


def table(title: str) -> "Table":
    """Return an empty table."""
    from rich import box
    from rich.table import Table

    return Table(
        title=text(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        header_style="", padding=(0, 1), collapse_padding=True, show_edge=False,
    )  # fmt: skip


def text(value: object, style: str = "") -> Any:
    """Return a value as text, whatever characters it holds; one that would steer the terminal shows as �."""
    from rich.text import Text

    return Text(visible(value), style=style)
