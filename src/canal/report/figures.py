"""The figures of a run, drawn from the JSON documents of training and evaluation.

Curves over epochs: training of a stage and of the backbone. Heat maps with numbers: confusion of types, and
accuracy of every model on every stage. Point plots: forgetting, calibration and novelty detection.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.canvas import (
    BLUE,
    GREEN,
    INK,
    MARKERS,
    MUTED,
    ORANGE,
    PALETTE,
    SURFACE,
    heat_map,
    ink_on,
    new_figure,
    number_or_gap,
    save,
    short,
    styled,
    svg_uri,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "confusion",
    "loss_curves",
    "novelty",
    "pretraining",
    "r_matrix",
    "recall_by_type",
    "reliability",
    "save",
    "svg_uri",
]


@styled
def loss_curves(history: Mapping[str, Any]) -> "Figure":
    """Draw the training of a stage: its losses, and the accuracy on new and on earlier cells.

    Parameters
    ----------
    history
        ``models/<stage>/history.json``.
    """
    epochs = history["epochs"]
    distils = any(epoch.get("distillation") for epoch in epochs)
    figure = new_figure(10.9, 3.2)
    axes = figure.subplots(1, 3 if distils else 2)
    if not distils:  # the loss is the cross-entropy alone: one line, not two on top of each other
        _curves(axes[0], epochs, {"cross_entropy": "Cross-entropy"}, "Loss: cross-entropy")
    else:
        _curves(axes[0], epochs, {"loss": "Total", "cross_entropy": "Cross-entropy"}, "Loss")
        _curves(axes[1], epochs, {"distillation": "Distillation"}, "Distance to the teacher")
    _accuracy_curves(axes[-1], epochs)
    for axis in axes:
        _mark_best(axis, history.get("best_epoch"))
    return figure


@styled
def pretraining(history: Mapping[str, Any]) -> "Figure":
    """Draw the masked-expression loss of the backbone on training and on held-out cells.

    Parameters
    ----------
    history
        ``models/backbone/history.json``.
    """
    figure = new_figure(6.0, 3.1)
    axis = figure.subplots()
    names = {"loss": "Training cells", "held_out_loss": "Held-out cells"}
    _curves(axis, history["epochs"], names, "Loss on masked genes")
    _mark_best(axis, history.get("best_epoch"))
    return figure


def _curves(axis: "Axes", epochs: Sequence[Mapping[str, Any]], names: Mapping[str, str], title: str) -> None:
    """Draw a line for each measure in the epochs."""
    steps = [epoch["epoch"] for epoch in epochs]
    for number, (key, name) in enumerate(names.items()):
        if any(epoch.get(key) is not None for epoch in epochs):
            _line(axis, steps, [number_or_gap(epoch.get(key)) for epoch in epochs], name, number)
    axis.set_title(title)
    _finish_curves(axis, len(names) > 1)


def _accuracy_curves(axis: "Axes", epochs: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracy on this stage's validation cells and on each earlier stage's probe set."""
    steps = [epoch["epoch"] for epoch in epochs]
    _line(axis, steps, [number_or_gap(epoch.get("validation_accuracy")) for epoch in epochs], "New cells", 0)
    earlier = list(dict.fromkeys(stage for epoch in epochs for stage in epoch.get("probe_accuracy") or {}))
    for number, stage in enumerate(earlier, start=1):
        values = [number_or_gap((epoch.get("probe_accuracy") or {}).get(stage)) for epoch in epochs]
        _line(axis, steps, values, f"Probe: {stage}", number)
    axis.set_title("Accuracy, validation and probe")
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _finish_curves(axis, bool(earlier))


def _line(axis: "Axes", steps: Sequence[int], values: Sequence[float], name: str, number: int) -> None:
    """Draw one curve; colour and marker both vary, so that curves differ without colour."""
    axis.plot(
        steps,
        values,
        label=name,
        color=PALETTE[number % len(PALETTE)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=3.5,
        markevery=max(1, len(steps) // 12),
        linewidth=1.6,
    )


def _finish_curves(axis: "Axes", with_legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("Epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.grid(True, axis="y")
    axis.margins(x=0.03, y=0.12)
    if with_legend:
        axis.legend(handlelength=1.6, labelspacing=0.3)


def _mark_best(axis: "Axes", best: int | None) -> None:
    """Mark the epoch whose weights were kept, with the text below the curves."""
    if best is not None:
        axis.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axis.set_xlabel(f"Epoch (weights kept: {best})")


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
    labels, table = entry["confusion"]["labels"], entry["confusion"]["counts"]
    kept = [index for index, line in enumerate(table) if sum(line)]
    named = [index for index in range(len(labels)) if index in kept or any(line[index] for line in table)]
    counts = [[table[row][column] for column in named] for row in kept]
    rows, columns = [labels[row] for row in kept], [labels[column] for column in named]
    side = 0.32
    figure = new_figure(max(3.4, 1.9 + side * len(columns)), max(2.5, 1.5 + side * len(rows)))
    axis = figure.subplots()
    shares = [[count / max(sum(line), 1) for count in line] for line in counts]
    heat_map(axis, shares, (len(rows), len(columns)))
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                size = 8 if count < 1000 else 6.5
                _number(axis, (row, column), str(count), ink_on(shares[row][column]), size)
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
    squares = [
        [number_or_gap(row[at]) if at < len(row) else math.nan for at in range(size)] for row in matrix
    ]
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


def _number(axis: "Axes", place: tuple[int, int], text: str, ink: str, size: float) -> None:
    """Write ``text`` into the centre of a heat map's square (row, column)."""
    row, column = place
    axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=size)


def _name_squares(axis: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Label a heat map's rows and columns; long column names are slanted."""
    axis.set_yticks([index + 0.5 for index in range(len(rows))], [short(name) for name in rows])
    axis.set_xticks([index + 0.5 for index in range(len(columns))], [short(name) for name in columns])
    axis.tick_params(axis="x", rotation=45)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


@styled
def recall_by_type(evaluations: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw each type's recall just after its stage and now: a decrease is forgetting.

    Parameters
    ----------
    evaluations
        evaluation.json of every model of one lineage, oldest first.
    """
    from matplotlib.lines import Line2D

    groups = _recall_groups(evaluations)
    heights = [len(types) + 2 for types in groups.values()]
    figure = new_figure(7.4, 0.7 + 0.235 * sum(heights))
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (stage, types) in zip(axes, groups.items(), strict=True):
        _recall_rows(axis, types)
        axis.set_title(f"Test cells of {stage}")
    axes[-1].set_xlabel("Recall, %")
    then = Line2D([], [], color=INK, marker="o", linestyle="", markerfacecolor=SURFACE)
    now = Line2D([], [], color=INK, marker="o", linestyle="")
    changes = [Line2D([], [], color=colour, linewidth=2.2) for colour in (ORANGE, GREEN, BLUE)]
    names = ["after its own stage", "now", "fell", "rose", "as before"]
    figure.legend([then, now, *changes], names, loc="outside upper left", ncols=5, columnspacing=1.4)
    return figure


@styled
def reliability(calibration: Mapping[str, Any]) -> "Figure":
    """Draw accuracy against stated confidence; the diagonal is perfect calibration.

    Parameters
    ----------
    calibration
        ``calibration`` of evaluation.json: ``bins`` with ``confidence``, ``accuracy`` and ``n``.
    """
    bins = [one for one in calibration["bins"] if one["n"]]
    figure = new_figure(4.5, 4.1)
    above, axis = figure.subplots(2, 1, sharex=True, height_ratios=[1, 4])
    centres = [one["confidence"] for one in bins]
    above.bar(centres, [one["n"] for one in bins], width=0.055, color=BLUE, alpha=0.55)
    above.set_ylabel("Cells")
    low, high = calibration.get("low"), calibration.get("high")
    interval = "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"
    before = calibration.get("uncalibrated")
    without = "" if before is None else f"\n{before['ece']:.3f} without the temperature"
    above.set_title(f"Calibration error {calibration['ece']:.3f}{interval}{without}")
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axis.plot(centres, [one["accuracy"] for one in bins], "o-", color=BLUE)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="Confidence", ylabel="Share that is right")
    axis.grid(True)
    return figure


@styled
def novelty(measured: Mapping[str, Any], scores: Sequence[float] = ()) -> "Figure":
    """Draw how well held-out types are detected as novel, and the novelty of the test cells.

    Parameters
    ----------
    measured
        ``novelty`` of evaluation.json.
    scores
        Novelty in [0, 1] of the test cells, all of known types; those above the threshold are
        wrongly called Unassigned. Without scores only the left-out types are drawn.
    """
    holdouts = measured.get("holdouts") or []
    panels = [bool(holdouts), len(scores) > 0]
    figure = new_figure(5.4 * max(sum(panels), 1), max(2.9, 1.7 + 0.42 * len(holdouts)))
    axes = iter(figure.subplots(1, max(sum(panels), 1), squeeze=False)[0])
    if holdouts:
        _holdout_rows(next(axes), holdouts)
    if len(scores) > 0:
        _score_histogram(next(axes), scores, measured.get("threshold"))
    for left in axes:
        left.text(0.5, 0.5, "Nothing measured", ha="center", va="center", color=MUTED)
        left.set_axis_off()
    return figure


def _recall_groups(
    evaluations: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return, for each stage and each type among its test cells, (cells, recall) after each model."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for evaluation in evaluations:
        for stage, entry in evaluation["per_stage"].items():
            for cell_type, one in entry["recall"].items():
                points = groups.setdefault(stage, {}).setdefault(cell_type, [])
                points.append((one["n"], one["recall"]))
    return {
        stage: dict(sorted(types.items(), key=lambda item: -item[1][0][0])) for stage, types in groups.items()
    }


def _recall_rows(axis: "Axes", types: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draw a row for each type: hollow marker at its first recall, filled marker at the present one."""
    for row, points in enumerate(types.values()):
        values = [value for _, value in points]
        first, last = values[0], values[-1]
        colour = ORANGE if last < first else GREEN if last > first else BLUE
        axis.plot([first, last], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot([min(values), max(values)], [row, row], color=colour, linewidth=0.9)
        axis.plot(values[1:-1], [row] * len(values[1:-1]), "|", color=colour, markersize=7)
        axis.plot(first, row, "o", markersize=6, markerfacecolor=SURFACE, color=colour, clip_on=False)
        axis.plot(last, row, "o", markersize=6, color=colour, clip_on=False)
    names = [f"{short(name)}  (n = {points[0][0]})" for name, points in types.items()]
    axis.set_yticks(range(len(types)), names)
    axis.set(ylim=(len(types) - 0.5, -0.5), xlim=(-0.02, 1.02))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axis.grid(True, axis="x")
    axis.tick_params(length=0)
    axis.spines[["left", "bottom"]].set_visible(False)


def _holdout_rows(axis: "Axes", holdouts: Sequence[Mapping[str, Any]]) -> None:
    """Draw a row for each held-out type: accuracy on known and unknown cells, and AUROC."""
    measures = {"known_accuracy": "known", "unknown_accuracy": "unknown", "auroc": "AUROC"}
    for number, (key, name) in enumerate(measures.items()):
        values = [number_or_gap(one.get(key)) for one in holdouts]
        rows = range(len(holdouts))
        axis.plot(
            values, rows, MARKERS[number], color=PALETTE[number], label=name, markersize=7, clip_on=False
        )
    names = [f"{short(one['type'])}  (n = {one['n_unknown']})" for one in holdouts]
    axis.set_yticks(range(len(holdouts)), names)
    axis.set(xlim=(0, 1.02), ylim=(len(holdouts) - 0.5, -0.5), xlabel="Share right · area under curve")
    axis.grid(True)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_title("Types the head never learned", pad=24)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, columnspacing=1.2, handletextpad=0.2)


def _score_histogram(axis: "Axes", scores: Sequence[float], threshold: float | None) -> None:
    """Draw the test cells' novelty; cells to the right of the threshold are Unassigned."""
    axis.hist(scores, bins=40, range=(0, 1), color=BLUE, alpha=0.75)
    axis.set(xlim=(0, 1), xlabel="Novelty score", ylabel="Test cells")
    axis.set_title("Novelty of the test cells", pad=24)
    axis.grid(True, axis="y")
    if threshold is not None:
        above = sum(score > threshold for score in scores) / len(scores)
        axis.axvline(threshold, color=ORANGE, linewidth=1.4)
        axis.text(0, 1.02, f"threshold {threshold:.3f}: {100 * above:.1f} % lie above, as Unassigned",
                  transform=axis.transAxes, fontsize=8.5, color=MUTED)  # fmt: skip
