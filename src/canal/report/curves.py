"""Curves over epochs: how a stage and the backbone were learned."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from canal.report.canvas import MARKERS, MUTED, PALETTE, new_figure, number_or_gap, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def loss_curves(history: Mapping[str, Any]) -> "Figure":
    """Draw how a stage was learned: its losses, and the accuracy on new and on earlier cells.

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
    """Draw one line for each measure that the epochs hold."""
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
    """Draw one curve; with its colour its marker changes, for eyes and printers that see no colour."""
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
    """Mark the epoch whose weights were kept; the words stand below, where no curve runs."""
    if best is not None:
        axis.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axis.set_xlabel(f"Epoch (weights kept: {best})")
