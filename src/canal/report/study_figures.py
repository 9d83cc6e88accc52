"""Figures and a table of a study: accuracy and retention of each trial, the Pareto front, and the choice."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group

from canal.core.progress import count, percent
from canal.report.canvas import (
    AMBER,
    BLUE,
    GREEN,
    GRID,
    HEAT,
    INK,
    MUTED,
    ORANGE,
    SURFACE,
    new_figure,
    styled,
)
from canal.report.listing import Column, Listing, figures, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Trial = Mapping[str, Any]
Document = Mapping[str, Any]

NAMES = {
    "distillation": "λ",
    "bank_size": "L",
    "learning_rate": "learning rate",
    "label_smoothing": "label smoothing",
    "max_epochs": "epochs",
}

Row = dict[str, Any]


def tuning_figures(document: Document) -> dict[str, "Figure"]:
    """Return the figures of ``tuned.json`` by name; parameter importances need a few finished trials."""
    drawn = {
        "pareto_front": pareto_front(document),
        "lambda_by_l": lambda_by_l(document),
        "optimisation": optimisation(document),
    }
    return drawn | ({"importances": importances(document)} if document["importances"] else {})


@styled
def pareto_front(document: Document) -> "Figure":
    """Draw retention and accuracy of every finished trial; a line joins the Pareto front."""
    figure = new_figure(5.2, 4.0)
    axis = figure.subplots()
    done = _complete(document)
    front = [done[number] for number in document["front"]]
    axis.plot(*_points(front), color=GREEN, linewidth=1.4, zorder=1)
    axis.plot(*_points(list(done.values())), "o", color=BLUE, alpha=0.55, zorder=2)
    _mark(axis, document, lambda one: (one["retention"], one["accuracy"]))
    least = document["rule"]["min_retention"]
    if axis.get_xlim()[0] <= least:
        axis.axvline(least, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
    axis.set_xlabel("Retention: share of the earlier stages’ accuracy that is kept")
    axis.set_ylabel("Balanced accuracy, new cells")
    axis.set_title("What was learned against what was kept")
    _finish(figure, axis)
    return figure


@styled
def lambda_by_l(document: Document) -> "Figure":
    """Draw every trial at its lambda and L, darker for better; a cross marks pruned trials."""
    from matplotlib.colors import LinearSegmentedColormap

    figure = new_figure(5.6, 4.0)
    axis = figure.subplots()
    done, zero = _complete(document), float(document["tuning"]["distillation"]["low"]) / 3
    sizes = sorted({one["settings"]["bank_size"] for one in document["trials"]})

    def place(trial: Trial) -> tuple[float, float]:
        return trial["settings"]["distillation"] or zero, sizes.index(trial["settings"]["bank_size"])

    where = [place(one) for one in done.values()]
    shades = LinearSegmentedColormap.from_list("canal", HEAT[1:])
    drawn = axis.scatter(
        [x for x, _ in where], [y for _, y in where], c=[one["value"] for one in done.values()],
        cmap=shades, s=110, edgecolors=MUTED, linewidths=0.6, zorder=2,
    )  # fmt: skip
    figure.colorbar(drawn, ax=axis, label="Value: harmonic mean less the price of L").outline.set_visible(
        False
    )
    ended = [place(one) for one in document["trials"] if one["state"] != "complete"]
    if ended:
        axis.plot(*zip(*ended, strict=True), "x", color=MUTED, markersize=6, zorder=1)
    _mark(axis, document, place)
    _strength_axis(axis, document, zero)
    axis.set_yticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axis.set_ylabel("L: bank cells replayed at most")
    axis.set_title("Value at each λ and L")
    _finish(figure, axis)
    return figure


@styled
def optimisation(document: Document) -> "Figure":
    """Draw the value of every trial in order, and the best value so far."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(5.2, 3.4)
    axis = figure.subplots()
    done = _complete(document)
    best, steps = float("-inf"), []
    for one in done.values():
        best = max(best, one["value"])
        steps.append((one["number"], best))
    axis.step(*zip(*steps, strict=True), where="post", color=GREEN, linewidth=1.4, zorder=1)
    axis.plot(list(done), [one["value"] for one in done.values()], "o", color=BLUE, alpha=0.7, zorder=2)
    ended = [one for one in document["trials"] if one["state"] == "pruned" and one["curve"]]
    if ended:
        last = [list(one["curve"].values())[-1] for one in ended]
        axis.plot([one["number"] for one in ended], last, "x", color=MUTED, markersize=6, zorder=1)
    _mark(axis, document, lambda one: (one["number"], one["value"]))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.set_xlabel("Trial (cross: ended early; line: best so far)")
    axis.set_ylabel("Value")
    axis.set_title("Trials in their order")
    _finish(figure, axis)
    return figure


@styled
def importances(document: Document) -> "Figure":
    """Draw the share of the value's variance that each parameter explains."""
    found = sorted(document["importances"].items(), key=lambda item: item[1])
    figure = new_figure(5.2, 1.3 + 0.4 * len(found))
    axis = figure.subplots()
    axis.barh([NAMES[name] for name, _ in found], [share for _, share in found], color=BLUE, height=0.55)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlabel("Share of the variance explained (fANOVA)")
    axis.set_title(f"What mattered in {len(_complete(document))} finished trials")
    axis.grid(True, axis="x")
    axis.tick_params(axis="y", length=0)
    return figure


def _complete(document: Document) -> dict[int, Trial]:
    return {one["number"]: one for one in document["trials"] if one["state"] == "complete"}


def _points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return [one["retention"] for one in trials], [one["accuracy"] for one in trials]


def _mark(axis: "Axes", document: Document, place: Any) -> None:
    """Ring the chosen trial, and mark the published point with a diamond."""
    done = _complete(document)
    chosen, published = (
        done[document["chosen"]],
        next((one for one in done.values() if one["published"]), None),
    )
    axis.plot(
        *place(chosen), "o", markersize=13, markerfacecolor="none", color=ORANGE, markeredgewidth=1.8,
        label=f"chosen: λ = {chosen['settings']['distillation']:g}, L = {chosen['settings']['bank_size']:,}",
        linestyle="", zorder=4, clip_on=False,
    )  # fmt: skip
    if published is not None:
        axis.plot(
            *place(published), "D", markersize=7, color=AMBER, markeredgecolor=INK, markeredgewidth=0.8,
            label=f"published: λ = 0.1, L = 1,000{_cut(published)}", linestyle="", zorder=3, clip_on=False,
        )  # fmt: skip


def _cut(published: Trial) -> str:
    size = published["settings"]["bank_size"]
    return "" if size == 1000 else f" (here {size:,})"


def _strength_axis(axis: "Axes", document: Document, zero: float) -> None:
    bounds = document["tuning"]["distillation"]
    powers = range(math.ceil(math.log10(bounds["low"])), math.floor(math.log10(bounds["high"])) + 1)
    ticks = {zero: "0"} if bounds["with_zero"] else {}
    ticks |= {10.0**power: f"{10.0**power:g}" for power in powers}
    axis.set_xscale("log")
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xticks([], minor=True)
    axis.set_xlim(zero / 1.6, bounds["high"] * 1.6)
    axis.set_xlabel("λ: weight of staying near the teacher")


def _finish(figure: "Figure", axis: "Axes") -> None:
    axis.grid(True, color=GRID)
    axis.margins(0.08, 0.12)
    figure.legend(loc="outside lower left", ncols=2, facecolor=SURFACE, columnspacing=1.4, handletextpad=0.3)


def front_rows(document: Document) -> list[Row]:
    """Return the Pareto front, the published and the chosen trial, marked.

    A row has ``number``, ``marks``, the settings, ``accuracy``, ``retention``, ``harmonic_mean``, ``value``.
    """
    rows = []
    for trial in document["trials"]:
        marks = [*(["published"] if trial["published"] else [])]
        marks += ["chosen"] if trial["number"] == document["chosen"] else []
        on_front = trial["number"] in document["front"]
        if trial["state"] == "complete" and (marks or on_front):
            kept = {name: trial[name] for name in ("accuracy", "retention", "harmonic_mean", "value")}
            marks = marks if on_front else [*marks, "beaten"]
            rows.append({"number": trial["number"], "marks": marks, **trial["settings"], **kept})
    return sorted(rows, key=lambda row: (-row["accuracy"], row["number"]))


def tuning_table(document: Document) -> Group:
    """Return the Pareto front of a study as a table, with the choice and its reason."""
    extra = [name for name in document["choice"] if name not in ("distillation", "bank_size")]
    found = Listing(
        f"Stage {document['stage']}: trials that no other one beats in both aims",
        (
            Column("trial", "number", "bold"),
            *figures("λ", "L", *extra, "new cells, %", "kept, %", "value"),
            Column("mark", "names", "cyan"),
        ),
    )
    for row in front_rows(document):
        settings = [f"{row[name]:g}" for name in ("distillation", "bank_size", *extra)]
        scores = [percent(row["accuracy"], ""), percent(row["retention"], ""), f"{row['value']:.3f}"]
        style = "green" if "chosen" in row["marks"] else ""
        found.add(*(text(value, style) for value in (row["number"], *settings, *scores)), row["marks"])
    return Group(found, *(text(line, "dim") for line in _lines(document)))


def _lines(document: Document) -> list[str]:
    states, rule = document["states"], document["rule"]
    sure = document.get("n_effective")
    no_surer = f" (types count alike: no surer than {sure:g} cells)" if sure is not None else ""
    probes = ", ".join(f"{count(n, 'probe cell')} of {stage}" for stage, n in document["n_probe"].items())
    lines = [
        f"{count(states['complete'], 'trial')} of {document['tuning']['epochs']} epochs to their end, "
        f"{states['pruned']} ended early, {states['failed']} failed",
        f"judged on {count(document['n_validation'], 'validation cell')} of its own{no_surer}, {probes}",
    ]
    wanted = f"{100 * rule['min_retention']:g} %"
    if rule["below"]:
        lines.append(f"no trial keeps {wanted} of the past: chosen is the one that keeps most")
    else:
        lines.append(f"chosen by {rule['name']} among those that keep at least {wanted} of the past")
    if rule.get("passed_over") is not None:
        lines.append(
            f"trial {rule['passed_over']} looks better than the published point by too little to be sure "
            f"(least_gain {rule['least_gain']:g}): the published point is kept"
        )
    if not document["reproducible"]:
        lines.append("another run might choose otherwise: " + "; ".join(document["because"]))
    return lines
