"""Text that a spreadsheet takes for text: names from a file may begin as a formula does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_MARKED = re.compile(r"'+[=+\-@\t\r]")


def as_text(value: str) -> str:
    """Return a text with an apostrophe before it where a spreadsheet would take it for a formula.

    What already begins with apostrophes before such a sign gets one more, so `original` is exact.
    """
    return f"'{value}" if _FORMULA.match(value) else value


def original(value: str) -> str:
    """Return the text that `as_text` was given."""
    return value[1:] if _MARKED.match(value) else value


def table_as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts, row names included, are as `as_text` makes them; numbers stay numbers."""
    import pandas as pd

    def text(value: object) -> object:
        return as_text(value) if isinstance(value, str) else value

    shown = table.copy(deep=False)
    for place, name in enumerate(table.columns):
        column = table.iloc[:, place]
        if isinstance(column.dtype, pd.CategoricalDtype):
            values = column.cat.rename_categories(text)
        elif column.dtype == object:
            values = column.map(text)
        else:
            continue
        shown[name] = values
    names = [text(name) for name in table.index]
    shown.index = pd.Index(names, name=table.index.name, dtype=table.index.dtype)
    return shown
