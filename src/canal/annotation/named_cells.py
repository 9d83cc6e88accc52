"""Cells of a labelled file that a person named, written as the h5ad file that a stage is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.labelled import Labelled
from canal.annotation.output import writing
from canal.annotation.sheet import Sheet
from canal.core.digests import canonical_json
from canal.core.errors import DataError
from canal.core.files import new_file
from canal.data.writing import H5adWriter

if TYPE_CHECKING:
    import pandas as pd

    from canal.annotation.reading import Reading

NOTE = "canal_novel"
"""The name in uns of what says where a lesson's cells are from."""

LABEL, BATCH, GROUP = "cell_type", "batch", "canal_group"
_EXAMPLES = 5


@dataclass(frozen=True)
class Lesson:
    """What has to be declared of a file to learn from: its units, and whether it has a column of batches."""

    values: str
    batch: bool


def write_lesson(
    target: Path,
    labelled: Labelled,
    reading: Reading,
    sheet: Sheet,
    note: Mapping[str, Any],
    chunk_cells: int = 500,
) -> Lesson:
    """Write the cells that were given a type, whole or not at all; memory does not grow with cells.

    Values are those of the layer that was labelled, in its own units: counts as they are, logarithms as they
    are (those of counts that were scaled to another depth become counts per 10,000). Genes are all genes of
    the file, called as the model calls them. obs holds `LABEL`, `GROUP` and, where batches are known,
    `BATCH`; uns[`NOTE`] holds ``note`` as JSON.

    Raises
    ------
    DataError
        If the file does not hold the cells that the sheet names, or the new one cannot be written.
    """
    cells = sheet.cells()
    _check_cells(labelled, cells)
    rows = np.array([row for row, _, _ in cells], dtype=np.int64)
    whole = reading.of_all_genes()
    with (
        writing(target),
        new_file(target, labelled.path) as temporary,
        H5adWriter(temporary, len(whole.panel)) as writer,
    ):
        for first, block, _ in whole.values(chunk_cells):
            start, stop = np.searchsorted(rows, (first, first + block.shape[0]))
            if start == stop:
                continue
            chosen = block[rows[start:stop] - first]
            chosen.eliminate_zeros()
            chosen.sort_indices()
            writer.append(chosen)
        obs = _obs(labelled, sheet, cells, rows)
        writer.finish(obs, _var(whole), {NOTE: canonical_json(note)})
    return Lesson(reading.units.values, BATCH in obs)


def _check_cells(labelled: Labelled, cells: list[tuple[int, str, int]]) -> None:
    names = labelled.file.obs_names()
    wrong = [name for row, name, _ in cells if not (0 <= row < len(names) and names[row] == name)]
    twice = len(cells) - len({row for row, _, _ in cells})
    if wrong or twice:
        found = f"{len(wrong):,} of {len(cells):,} cells are not where the sheet says"
        found = f"{found}, such as {wrong[:_EXAMPLES]}" if wrong else f"{twice:,} cells are in two groups"
        raise DataError(f"{labelled.path}: {found}; write the sheet again with `canal novel`")


def _obs(
    labelled: Labelled, sheet: Sheet, cells: list[tuple[int, str, int]], rows: np.ndarray
) -> pd.DataFrame:
    import pandas as pd

    groups = [number for _, _, number in cells]
    obs = pd.DataFrame(
        {
            LABEL: pd.Categorical([sheet.types[number] for number in groups]),
            GROUP: np.array(groups, dtype=np.int64),
        },
        index=pd.Index([name for _, name, _ in cells], dtype=object),
    )
    if (column := sheet.about["batch"]) is not None:
        obs[BATCH] = pd.Categorical(labelled.file.obs_column(column).to_numpy(dtype=object)[rows])
    return obs


def _var(whole: Reading) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index(list(whole.panel), dtype=object))
