"""Heat maps with their numbers: confusion of types, and accuracy of every model on every stage."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.canvas import MUTED, heat_map, ink_on, new_figure, number_or_gap, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def confusion(entry: Mapping[str, Any], title: str) -> "Figure":
    """Draw one stage's confusion matrix: shades are shares of a row, numbers are cells.

    Rows without a test cell and columns that stay empty are left out.

    Parameters
    ----------
    entry
        One value of ``per_stage`` in evaluation.json.
    title
        Whose cells, named by which model.
    """
    counts, rows, columns = _compact(entry["confusion"])
    side = 0.32
    figure = new_figure(max(3.4, 1.9 + side * len(columns)), max(2.5, 1.5 + side * len(rows)))
    axis = figure.subplots()
    shares = [[count / max(sum(line), 1) for count in line] for line in counts]
    heat_map(axis, shares, (len(rows), len(columns)))
    _write_counts(axis, counts, shares)
    _name_squares(axis, rows, columns)
    axis.set_ylabel("True type")
    axis.set_xlabel("Predicted type")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


@styled
def r_matrix(
    stages: Sequence[str],
    matrix: Sequence[Sequence[float | None]],
    before: Mapping[tuple[str, str], float] | None = None,
) -> "Figure":
    """Draw R[i, j], the accuracy on stage j's test cells after stage i, in percent.

    Parameters
    ----------
    stages
        Names of the stages, oldest first.
    matrix
        One row a model, up to its own stage; None where the test cells are not available.
    before
        Accuracy of a stage's parent on its cells, {(parent, stage): ...}: written in brackets.
    """
    size = len(stages)
    squares = [[_at(row, column) for column in range(size)] for row in matrix]
    side = 0.72 if size <= 8 else 0.5
    figure = new_figure(2.6 + side * size, 1.5 + side * size)
    axis = figure.subplots()
    heat_map(axis, squares, (size, size))
    for row, values in enumerate(squares):
        for column, value in enumerate(values[: row + 1]):
            text, ink = ("–", MUTED) if math.isnan(value) else (f"{100 * value:.1f}", ink_on(value))
            _number(axis, (row, column), text, ink, 10 if size <= 8 else 8)
    for (model, stage), value in (before or {}).items():
        place = (stages.index(model), stages.index(stage))
        _number(axis, place, f"({100 * value:.1f})", MUTED, 9 if size <= 8 else 7)
    _name_squares(axis, stages, stages)
    axis.set_ylabel("Model after …")
    axis.set_xlabel("Accuracy on the test cells of …, %")
    return figure


def _compact(document: Mapping[str, Any]) -> tuple[list[list[int]], list[str], list[str]]:
    """Return counts, row names and column names without what stays empty."""
    labels, counts = document["labels"], document["counts"]
    rows = [index for index, line in enumerate(counts) if sum(line)]
    columns = [index for index in range(len(labels)) if index in rows or any(line[index] for line in counts)]
    kept = [[counts[row][column] for column in columns] for row in rows]
    return kept, [labels[row] for row in rows], [labels[column] for column in columns]


def _write_counts(axis: "Axes", counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> None:
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                size = 8 if count < 1000 else 6.5
                _number(axis, (row, column), str(count), ink_on(shares[row][column]), size)


def _number(axis: "Axes", place: tuple[int, int], text: str, ink: str, size: float) -> None:
    """Write ``text`` into the middle of a heat map's square (row, column)."""
    row, column = place
    axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=size)


def _name_squares(axis: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name a heat map's rows and columns; long column names stand slanted."""
    axis.set_yticks([index + 0.5 for index in range(len(rows))], [short(name) for name in rows])
    axis.set_xticks([index + 0.5 for index in range(len(columns))], [short(name) for name in columns])
    axis.tick_params(axis="x", rotation=45)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


def _at(row: Sequence[float | None], column: int) -> float:
    return number_or_gap(row[column]) if column < len(row) else math.nan
