"""For each type that a file's cells were given: the genes that carry it, in the model's own eyes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.labelled import Labelled
from canal.annotation.naming import Naming
from canal.annotation.output import writing
from canal.annotation.spreadsheet import as_text
from canal.core.errors import DataError
from canal.core.files import new_file

if TYPE_CHECKING:
    from canal.model.load import CellAnnotator

_COLUMNS = ("cell_type", "n_cells", "rank", "gene", "attribution", "expressed")


@dataclass(frozen=True)
class Carrier:
    """A gene that speaks for a type.

    ``attribution`` is its mean over the cells looked at; ``expressed`` the share of them that express it.
    """

    gene: str
    attribution: float
    expressed: float


@dataclass(frozen=True)
class Explanation:
    """What carries a type: how many of its cells were looked at, and its genes, strongest first."""

    cell_type: str
    n_cells: int
    genes: tuple[Carrier, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "cell_type": self.cell_type,
            "n_cells": self.n_cells,
            "genes": [asdict(one) for one in self.genes],
        }


@dataclass(frozen=True)
class Asked:
    """How types are explained.

    Attributes
    ----------
    cells : int
        Cells of a type that are looked at, at most; they are drawn.
    top : int
        Genes told of a type.
    seed : int
        Draws the cells.
    naming : Naming
        The tables of gene names that the file was labelled with.
    chunk_cells : int
        Cells held in memory at a time.
    """

    cells: int = 100
    top: int = 20
    seed: int = 0
    naming: Naming = Naming()
    chunk_cells: int = 2000


def explain(
    annotator: CellAnnotator, labelled: Labelled, asked: Asked, notice: Callable[[str], None]
) -> list[Explanation]:
    """Return for each type in a labelled file the genes that carry it; see `canal.model.attribution`.

    "Unassigned" is no type. Genes that speak against a type on the whole are not told.

    Raises
    ------
    DataError
        If no cell has a type of the model, or the file cannot be read as it was labelled.
    """
    drawn = _drawn(labelled, annotator.labels, asked)
    wanted = np.sort(np.concatenate(list(drawn.values())))
    reading = labelled.reading(annotator, asked.naming)
    parts = []
    for block in reading.blocks(asked.chunk_cells):
        start, stop = np.searchsorted(wanted, (block.start, block.start + len(block.expression)))
        parts.append(block.expression[wanted[start:stop] - block.start])
    expression = np.concatenate(parts)
    labelled.check_types(wanted, annotator.predict(expression).labels)
    notice(f"looking at {len(wanted):,} cells of {len(drawn)} types")
    return [
        _explained(annotator, name, expression[np.searchsorted(wanted, rows)], asked.top)
        for name, rows in drawn.items()
    ]


def write_explanations(path: Path, explanations: Sequence[Explanation]) -> None:
    """Write a CSV file of a line a type and gene, whole or not at all; raises `DataError` if it cannot be."""
    with (
        writing(path),
        new_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for one in explanations:
            writer.writerows(
                (
                    as_text(one.cell_type),
                    one.n_cells,
                    rank,
                    as_text(gene.gene),
                    f"{gene.attribution:.6f}",
                    f"{gene.expressed:.4f}",
                )
                for rank, gene in enumerate(one.genes, start=1)
            )


def _drawn(labelled: Labelled, labels: Sequence[str], asked: Asked) -> dict[str, np.ndarray]:
    """Return for each type the positions of the cells that are looked at, rising."""
    generator = np.random.default_rng([asked.seed, *b"explain"])
    found = {}
    for name in labels:
        rows = np.flatnonzero(labelled.types == name)
        if len(rows) > asked.cells:
            rows = np.sort(generator.choice(rows, size=asked.cells, replace=False))
        if len(rows):
            found[name] = rows
    if not found:
        raise DataError(
            f"{labelled.path}: none of its {len(labelled.types):,} cells has a type: "
            "there is nothing to explain"
        )
    return found


def _explained(annotator: CellAnnotator, name: str, expression: np.ndarray, top: int) -> Explanation:
    from canal.model.attribution import attributions

    types = np.full(len(expression), annotator.labels.index(name), dtype=np.int64)
    mean = attributions(annotator, expression, types).mean(axis=0, dtype=np.float64)
    expressed = (expression > 0).mean(axis=0)
    best = np.lexsort((np.arange(len(mean)), -mean))[:top]
    genes = tuple(
        Carrier(annotator.genes[i], round(float(mean[i]), 6), round(float(expressed[i]), 4))
        for i in best
        if mean[i] > 0
    )
    return Explanation(name, len(expression), genes)
