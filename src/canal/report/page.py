"""The report of a run as one static offline HTML page with text, tables and figures.

Numbers are formatted as percent, percentage points or decimals; missing measurements are marked.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from canal.data.split import reported_sets
from canal.report import figures
from canal.report.canvas import write_html
from canal.report.collect import confusion_figures, matrix_figure, stage_figures
from canal.report.documents import (
    Document,
    StageReport,
    accuracy_matrix,
    before_learning,
    lineage,
    method_lines,
)
from canal.report.study_figures import front_rows, tuning_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "ari": "ARI",
    "unassigned": "Unassigned",
}

NOT_MEASURED = "–"


def write_report(
    stages: Sequence[StageReport], out: Path, title: str = "canal", pretraining: Document | None = None
) -> Path:
    """Write the report page of a run; the same input gives the same bytes.

    Parameters
    ----------
    stages
        The stages, oldest first; the headline is that of the last one.
    out
        The HTML file to write.
    title
        Name of the registered model, for the heading.
    pretraining
        ``models/backbone/history.json``, where the backbone was trained here.

    Returns
    -------
    Path
        ``out``.
    """
    shown = None
    if pretraining is not None and pretraining["epochs"]:
        shown = {"history": pretraining, "figure": figures.svg_uri(figures.pretraining(pretraining))}
    values = {
        "title": title, "measures": MEASURES, "sets": _sets(stages), "run": _run(stages),
        "stages": _stages(stages, out.parent), "pretraining": shown,
    }  # fmt: skip
    return write_html("page.html", out, values, FILTERS)


def _run(stages: Sequence[StageReport]) -> dict[str, Any] | None:
    """Return the summary above the stages: the newest model's metrics and the R matrix."""
    if not stages:
        return None
    names, matrix = accuracy_matrix([stage.evaluation for stage in stages])
    by_name = {stage.name: stage for stage in stages}
    before = before_learning([stage.evaluation for stage in stages])
    rows = [
        {
            "name": name,
            "report": by_name.get(name),
            "squares": [
                f"({100 * before[name, names[j]]:.1f})"
                if (name, names[j]) in before
                else _square(value, row, j)
                for j, value in enumerate(line)
            ],
        }
        for row, (name, line) in enumerate(zip(names, matrix, strict=True))
    ]
    return {
        "newest": stages[-1],
        "versions": sum(stage.version is not None for stage in stages),
        "names": names,
        "rows": rows,
        "heat_map": figures.svg_uri(matrix_figure([stage.evaluation for stage in stages])),
    }


def _square(value: float | None, row: int, column: int) -> str:
    """Return a square of R as text: a dash where not measured, empty for stages not learned yet."""
    if value is None:
        return "–" if column <= row else ""
    return f"{100 * value:.1f}"


def _stages(stages: Sequence[StageReport], folder: Path) -> list[dict[str, Any]]:
    """Return the template's values for each stage, of a page in ``folder``."""
    labels, words = {stage.name: stage.evaluation["labels"] for stage in stages}, _sets(stages)
    named_by_key = {stage.key_digest: stage.name for stage in stages if stage.key_digest}
    evaluations = [stage.evaluation for stage in stages]
    return [
        {
            "report": stage,
            "parent": _parent(stage, named_by_key),
            "method": list(method_lines(stage.method)),
            "cells": _cells_table(stage, labels, words),
            "rules": _rules(stage.verdict),
            "data_docs": None if stage.data_docs is None else _address(stage.data_docs, folder),
            "bank": _bank_table(stage),
            "figures": _uris(stage_figures(stage, lineage(evaluations, stage.name))),
            "confusions": _uris(confusion_figures(stage)),
            "tuning": _tuning(stage.tuned),
        }
        for stage in stages
    ]


def _address(path: Path, folder: Path) -> str:
    """Return the address of a file on this machine, as a page in ``folder`` links to it."""
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _parent(stage: StageReport, named_by_key: dict[str, str]) -> dict[str, str] | None:
    """Return the parent's key and, where it is on this page, its stage; None without a key."""
    if stage.key is None or not stage.key.get("parent"):
        return None
    digest = str(stage.key["parent"])
    ancestors = stage.evaluation["stages"][:-1]
    return {"digest": digest, "name": named_by_key.get(digest, ancestors[-1] if ancestors else "backbone")}


def _sets(stages: Sequence[StageReport]) -> tuple[str, ...]:
    """Return the sets of the split: training, validation, test, and the reserve where it is used."""
    return reported_sets({name for stage in stages for sets in stage.cells.values() for name in sets})


def _cells_table(
    stage: StageReport, labels: Mapping[str, Sequence[str]], words: Sequence[str]
) -> dict[str, Any] | None:
    """Return the stage's cells by type and set, the largest type first, with their sums.

    A type is new if the parent's model, by its ``labels``, did not know it.
    """
    if not stage.cells:
        return None
    rows = [(name, [sets.get(one, 0) for one in words]) for name, sets in stage.cells.items()]
    rows.sort(key=lambda row: (-sum(row[1]), row[0]))
    parents = [labels[one] for one in stage.evaluation["stages"][:-1] if one in labels]
    known = parents[-1] if parents else [name for name, _ in rows]
    return {
        "rows": [{"name": name, "numbers": numbers, "new": name not in known} for name, numbers in rows],
        "sums": [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)],
    }


def _rules(verdict: Document | None) -> list[Document]:
    """Return the gate's rules, failed ones first, errors before warnings."""
    if verdict is None:
        return []
    return sorted(verdict["rules"], key=lambda rule: (rule["passed"], rule["severity"] != "error"))


def _bank_table(stage: StageReport) -> dict[str, Any] | None:
    """Return the bank's cells by type and by the stage they came from, with their sums."""
    if not stage.bank:
        return None
    stages = [one for one in stage.evaluation["stages"] if any(row.get(one) for row in stage.bank.values())]
    names = sorted(stage.bank, key=_place(stage.evaluation["labels"]))
    numbers = [[stage.bank[name].get(one, 0) for one in stages] for name in names]
    return {
        "stages": stages,
        "rows": [{"name": name, "numbers": line} for name, line in zip(names, numbers, strict=True)],
        "sums": [sum(column) for column in zip(*numbers, strict=True)],
        "most": max(sum(line) for line in numbers),
    }


def _tuning(tuned: Document | None) -> dict[str, Any] | None:
    """Return the study's figures and its Pareto-optimal trials, marked; None without a study."""
    if tuned is None:
        return None
    return {
        "document": tuned,
        "figures": _uris(tuning_figures(tuned)),
        "rows": front_rows(tuned),
        "n_probe": sum(tuned["n_probe"].values()),
    }


def _place(labels: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Return a sort key that orders types as the model does, unknown types last."""
    places = {name: index for index, name in enumerate(labels)}
    return lambda name: (places.get(name, len(places)), name)


def _uris(drawn: Mapping[str, "Figure"]) -> dict[str, str]:
    return {name: figures.svg_uri(figure) for name, figure in drawn.items()}


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\u00a0%"


def points(value: float | None) -> str:
    """Return a difference of shares as percentage points with one decimal."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\u00a0points".replace("-", "−")


def decimal(value: float | None) -> str:
    """Return a number with three decimals."""
    return NOT_MEASURED if value is None else f"{value:.3f}".replace("-", "−")


def count(value: int | None) -> str:
    """Return a whole number with a thin space between thousands."""
    return NOT_MEASURED if value is None else f"{value:,}".replace(",", "\u202f")


FILTERS = {"percent": percent, "points": points, "decimal": decimal, "count": count}
"""Forms of numbers in pages, by their names in templates."""
