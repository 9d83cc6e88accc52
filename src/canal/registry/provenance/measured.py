"""What is on record of the cells that a version was measured on, stage by stage, for the drift watch."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from canal.annotation import drift
from canal.annotation.drift import Stage
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest
from canal.core.errors import CanalError, GateError
from canal.core.files import read_json
from canal.quality.verdict import Profile
from canal.registry.manifest.version_folder import EVALUATION, KEY_FILE, read_key
from canal.registry.provenance.registered import ANCESTORS, LABELS, VERDICT, proven
from canal.registry.store.database import Version
from canal.registry.store.store import Store

Document = dict[str, Any]

_PREDICTIONS = "metrics/predictions.csv"


def measured(store: Store, version: Version) -> tuple[list[Stage], Document]:
    """Return what is on record of each stage's cells, and why a measure has no range, by measure.

    Test cells are those of types that the version knows. Predictions of an imported version may have been
    withheld: then its evaluation gives the Unassigned shares alone.
    """
    why: Document = {}
    try:
        tests = _of_predictions(proven(store, version).file(_PREDICTIONS), _labels(store, version))
    except (CanalError, OSError, ValueError, KeyError) as error:
        tests = _of_evaluation(store, version)
        reason = (
            "it was erased" if version.erased else f"its predictions for test cells are not here ({error})"
        )
        why = dict.fromkeys((drift.NOVELTY, drift.CONFIDENCE, drift.TYPES), reason)
        if not tests:
            why[drift.UNASSIGNED_SHARE] = reason
    profiles = dict(_profiles(store, version))
    stages = [
        Stage(
            name,
            **tests.get(name, {}),
            genes=profiles[name][0] if name in profiles else None,
            depth=profiles[name][1] if name in profiles else None,
        )
        for name in dict.fromkeys([*tests, *profiles])
    ]
    if len([one for one in stages if one.types]) == 1:
        why.setdefault(drift.TYPES, "one stage with test cells shows no range of compositions")
    if not any(one.histograms and drift.NOVELTY in one.histograms for one in stages):
        why.setdefault(drift.NOVELTY, "it scores no novelty, or has no test cells")
    if not profiles:
        why |= dict.fromkeys((drift.GENES, drift.DEPTH), "no profile of its stages by the gate is here")
    return stages, why


def _labels(store: Store, version: Version) -> set[str]:
    return set(read_json(store.artifacts(version) / LABELS))


def _of_predictions(path: Path, labels: set[str]) -> dict[str, Document]:
    """Return counts of the test cells by stage, from predictions.csv, which is read in one pass."""
    held: dict[str, list[tuple[float, float, bool, str]]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["truth"] in labels:
                one = (
                    float(row["confidence"]),
                    float(row["novelty"]),
                    row["is_novel"] == "True",
                    row["predicted"],
                )
                held.setdefault(row["stage"], []).append(one)
    found = {}
    for stage, rows in held.items():
        confidence, novelty, novel, predicted = zip(*rows, strict=True)
        names, counts = np.unique(
            np.array([name for name, out in zip(predicted, novel, strict=True) if not out], dtype=str),
            return_counts=True,
        )
        histograms = {drift.CONFIDENCE: drift.histogram(np.array(confidence))}
        if any(novelty):
            histograms[drift.NOVELTY] = drift.histogram(np.array(novelty))
        found[stage] = {
            "n": len(rows),
            "unassigned": sum(novel),
            "types": dict(zip(names.tolist(), counts.tolist(), strict=True)),
            "histograms": histograms,
        }
    return found


def _of_evaluation(store: Store, version: Version) -> dict[str, Document]:
    """Return test cells and Unassigned ones by stage, from evaluation.json; nothing where it is gone."""
    try:
        stages = read_json(store.artifacts(version) / EVALUATION)["per_stage"].items()
        return {
            name: {"n": one["n"], "unassigned": round(one["unassigned"] * one["n"])}
            for name, one in stages
            if "unassigned" in one
        }
    except (CanalError, OSError, ValueError, KeyError, TypeError):
        return {}


def _profiles(store: Store, version: Version) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each stage with the share of its panel that its file had, and its depth, by its own verdict."""
    known = {one.key: one for one in store.versions() if one.ready}
    try:
        start = store.artifacts(version)
    except CanalError:
        return
    lines: list[str | None] = [version.key]
    seen: set[str] = set()
    while lines:
        digest = lines.pop(0)
        if digest is None or digest in seen:
            continue
        seen.add(digest)
        try:
            folder = store.artifacts(known[digest]) if digest in known else start / ANCESTORS / digest
            key = read_key(folder)
            if file_digest(folder / KEY_FILE) != digest or key["stage"] == BACKBONE:
                continue
            lines += [key["parent"], (key.get("merged") or {}).get("other")]
            if file_digest(folder / VERDICT) != key["verdict"]:
                continue
            profile = Profile.from_json(read_json(folder / VERDICT)["profile"])
        except (CanalError, GateError, OSError, ValueError, KeyError, TypeError):
            continue
        present = float((profile.counts.sum(axis=1) > 0).mean()) if profile.tokens else 0.0
        if present and profile.depth:
            yield str(key["stage"]), (present, profile.depth)


def stage_view(one: Stage) -> Document:
    """Return what was measured of a stage as a JSON document."""
    curves = {name: np.array([counts]) for name, counts in one.histograms.items()}
    medians = {name: rounded(float(drift.quantile(curve, 0.5)[0])) for name, curve in curves.items()}
    return {
        "stage": one.name,
        "test_cells": one.n,
        "unassigned": one.unassigned,
        "novelty": medians.get(drift.NOVELTY),
        "confidence": medians.get(drift.CONFIDENCE),
        "cell_types": dict(one.types),
        "genes": rounded(one.genes),
        "depth": rounded(one.depth),
    }


def rounded(value: float | None) -> float | None:
    """Return a value as documents hold it; None for none and for NaN."""
    return None if value is None or math.isnan(value) else round(float(value), 4)
