"""What DVC shows of a stage: `dvc metrics show` a row of figures, `dvc plots show` its pictures."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.core.files import new_folder, read_json, write_json
from canal.registry.manifest.pages import measures

SCORES, STAGES, TYPES = "scores.json", "stages.csv", "types.csv"
EPOCHS, CONFUSION = "epochs.csv", "confusion.csv"
"""Files of ``scores/<stage>``, as dvc.yaml names them."""

_SHOWN = ("average_accuracy", "backward_transfer", "forgetting", "h_score", "auroc", "ece")
_EPOCH = ("epoch", "loss", "cross_entropy", "distillation", "validation_accuracy")


def write_scores(layout: Layout, stage: str) -> None:
    """Write ``scores/<stage>`` from what was measured, and how the stage was learned.

    Equal measures give equal bytes. A stage that was learned by sums alone has no epochs.
    """
    evaluation = read_json(layout.metrics(stage) / "evaluation.json")
    history = layout.model(stage) / "history.json"
    epochs = read_json(history)["epochs"] if history.is_file() else []
    with new_folder(layout.scores(stage)) as folder:
        write_json(folder / SCORES, _figures(evaluation))
        _write(folder / STAGES, ("test_cells_of", "accuracy"), evaluation["row"].items())
        recalls = evaluation["per_stage"].items()
        rows = [(name, at, value) for at, one in recalls for name, value in one["recall"].items()]
        _write(folder / TYPES, ("cell_type", "test_cells_of", "recall"), rows)
        _write(folder / EPOCHS, _EPOCH, ([one.get(name) for name in _EPOCH] for one in epochs))
        _write(folder / CONFUSION, ("truth", "predicted"), _answers(layout.metrics(stage)))


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a stage, flat enough for a table."""
    said = measures(evaluation)
    return {
        "accuracy": evaluation["row"][evaluation["stage"]],
        **{name: said.get(name) for name in _SHOWN},
        "types": len(evaluation["labels"]),
        "by_stage": evaluation["row"],
    }


def _answers(metrics: Path) -> Iterable[Sequence[Any]]:
    path = metrics / "predictions.csv"
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            yield row["truth"], row["predicted"]


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
