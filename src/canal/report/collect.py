"""From a project's folders to what the report is made from."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.files import read_json
from canal.data.h5ad import open_h5ad
from canal.quality.gate import read_labels
from canal.registry.bundle import method_view
from canal.report import figures
from canal.report.documents import Document, StageReport, lineage
from canal.report.gallery import confusion_figures, matrix_figure, stage_figures
from canal.report.study_figures import tuning_figures
from canal.tuning.document import TUNED_FILE


def collect(
    layout: Layout, stages: Sequence[str], versions: Sequence[Mapping[str, Any]] = ()
) -> list[StageReport]:
    """Return the report of every stage that was learned and measured, in the order of ``stages``.

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
    return [_stage(layout, stage, by_key) for stage in stages if _measured(layout, stage)]


def backbone_history(layout: Layout) -> Document | None:
    """Return history.json of the backbone, or None where it was not trained here."""
    document: Document | None = _optional_json(layout.model(BACKBONE) / "history.json")
    return document


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


def _measured(layout: Layout, stage: str) -> bool:
    files = (layout.metrics(stage) / "evaluation.json", layout.model(stage) / "history.json")
    return all(path.is_file() for path in files)


def _stage(layout: Layout, stage: str, by_key: Mapping[str, Mapping[str, Any]]) -> StageReport:
    """Read one stage's files; only its evaluation and its history must be there."""
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
        method=method_view(model, _optional_json(model / "key.json") or {}),
        version=version.get("version"),
        aliases=tuple(version.get("aliases", ())),
    )


def _verdict(layout: Layout, stage: str) -> Document | None:
    """Return what the gate said, the comparison of labels with the parent's answers among its rules."""
    verdict: Document | None = _optional_json(layout.verdict(stage))
    if verdict is None or not layout.labels(stage).is_file():
        return verdict
    rule = read_labels(layout.labels(stage))["rule"]
    return verdict if rule is None else {**verdict, "rules": [*verdict["rules"], rule]}


def _optional_json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _bank(path: Path) -> dict[str, dict[str, int]]:
    """Return how many cells of each type a bank holds from each stage."""
    if not path.is_file():
        return {}
    with open_h5ad(path) as file:
        pairs = Counter(zip(file.obs_column("cell_type"), file.obs_column("stage"), strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (cell_type, stage), n in sorted(pairs.items()):
        counts.setdefault(cell_type, {})[stage] = n
    return counts


def _scores(path: Path) -> tuple[float, ...]:
    """Return the novelty of every test cell, as predictions.csv has it."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(float(row["novelty"]) for row in csv.DictReader(stream))
