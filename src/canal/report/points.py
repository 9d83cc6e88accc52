"""Point plots: what was forgotten, and how far confidence and novelty may be trusted."""

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
    new_figure,
    number_or_gap,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def recall_by_type(evaluations: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw each type's recall just after its stage and now: what fell was forgotten.

    Parameters
    ----------
    evaluations
        evaluation.json of every model of one lineage, oldest first.
    """
    groups = _recall_groups(evaluations)
    heights = [len(types) + 2 for types in groups.values()]
    figure = new_figure(7.4, 0.7 + 0.235 * sum(heights))
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (stage, types) in zip(axes, groups.items(), strict=True):
        _recall_rows(axis, types)
        axis.set_title(f"Test cells of {stage}")
    axes[-1].set_xlabel("Recall, %")
    _recall_legend(figure)
    return figure


@styled
def reliability(calibration: Mapping[str, Any]) -> "Figure":
    """Draw accuracy against stated confidence; on the diagonal a confidence means what it says.

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
    above.set_title(_calibration_title(calibration))
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axis.plot(centres, [one["accuracy"] for one in bins], "o-", color=BLUE)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.04), xlabel="Confidence", ylabel="Share that is right")
    axis.grid(True)
    return figure


@styled
def novelty(measured: Mapping[str, Any], scores: Sequence[float] = ()) -> "Figure":
    """Draw how well types left out of the head are noticed, and the scores of the test cells.

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
    """Draw one row a type: hollow where its recall began, filled where it is now."""
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


def _recall_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    then = Line2D([], [], color=INK, marker="o", linestyle="", markerfacecolor=SURFACE)
    now = Line2D([], [], color=INK, marker="o", linestyle="")
    changes = [Line2D([], [], color=colour, linewidth=2.2) for colour in (ORANGE, GREEN, BLUE)]
    names = ["after its own stage", "now", "fell", "rose", "as before"]
    figure.legend([then, now, *changes], names, loc="outside upper left", ncols=5, columnspacing=1.4)


def _calibration_title(calibration: Mapping[str, Any]) -> str:
    low, high = calibration.get("low"), calibration.get("high")
    interval = "" if low is None or high is None else f" (95 %: {low:.3f} to {high:.3f})"
    before = calibration.get("uncalibrated")
    without = "" if before is None else f"\n{before['ece']:.3f} without the temperature"
    return f"Calibration error {calibration['ece']:.3f}{interval}{without}"


def _holdout_rows(axis: "Axes", holdouts: Sequence[Mapping[str, Any]]) -> None:
    """Draw one row a left-out type: accuracy on known and unknown cells, and AUROC."""
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
    """Draw the test cells' novelty; what lies right of the threshold is called Unassigned."""
    axis.hist(scores, bins=40, range=(0, 1), color=BLUE, alpha=0.75)
    axis.set(xlim=(0, 1), xlabel="Novelty score", ylabel="Test cells")
    axis.set_title("Novelty of the test cells", pad=24)
    axis.grid(True, axis="y")
    if threshold is not None:
        above = sum(score > threshold for score in scores) / len(scores)
        axis.axvline(threshold, color=ORANGE, linewidth=1.4)
        axis.text(0, 1.02, f"threshold {threshold:.3f}: {100 * above:.1f} % lie above, as Unassigned",
                  transform=axis.transAxes, fontsize=8.5, color=MUTED)  # fmt: skip
