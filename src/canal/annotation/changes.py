"""Cells that two models label differently, counted by old and new type."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.annotation.columns import CONFIDENCE, TYPE
from canal.annotation.spreadsheet import table_as_text
from canal.core.files import new_file

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLES = 5


@dataclass(frozen=True)
class Changes:
    """What became of the labels of one file's cells.

    Attributes
    ----------
    name : str
        The file.
    n_cells : int
    table : pandas.DataFrame
        A row a cell whose label changed, in the file's order, indexed by its name: ``before``, ``after``,
        ``confidence_before``, ``confidence_after``.
    """

    name: str
    n_cells: int
    table: pd.DataFrame

    @property
    def flows(self) -> dict[tuple[str, str], int]:
        """Number of cells by (old type, new type), the largest first."""
        counts = Counter(zip(self.table["before"], self.table["after"], strict=True))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "name": self.name,
            "n_cells": self.n_cells,
            "changed": len(self.table),
            "flows": [
                {"from": old, "to": new, "n": n, "examples": self._examples(old, new)}
                for (old, new), n in self.flows.items()
            ],
        }

    def write(self, path: Path) -> None:
        """Write the cells whose label changed as CSV, whole or not at all."""
        with new_file(path) as temporary:
            table_as_text(self.table).to_csv(temporary, lineterminator="\n", float_format="%.6f")

    def _examples(self, old: str, new: str) -> list[str]:
        rows = (self.table["before"] == old) & (self.table["after"] == new)
        return [str(name) for name in self.table.index[rows][:_EXAMPLES]]


def label_changes(name: str, before: pd.DataFrame, after: pd.DataFrame) -> Changes:
    """Compare two tables of `canal.annotation.annotate.label_h5ad` on the same file.

    A cell that becomes "Unassigned", or is so no more, has changed its label, too.

    Raises
    ------
    ValueError
        If the tables are of different cells.
    """
    import pandas as pd

    if list(before.index) != list(after.index):
        raise ValueError(f"the tables hold different cells: {len(before)} and {len(after)}")
    old, new = (table[TYPE].astype(str).to_numpy() for table in (before, after))
    changed = old != new
    table = pd.DataFrame(
        {
            "before": old[changed],
            "after": new[changed],
            "confidence_before": before[CONFIDENCE].to_numpy()[changed],
            "confidence_after": after[CONFIDENCE].to_numpy()[changed],
        },
        index=before.index[changed].rename("cell"),
    )
    return Changes(name, len(before), table)
