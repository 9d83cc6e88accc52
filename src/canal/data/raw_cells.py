"""Which cells of a source are learned from, and what is known of each: everything but expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.config.sections import Source
from canal.data.genes import EXAMPLES
from canal.data.h5ad import H5adFile

if TYPE_CHECKING:
    import pandas as pd

Repairs = dict[str, Any]


def describe_cells(file: H5adFile, name: str, source: Source) -> tuple[pd.DataFrame, Repairs]:
    """Return a table of the cells that the declaration keeps, and what was repaired or left out.

    The table's columns are row (position in the file), cell_id, cell_type, cell_type_original, batch and
    source. Blanks at the ends of a label are left out where the map has the label without them; other labels
    outside the map stay as they are and null labels are ``""``: the gate judges both.

    Raises
    ------
    DataError
        If the file lacks the column of labels, of batches, or one that ``where`` filters on.
    """
    import pandas as pd

    names = file.obs_names()
    unique, repeated = unique_names(names)
    original, stripped = _stripped(file.obs_column(source.label), source.label_map)
    batch, unnamed = _batches(file, name, source)
    table = pd.DataFrame(
        {
            "row": np.arange(file.n_cells),
            "cell_id": [f"{name}:{cell}" for cell in unique],
            "cell_type": _mapped(original, source.label_map),
            "cell_type_original": original,
            "batch": batch,
            "source": name,
        }
    )
    kept, repairs = _kept(file, names, table, source)
    if repeated:
        repairs["duplicated_cell_ids"] = {"n": len(repeated), "examples": repeated[:EXAMPLES]}
    if stripped:
        repairs["labels_with_blanks"] = {"n": len(stripped), "examples": stripped[:EXAMPLES]}
    if unnamed:
        repairs["cells_without_batch"] = {"n": unnamed, "done": f"batch set to {name}"}
    return table[kept].reset_index(drop=True), repairs


def unique_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return ``names`` made unique with -1, -2, ..., and the sorted names that stood more than once."""
    taken = set(names)
    if len(taken) == len(names):
        return list(names), []
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        if name not in seen:
            seen[name] = 0
            unique.append(name)
            continue
        while (candidate := f"{name}-{seen[name] + 1}") in taken:
            seen[name] += 1
        seen[name] += 1
        taken.add(candidate)
        unique.append(candidate)
    counts = {name for name, extra in seen.items() if extra}
    return unique, sorted(counts)


def _stripped(labels: pd.Series, label_map: dict[str, str | None] | None) -> tuple[pd.Series, list[str]]:
    """Return labels as the map spells them, and those that had blanks at their ends.

    A label that the map has as it is, and every label without a map, stays: it may have been learned so.
    """
    known = label_map or {}
    blank = {label: label.strip() for label in labels.unique() if label not in known}
    blank = {label: plain for label, plain in blank.items() if label != plain and plain in known}
    return (labels.replace(blank) if blank else labels), sorted(blank)


def _mapped(labels: pd.Series, label_map: dict[str, str | None] | None) -> pd.Series:
    """Return the cell types of ``labels``; None where the map drops a label."""
    table = {label: (label_map or {}).get(label, label) for label in labels.unique()}
    return labels.map(table | {"": ""}).astype(object)


def _batches(file: H5adFile, name: str, source: Source) -> tuple[pd.Series, int]:
    """Return each cell's batch and how many cells had none; they are given the source's name."""
    import pandas as pd

    if source.batch is None:
        return pd.Series([name] * file.n_cells, dtype=object), 0
    batch = file.obs_column(source.batch)
    missing = batch == ""
    return batch.mask(missing, name), int(missing.sum())


def _kept(
    file: H5adFile, names: Sequence[str], table: pd.DataFrame, source: Source
) -> tuple[np.ndarray, Repairs]:
    """Return which cells stay, and for each rule that drops cells how many it dropped first."""
    import pandas as pd

    rules = {
        f"where_{column}": file.obs_column(column).isin(allowed) for column, allowed in source.where.items()
    }
    rules["label_map"] = table["cell_type"].notna()
    rules["exclude_batches"] = ~table["batch"].isin(source.exclude.batches)
    rules["exclude_cells"] = ~pd.Series(names, dtype=object).isin(source.exclude.cells)
    kept = np.ones(len(table), dtype=bool)
    repairs: Repairs = {}
    for rule, passes in rules.items():
        if dropped := int((kept & ~passes.to_numpy()).sum()):
            repairs[f"dropped_by_{rule}"] = {"n": dropped}
        kept &= passes.to_numpy()
    if missing := sorted(set(source.exclude.cells) - set(names)):
        repairs["exclude_cells_not_found"] = {"n": len(missing), "examples": missing[:EXAMPLES]}
    return kept, repairs
