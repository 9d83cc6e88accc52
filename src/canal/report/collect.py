"""Collect the documents of a report from a project's folders, and write the files that DVC plots."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.files import new_folder, read_json, write_json
from canal.core.progress import doing
from canal.io.h5ad import open_h5ad
from canal.quality.gate import read_labels
from canal.quality.verdict import with_label_rules
from canal.registry.manifest.card import README, Card, lineage_data
from canal.registry.manifest.pages import measures
from canal.registry.manifest.version_folder import method_view
from canal.report import figures
from canal.report.documents import Document, StageReport, accuracy_matrix, before_learning, lineage
from canal.report.study_figures import tuning_figures
from canal.tuning.document import TUNED_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def collect(
    layout: Layout, stages: Sequence[str], versions: Sequence[Mapping[str, Any]] = ()
) -> list[StageReport]:
    """Return the report of every stage that was learned and evaluated, in the order of ``stages``.

    Parameters
    ----------
    layout
        The project's folders.
    stages
        Names of stages; those without ``evaluation.json`` or ``history.json`` are left out.
    versions
        Registered versions as mappings with ``version``, ``key`` and ``aliases``; they are matched by key,
        for a stage may have been learned more than once.
    """
    by_key = {one["key"]: one for one in versions}
    return [
        _stage(layout, stage, by_key)
        for stage in stages
        if (layout.metrics(stage) / "evaluation.json").is_file()
        and (layout.model(stage) / "history.json").is_file()
    ]


def backbone_history(layout: Layout) -> Document | None:
    """Return history.json of the backbone, or None where it was not trained here."""
    document: Document | None = _optional_json(layout.model(BACKBONE) / "history.json")
    return document


@doing("drawing the figures of the stage")
def draw_figures(layout: Layout, stage: str, into: Path) -> None:
    """Draw the figures of one stage, or of the backbone, as PNG files into a folder."""
    if stage == BACKBONE:
        history = backbone_history(layout)
        drawn = (
            {} if history is None or not history["epochs"] else {"pretraining": figures.pretraining(history)}
        )
    else:
        report = _stage(layout, stage, {})
        evaluations = lineage([one.evaluation for one in collect(layout, report.evaluation["stages"])], stage)
        drawn = {"r_matrix": matrix_figure(evaluations), **stage_figures(report, evaluations)}
        drawn |= {f"confusion-{name}": figure for name, figure in confusion_figures(report).items()}
        if report.tuned is not None:
            draw_tuning(report.tuned, into)
    for name, figure in drawn.items():
        figures.save(figure, into / f"{name}.png")


def draw_tuning(tuned: Document, into: Path) -> None:
    """Draw the figures of a study, ``tuned.json``, as PNG files into a folder."""
    for name, figure in tuning_figures(tuned).items():
        figures.save(figure, into / f"tuning-{name}.png")


def _stage(layout: Layout, stage: str, by_key: Mapping[str, Mapping[str, Any]]) -> StageReport:
    """Read one stage's files; only its evaluation and its history are required."""
    model, metrics = layout.model(stage), layout.metrics(stage)
    digest = file_digest(model / "key.json") if (model / "key.json").is_file() else ""
    version = by_key.get(digest, {})
    return StageReport(
        name=stage,
        evaluation=read_json(metrics / "evaluation.json"),
        history=read_json(model / "history.json"),
        verdict=_verdict(layout, stage),
        key=_optional_json(model / "key.json"),
        key_digest=digest,
        cells=(_optional_json(layout.split(stage).with_suffix(".json")) or {}).get("counts", {}),
        bank=_bank(model / "bank" / "bank.h5ad"),
        scores=_scores(metrics / "predictions.csv"),
        tuned=_optional_json(model / TUNED_FILE),
        data_docs=pages if (pages := layout.data_docs(stage) / "index.html").is_file() else None,
        method=method_view(model, _optional_json(model / "key.json") or {}),
        version=version.get("version"),
        aliases=tuple(version.get("aliases", ())),
    )


def _verdict(layout: Layout, stage: str) -> Document | None:
    """Return the gate's verdict, with the comparisons of labels with the parent's predictions as rules."""
    verdict: Document | None = _optional_json(layout.verdict(stage))
    if verdict is None or not layout.labels(stage).is_file():
        return verdict
    return with_label_rules(verdict, read_labels(layout.labels(stage)))


def _optional_json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _bank(path: Path) -> dict[str, dict[str, int]]:
    """Return the number of cells in a bank by type and stage."""
    if not path.is_file():
        return {}
    with open_h5ad(path) as file:
        pairs = Counter(zip(file.obs_column("cell_type"), file.obs_column("stage"), strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (cell_type, stage), n in sorted(pairs.items()):
        counts.setdefault(cell_type, {})[stage] = n
    return counts


def _scores(path: Path) -> tuple[float, ...]:
    """Return the novelty of every test cell, from predictions.csv."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(float(row["novelty"]) for row in csv.DictReader(stream))


SCORES, STAGES, TYPES = "scores.json", "stages.csv", "types.csv"
EPOCHS, CONFUSION = "epochs.csv", "confusion.csv"
"""Files of ``scores/<stage>``, as dvc.yaml names them."""

_SHOWN = ("average_accuracy", "backward_transfer", "forgetting", "h_score", "auroc", "ece")
_EPOCH = ("epoch", "loss", "cross_entropy", "distillation", "validation_accuracy")


def _stage_card(layout: Layout, config: Config, stage: str) -> Card:
    """Return the model card of an evaluated stage; it has no number before it is registered."""
    evaluation = read_json(layout.metrics(stage) / "evaluation.json")
    key = file_digest(layout.model(stage) / "key.json")
    return Card(config.registry.model, stage, key, evaluation, lineage_data(layout, config, stage))


def write_scores(layout: Layout, config: Config, stage: str) -> None:
    """Write ``scores/<stage>`` from the stage's evaluation and training history, and its model card.

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
        predictions = layout.metrics(stage) / "predictions.csv"
        if predictions.is_file():
            with predictions.open(newline="", encoding="utf-8") as stream:
                pairs = [(row["truth"], row["predicted"]) for row in csv.DictReader(stream)]
        else:
            pairs = []
        _write(folder / CONFUSION, ("truth", "predicted"), pairs)
        _stage_card(layout, config, stage).write(folder / README)


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a stage as a flat document."""
    metrics = measures(evaluation)
    return {
        "accuracy": evaluation["row"][evaluation["stage"]],
        **{name: metrics.get(name) for name in _SHOWN},
        "types": len(evaluation["labels"]),
        "by_stage": evaluation["row"],
    }


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def stage_figures(stage: StageReport, evaluations: Sequence[Document]) -> dict[str, "Figure"]:
    """Return the figures of a stage by name.

    Parameters
    ----------
    stage
        The stage.
    evaluations
        evaluation.json of its ancestors and its own, oldest first.
    """
    evaluation = stage.evaluation
    drawn = {}
    if stage.history["epochs"]:
        drawn["loss_curves"] = figures.loss_curves(stage.history)
    if evaluation["per_stage"]:
        drawn["recall"] = figures.recall_by_type(evaluations)
    if evaluation["calibration"].get("bins"):
        drawn["reliability"] = figures.reliability(evaluation["calibration"])
    if evaluation["novelty"].get("holdouts") or len(stage.scores) > 0:
        drawn["novelty"] = figures.novelty(evaluation["novelty"], stage.scores)
    return drawn


def confusion_figures(stage: StageReport) -> dict[str, "Figure"]:
    """Return one confusion matrix for each stage that this one's model was tested on, the newest first."""
    entries = reversed(list(stage.evaluation["per_stage"].items()))
    return {name: figures.confusion(entry, f"Test cells of {name}") for name, entry in entries}


def matrix_figure(evaluations: Sequence[Document]) -> "Figure":
    """Return the heat map of R over these evaluations."""
    return figures.r_matrix(*accuracy_matrix(evaluations), before_learning(evaluations))
