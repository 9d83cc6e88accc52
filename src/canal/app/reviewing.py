"""`canal report V`: what a person needs to know before a version may serve, gathered into one document.

Everything comes from the version's own files, the ledger and the store, so that imported, merged and
unlearned versions have a page, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canal.annotation.markers import model_markers
from canal.app.models import load_annotator
from canal.app.project import Project
from canal.app.scoring import (
    Scored,
    answers_by_type,
    changed_answers,
    gather_evidence,
    novelty_counts,
    parent_of,
    recall_and_precision,
    recorded_predictions,
)
from canal.app.versions import decisions, evaluations, write_page
from canal.continual.cells import StoredCells, load_cells
from canal.core.errors import RegistryError
from canal.core.files import read_json
from canal.core.progress import doing
from canal.io.h5ad import open_h5ad
from canal.memory.stage_sums import StageSums
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION
from canal.registry.manifest.version_folder import method_view, read_key, read_record
from canal.registry.promotion import promotion
from canal.registry.promotion.moves import ledger_of
from canal.registry.promotion.policy import judge
from canal.registry.store.database import Version
from canal.registry.versions.history import current_evaluation
from canal.report.plots import tsne_places
from canal.report.version_page import write_card, write_version_page

if TYPE_CHECKING:
    import pandas as pd

Document = dict[str, Any]
PARENT = "parent"
TRAINING = "training.html"
"""The page about how each stage was trained."""
FORMAT = 1
_MARKERS = 8
"""Genes shown of each type."""
_FEWEST_MAPPED, _MOST_MAPPED = 5, 3000
"""Fewer cells make no map, and more would take longer than all else on the page."""
_ITERATIONS = 500


def write_pages(
    project: Project,
    output: Path,
    wanted: str | None = None,
    against: str | None = None,
) -> tuple[Path, Document]:
    """Write a version's page and model card into a folder, and the page of how the stages here were trained.

    Where no version is registered yet, the last of these is all there is, as ``index.html``.

    Returns
    -------
    tuple
        The page's path, and the document that it shows; empty without a version.

    Raises
    ------
    CanalError
        If there is no such version, or its files are damaged or were erased.
    """
    if wanted is None and not any(one.ready for one in project.store.versions()):
        return write_page(project, output / "index.html"), {}
    document, mapped = review(project, sides(project, wanted, against))
    if evaluations(project):
        write_page(project, output / TRAINING)
        document["training"] = TRAINING
    write_card(document, output / "README.md")
    return write_version_page(document, mapped, output / "index.html"), document


@dataclass(frozen=True)
class Sides:
    """A version, and the one it is compared with.

    Attributes
    ----------
    version : Version
    other : Version or None
    role : str
        What the other one is: ``champion``, ``parent`` or empty for one that was named.
    """

    version: Version
    other: Version | None
    role: str


def sides(project: Project, wanted: str | None = None, against: str | None = None) -> Sides:
    """Return the version that a page is about, and the one that it is compared with.

    Parameters
    ----------
    wanted
        Number or alias; by default the candidate, else the newest version.
    against
        Number, alias, or ``parent``; by default the champion, of the champion itself and where none serves
        the parent.

    Raises
    ------
    RegistryError
        If there is no such version, or both are one.
    """
    store = project.store
    ready = [one for one in store.versions() if one.ready]
    if not ready:
        raise RegistryError("no version is registered yet: `canal run` learns and registers the first")
    newest = next((one for one in ready if CANDIDATE in one.aliases), ready[-1])
    version = newest if wanted is None else store.version(wanted)
    if against is None:
        champion = promotion.holder(store, CHAMPION)
        if champion is not None and champion.number != version.number:
            return Sides(version, champion, CHAMPION)
    if against in (None, PARENT):
        return Sides(version, parent_of(project, version), PARENT)
    other = store.version(str(against))
    if other.number == version.number:
        raise RegistryError(
            f"version {version.number} cannot be compared with itself: name another one with --against"
        )
    return Sides(version, other, CHAMPION if CHAMPION in other.aliases else "")


@doing("judging the version by the policy, and comparing it")
def review(project: Project, pair: Sides) -> tuple[Document, Document | None]:
    """Return the document of a version's page, and the map of its cells (None where no cells are kept).

    Raises
    ------
    CanalError
        If the version's files are damaged, or were erased.
    """
    store, version, config = project.store, pair.version, project.config
    folder = store.artifacts(version)
    key, record = read_key(folder), read_record(folder)
    evidence, scored = gather_evidence(project, version, pair.other)
    evaluation, compared = evidence.evaluation, evidence.comparison
    entries = ledger_of(store).entries()
    before, after = _answered(project, version, scored)
    shown = {
        "format": FORMAT,
        "version": _about(version, key, record),
        "against": None if pair.other is None else _other(project, pair.other, pair.role),
        "decisions": decisions(entries, version),
        "rulings": [ruling.to_json() for ruling in judge(project.config.policy, evidence)],
        "policy": project.config.policy.model_dump(mode="json"),
        "evaluation": evaluation,
        "comparison": None if compared is None else compared.to_json(),
        "types": list(recall_and_precision(after, compared, project.config.policy.confidence)),
        "answers": list(answers_by_type(before, after)),
        "changed": list(changed_answers(before, after)),
        "novelty": novelty_counts(after),
        "gate": evidence.verdict,
        "history": _optional(folder / "history.json"),
        "tuned": _optional(folder / "tuned.json"),
        "method": method_view(folder, key),
        "kept": _kept(folder, evaluation["stages"]),
        "lineage": list(_lineage(project, version)),
        "training": None,
        "sources": [
            {"stage": stage, "source": name, "licence": source.licence, "citation": source.citation}
            for stage in evaluation["stages"]
            if stage in config.stages and (name := config.stages[stage].source) in config.sources
            for source in (config.sources[name],)
        ],
    }
    with doing("laying out the cells that the version keeps to watch forgetting"):
        markers, mapped = _of_models(project, pair, folder)
    return {**shown, "markers": markers}, mapped


def _about(version: Version, key: Mapping[str, Any], record: Mapping[str, Any]) -> Document:
    return {
        "model": version.model,
        "number": version.number,
        "stage": version.stage,
        "aliases": list(version.aliases),
        "retired": version.retired,
        "imported": bool(version.imported),
        "created": datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="minutes"),
        "key": version.key,
        "record": version.record,
        "git_commit": record.get("git_commit"),
        "dirty": bool(record.get("dirty")),
        "unlearned": key.get("unlearned"),
        "merged": key.get("merged"),
        "data": key["data"],
        "choice": key.get("choice"),
    }


def _other(project: Project, other: Version, role: str) -> Document:
    return {
        "number": other.number,
        "stage": other.stage,
        "role": role,
        "aliases": list(other.aliases),
        "erased": other.erased,
        "evaluation": None if other.erased else current_evaluation(project.store, other),
    }


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _answered(
    project: Project, version: Version, scored: Scored | None
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Return both versions' answers by stage, the newest first; the other's only where both were scored."""
    pairs = {} if scored is None else scored.answers
    after = {stage: both[1] for stage, both in pairs.items()} | recorded_predictions(project, version)
    stages = list(after)[::-1]
    before = {stage: pairs[stage][0] for stage in stages if stage in pairs}
    return before, {stage: after[stage] for stage in stages}


def _kept(folder: Path, stages: Sequence[str]) -> Document:
    """Return how many cells bank, probe and sums hold, by stage and type."""
    kept: Document = {}
    for name in ("bank", "probe"):
        path = folder / name / f"{name}.h5ad"
        if path.is_file():
            with open_h5ad(path) as file:
                pairs = Counter(zip(file.obs_column("stage"), file.obs_column("cell_type"), strict=True))
            kept[name] = [
                {"stage": stage, "cell_type": name, "n": n} for (stage, name), n in sorted(pairs.items())
            ]
    sums = StageSums.load(folder, stages)
    if sums is not None:
        kept["sums"] = [
            {"stage": stage, "cell_type": name, "n": int(n)}
            for stage, one in sums.stages.items()
            for name, n in zip(one.types, one.counts, strict=True)
        ]
    return kept


def _lineage(project: Project, version: Version) -> Iterator[Document]:
    """Yield the version and those that it was learned on, newest first, as far as they are here."""
    store = project.store
    known = {one.key: one for name in store.models for one in store.versions(name) if one.ready}
    one: Version | None = version
    while one is not None:
        key = read_key(store.artifacts(one))
        metrics = {} if one.erased else _optional(store.artifacts(one) / "metrics" / "evaluation.json") or {}
        yield {
            "model": one.model,
            "version": one.number,
            "stage": one.stage,
            "key": one.key,
            "data": key.get("data"),
            "average_accuracy": metrics.get("average_accuracy"),
            "row": metrics.get("row"),
        }
        one = known.get(key["parent"]) if key["parent"] else None


# What only the models themselves can tell: their genes, and the cells they keep, in one layout for both.


def _of_models(project: Project, pair: Sides, folder: Path) -> tuple[list[Document], Document | None]:
    """Return the genes of each type, and the cells with both answers and a place, always the same."""
    annotator = load_annotator(project, pair.version)
    markers = [one.to_json() for one in model_markers(annotator, _MARKERS)]
    stored = _stored(folder)
    if stored is None:
        return markers, None
    answer, embedding = annotator.predict_represented(stored.cells.expression)
    columns = {
        "cell_id": stored.cells.cell_ids,
        "stage": stored.cells.stages,
        "truth": stored.cells.cell_types,
        "after": answer.labels,
        "confidence": np.round(answer.confidence.astype(float), 4).tolist(),
        "novelty": np.round(answer.novelty.astype(float), 4).tolist(),
    }
    if pair.other is not None and not pair.other.erased:
        other = load_annotator(project, pair.other)
        if set(other.genes) <= set(stored.genes):
            genes = [stored.genes.index(gene) for gene in other.genes]
            columns["before"] = other.predict(stored.cells.expression[:, genes]).labels
    places = tsne_places(embedding, _ITERATIONS).astype(np.float64)
    columns["x"], columns["y"] = np.round(places, 3).T.tolist()
    rows = zip(*columns.values(), strict=True)
    return markers, {"cells": [dict(zip(columns, row, strict=True)) for row in rows]}


def _stored(folder: Path) -> StoredCells | None:
    """Return the cells that a version keeps to watch forgetting; None where it keeps too few."""
    path = folder / "probe" / "probe.h5ad"
    if not path.is_file():
        return None
    genes = tuple(json.loads((folder / "model" / "genes.json").read_text(encoding="utf-8")))
    stored = load_cells(path, genes, ranked=False)
    return stored if _FEWEST_MAPPED <= len(stored.cells) <= _MOST_MAPPED else None
