"""Two versions on the same cells: recorded predictions where they exist, new ones elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from canal.app.models import LoadedModels
from canal.app.project import Project
from canal.core.errors import CanalError, RegistryError, there_are
from canal.core.files import read_json, scratch_folder
from canal.data.prepare import PrepareSettings, prepare
from canal.data.prepared import PreparedCells
from canal.model.load import CellAnnotator
from canal.registry.audit.full_audit import Depth, audit
from canal.registry.ledger.ledger_rules import CHAMPION
from canal.registry.promotion.comparing import Comparison, Sampling, StageComparison, compare_stage
from canal.registry.promotion.policy import Evidence, share_interval
from canal.registry.store.database import Version
from canal.registry.versions.history import current_evaluation, recorded

_PREDICTIONS = "metrics/predictions.csv"


@dataclass(frozen=True, eq=False)
class Scored:
    """A comparison, and the answers that it is of.

    Attributes
    ----------
    comparison : Comparison
    answers : dict
        By stage or file the answers of the first and of the second version: tables with ``cell_id``,
        ``truth`` and ``predicted``.
    """

    comparison: Comparison
    answers: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a version is judged by, gathered once for the policy's rulings and for the page.

    Attributes
    ----------
    evidence : Evidence
    scored : Scored or None
        Its answers and those of the version that it was compared with.
    loaded : LoadedModels
        The annotators that were needed.
    """

    evidence: Evidence
    scored: Scored | None
    loaded: LoadedModels


def compare(
    project: Project, wanted: str, against: str = CHAMPION, file: Path | None = None, stage: str | None = None
) -> Comparison:
    """Score a version and the champion (or another version) on the same cells."""
    candidate, champion = project.store.version(wanted), project.store.version(against)
    if candidate.number == champion.number:
        raise RegistryError(
            f"version {candidate.number} cannot be compared with itself; name another version with --with"
        )
    return score_versions(LoadedModels(project), champion, candidate, file, stage).comparison


def score_versions(
    loaded: LoadedModels,
    champion: Version,
    candidate: Version,
    file: Path | None = None,
    stage: str | None = None,
) -> Scored:
    """Compare two versions on the test cells of the candidate's stages, and on a labelled file.

    Parameters
    ----------
    loaded : LoadedModels
        Of the project; gets those that answer.
    champion, candidate : Version
    file : Path, optional
        A labelled h5ad file, read with the declaration of ``stage`` (default: the last stage).

    Raises
    ------
    CanalError
        If a version's artifacts are damaged, or the file cannot be read as declared.
    """
    project = loaded.project
    policy = project.config.policy
    sampling = Sampling(policy.confidence, policy.resamples, project.config.seed, policy.loss_to_see)
    before, after = recorded_predictions(project, champion), recorded_predictions(project, candidate)
    answers: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    stages: dict[str, StageComparison] = {}
    not_compared: dict[str, str] = {}
    for name in dict.fromkeys([*before, *after]):
        theirs, ours = before.get(name), after.get(name)
        try:
            theirs = _predict_stage(loaded, champion, name) if theirs is None else theirs
            ours = _predict_stage(loaded, candidate, name) if ours is None else ours
            stages[name] = compare_stage(theirs, ours, policy.min_cells_per_type, sampling)
            answers[name] = theirs, ours
        except CanalError as error:
            not_compared[name] = str(error)
    if file is not None:
        theirs, ours = _predict_file(loaded, (champion, candidate), file, stage)
        stages[file.name] = compare_stage(theirs, ours, policy.min_cells_per_type, sampling)
        answers[file.name] = theirs, ours
    learned = (champion.stage, candidate.stage)
    numbers = (champion.number, candidate.number)
    comparison = Comparison(*numbers, stages, not_compared, tuple(before), learned, policy.loss_to_see)
    return Scored(comparison, answers)


def parent_of(project: Project, version: Version) -> Version | None:
    """Return the registered version it was learned on; None for a backbone, and where it is not here."""
    key = read_json(project.store.artifacts(version) / "key.json")["parent"]
    return next((one for one in project.store.versions() if one.ready and one.key == key), None)


def gather_evidence(
    loaded: LoadedModels, version: Version, other: Version | None, depth: Depth = "opened"
) -> Gathered:
    """Return what the policy judges a version by, beside another, and both versions' answers.

    Of one whose files were erased no answers are left, and nothing can be shown to be kept. ``depth`` is that
    of the audit.
    """
    project = loaded.project
    store, folder = project.store, project.store.artifacts(version)
    with ThreadPoolExecutor(1) as beside:  # an audit mostly reads and waits, while the models answer
        audited = beside.submit(audit, store, project.layout, project.config, [version], depth)
        scored = None if other is None or other.erased else score_versions(loaded, other, version)
        findings = [str(one) for one in audited.result().findings]
    compared = None if scored is None else scored.comparison
    if other is not None and other.erased:
        gone = {other.stage: f"the files of its parent, version {other.number}, were erased"}
        compared = Comparison(other.number, version.number, {}, gone, (other.stage,))
    evidence = Evidence(
        evaluation=current_evaluation(store, version),
        verdict=read_json(folder / "validation" / "verdict.json"),
        record=read_json(folder / "record.json"),
        key=read_json(folder / "key.json"),
        findings=findings,
        comparison=compared,
    )
    return Gathered(evidence, scored, loaded)


def recorded_predictions(project: Project, version: Version) -> dict[str, pd.DataFrame]:
    """Return a version's recorded predictions for test cells, a table for each stage, digests checked.

    Raises
    ------
    RegistryError
        If the predictions on disk are not the registered ones.
    """
    path = recorded(project.store, version, _PREDICTIONS)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return {str(stage): rows.reset_index(drop=True) for stage, rows in table.groupby("stage", sort=False)}


def _predict_stage(loaded: LoadedModels, version: Version, stage: str) -> pd.DataFrame:
    """Return a version's predictions for the test cells of a stage that it was not evaluated on."""
    project = loaded.project
    if stage not in project.config.stages or not project.available(stage):
        raise RegistryError(
            f"version {version.number} was not evaluated on {stage!r}, whose cells are not available"
        )
    annotator = loaded.of(version)
    cells = project.cells(stage, "test", annotator.genes)
    annotator = annotator.without(project.prepared(stage).missing(annotator.genes))
    return _predictions(annotator, cells.cell_ids, cells.cell_types, cells.expression)


def _predict_file(
    loaded: LoadedModels, versions: tuple[Version, ...], file: Path, stage: str | None
) -> list[pd.DataFrame]:
    """Return the predictions of several versions for the cells of a labelled file."""
    project = loaded.project
    name = stage or project.config.last_stage
    if name not in project.config.stages:
        raise RegistryError(f"no stage {name!r} in params.yaml{there_are(name, project.config.stages)}")
    source = project.config.stages[name].source
    settings = PrepareSettings(project.config.min_genes(source), project.config.prepare.chunk_cells)
    with scratch_folder("compare") as scratch:
        into = scratch / "cells"
        prepare(file, source, project.config.sources[source], settings, into)
        cells = PreparedCells(into / "cells.h5ad")
        ids, types = tuple(cells.obs.index.astype(str)), tuple(cells.obs["cell_type"].astype(str))
        tables = []
        for version in versions:
            annotator = loaded.of(version)
            annotator = annotator.without(cells.missing(annotator.genes))
            tables.append(_predictions(annotator, ids, types, cells.expression(ids, annotator.genes)))
    return tables


def _predictions(
    annotator: CellAnnotator, ids: tuple[str, ...], truth: tuple[str, ...], expression: np.ndarray
) -> pd.DataFrame:
    return pd.DataFrame({"cell_id": ids, "truth": truth, "predicted": annotator.predict(expression).labels})


# What answers come to, by stage: documents for a page.

_EXAMPLES = 3


def recall_and_precision(
    after: Mapping[str, pd.DataFrame], compared: Comparison | None, confidence: float
) -> Iterator[dict[str, Any]]:
    """Yield precision and recall of each type on each stage's test cells, and the change of its recall."""
    for stage, table in after.items():
        named = Counter(table["predicted"])
        right = Counter(table.loc[table["truth"] == table["predicted"], "truth"])
        pairs = {} if compared is None or stage not in compared.stages else compared.stages[stage].types
        for name, n in sorted(Counter(table["truth"]).items()):
            low, high = share_interval(right[name], n, confidence)
            yield {
                "stage": stage,
                "cell_type": name,
                "n": n,
                "recall": right[name] / n,
                "low": low,
                "high": high,
                "precision": right[name] / named[name] if named[name] else None,
                "change": pairs[name].to_json() if name in pairs else None,
            }


def answers_by_type(
    before: Mapping[str, pd.DataFrame], after: Mapping[str, pd.DataFrame]
) -> Iterator[dict[str, Any]]:
    """Yield how many test cells of a type each version calls what, by stage."""
    for side, tables in (("before", before), ("after", after)):
        for stage, table in tables.items():
            for (truth, predicted), rows in table.groupby(["truth", "predicted"], sort=True):
                yield {
                    "side": side,
                    "stage": stage,
                    "truth": truth,
                    "predicted": predicted,
                    "n": len(rows),
                }


def changed_answers(
    before: Mapping[str, pd.DataFrame], after: Mapping[str, pd.DataFrame]
) -> Iterator[dict[str, Any]]:
    """Yield test cells that the versions call differently: what they are, by both answers, with examples."""
    for stage, table in after.items():
        if stage not in before:
            continue
        both = before[stage].merge(table, on="cell_id", suffixes=("_before", "_after"))
        both = both[both["predicted_before"] != both["predicted_after"]]
        columns = ["truth_after", "predicted_before", "predicted_after"]
        for (truth, was, now), rows in both.groupby(columns, sort=True):
            yield {
                "stage": stage,
                "truth": truth,
                "before": was,
                "after": now,
                "n": len(rows),
                "examples": sorted(rows["cell_id"])[:_EXAMPLES],
            }


def novelty_counts(after: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return how many test cells of each stage have which novelty, in fiftieths."""
    counted = []
    for stage, table in after.items():
        if "novelty" not in table:
            continue
        numbers = np.histogram(table["novelty"].astype(float), bins=50, range=(0.0, 1.0))[0]
        counted += [
            {"stage": stage, "novelty": place / 50, "to": (place + 1) / 50, "n": int(n)}
            for place, n in enumerate(numbers)
            if n
        ]
    return counted
