"""Plausible documents of a run of three stages: what training, evaluation, gate and registry write."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from canal.report.documents import StageReport

STAGES = ("pbmc", "tumour-lymphoid", "tumour-myeloid")
TEST_CELLS = {
    "pbmc": {"DC": 48, "CD14 Mono": 26, "B": 19, "CD8 T": 19, "Treg": 14, "NK": 6, "CD4 T": 5, "HSPC": 3},
    "tumour-lymphoid": {"CD8 T": 65, "CD4 T": 53, "B": 15, "Treg": 14, "NK": 7, "plasma": 6, "gdT": 2},
    "tumour-myeloid": {"MDC": 29, "DC": 4, "pDC": 2, "mast": 2},
}
MATRIX = [[0.929], [0.893, 0.815], [0.871, 0.79, 0.946]]


def labels_after(number: int) -> list[str]:
    """Return the append-only label list of the model that learned the first ``number`` stages."""
    return list(dict.fromkeys(name for stage in STAGES[:number] for name in TEST_CELLS[stage]))


def make_evaluation(number: int, seed: int = 0) -> dict[str, Any]:
    """Return evaluation.json of the model after ``number`` stages (1 to 3)."""
    rng = np.random.default_rng([seed, number])
    stages, row = list(STAGES[:number]), MATRIX[number - 1]
    forgetting = [MATRIX[stage][stage] - row[stage] for stage in range(number - 1)]
    accuracies = dict(zip(stages, row, strict=True))
    return {
        "format": 1,
        "stage": stages[-1],
        "stages": stages,
        "labels": labels_after(number),
        "row": accuracies,
        "matrix": [list(line) for line in MATRIX[:number]],
        "average_accuracy": float(np.mean(row)),
        "backward_transfer": -float(np.mean(forgetting)) if forgetting else None,
        "forgetting": float(np.mean(forgetting)) if forgetting else None,
        "per_stage": {stage: make_entry(stage, number, rng) for stage in stages},
        "probe": {stage: {"n": 140, "accuracy": accuracies[stage] - 0.01} for stage in stages},
        "calibration": make_calibration(rng),
        "novelty": make_novelty(number),
        "not_measured": {},
    }


def make_entry(stage: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return one value of ``per_stage``: the errors lie mostly between the T cells."""
    labels, row = labels_after(number), MATRIX[number - 1]
    accuracy = row[STAGES.index(stage)]
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    for name, n in TEST_CELLS[stage].items():
        wrong = np.array([4.0 if "T" in other and "T" in name else 0.3 for other in labels])
        wrong[labels.index(name)] = 0
        right = np.clip(accuracy + rng.normal(0, 0.07), 0, 1)
        chances = (1 - right) * wrong / wrong.sum()
        chances[labels.index(name)] = right
        counts[labels.index(name)] = rng.multinomial(n, chances / chances.sum())
    recall = {
        name: {"n": n, "recall": float(counts[labels.index(name), labels.index(name)] / n)}
        for name, n in TEST_CELLS[stage].items()
    }
    mean = float(np.mean([one["recall"] for one in recall.values()]))
    return {
        "n": sum(TEST_CELLS[stage].values()),
        "accuracy": accuracy,
        "balanced_accuracy": mean,
        "macro_f1": mean - 0.02,
        "ari": accuracy - 0.1,
        "unassigned": 0.031,
        "recall": recall,
        "confusion": {"labels": labels, "counts": counts.tolist()},
    }


def make_calibration(rng: np.random.Generator) -> dict[str, Any]:
    """Return a calibration of ten bins, somewhat overconfident."""
    centres = np.linspace(0.05, 0.95, 10)
    counts = [0, 1, 3, 6, 9, 14, 17, 22, 38, 66]
    bins = [
        {"confidence": float(c), "accuracy": float(np.clip(c - 0.06 + rng.normal(0, 0.04), 0, 1)), "n": n}
        for c, n in zip(centres, counts, strict=True)
    ]
    before = {"ece": 0.142, "low": 0.11, "high": 0.17}
    after = {"n": sum(counts), "ece": 0.061, "low": 0.043, "high": 0.092, "bins": bins}
    return {**after, "temperature": 0.57, "uncalibrated": before}


def make_novelty(number: int) -> dict[str, Any]:
    """Return the shadow heads' results of the types known so far."""
    types = {"CD14 Mono": (0.90, 0.83, 0.93), "plasma": (0.81, 0.67, 0.86), "MDC": (0.86, 0.72, 0.9)}
    known = {name: value for name, value in types.items() if name in labels_after(number)}
    holdouts = [
        {"type": name, "n_known": 300, "n_unknown": 26, "known_accuracy": known_accuracy,
         "unknown_accuracy": unknown_accuracy, "auroc": auroc,
         "h_score": 2 * known_accuracy * unknown_accuracy / (known_accuracy + unknown_accuracy)}
        for name, (known_accuracy, unknown_accuracy, auroc) in known.items()
    ]  # fmt: skip
    return {
        "threshold": 0.412,
        "false_unassigned": {"B": {"n": 40, "unassigned": 0.05}, "CD4 T": {"n": 61, "unassigned": 0.0}},
        "holdouts": holdouts,
        "h_score": float(np.mean([one["h_score"] for one in holdouts])),
        "auroc": float(np.mean([one["auroc"] for one in holdouts])),
        "not_measured": {name: "not learned yet" for name in types if name not in known},
    }


def make_history(number: int, n_epochs: int = 31) -> dict[str, Any]:
    """Return history.json of a stage: falling losses, the last ten epochs without a gain."""
    rng = np.random.default_rng(number)
    epochs = []
    for epoch in range(1, n_epochs + 1):
        fall = float(np.exp(-epoch / 6))
        cross_entropy = 0.72 + 1.3 * fall + rng.normal(0, 0.015)
        distillation = 0.0 if number == 1 else 0.04 + 0.5 * (1 - fall) + rng.normal(0, 0.01)
        probe = {
            stage: MATRIX[number - 1][0] - 0.06 * fall + rng.normal(0, 0.006)
            for stage in STAGES[: number - 1]
        }
        accuracy = MATRIX[number - 1][number - 1] - 0.5 * fall + rng.normal(0, 0.008)
        epochs.append(
            {"epoch": epoch, "learning_rate": 2e-4, "loss": cross_entropy + 0.1 * distillation,
             "cross_entropy": cross_entropy, "distillation": distillation, "validation_accuracy": accuracy,
             "probe_accuracy": probe, "score": accuracy}
        )  # fmt: skip
    return {"format": 1, "stage": STAGES[number - 1], "epochs": epochs, "best_epoch": n_epochs - 10,
            "stopped": "patience", "n_train": 420, "n_replay": 0 if number == 1 else 100, "n_validation": 140,
            "bank_size": 100, "distillation": 0.1}  # fmt: skip


def make_backbone_history() -> dict[str, Any]:
    """Return history.json of the backbone."""
    epochs = [
        {
            "epoch": epoch,
            "loss": 1.1 + 0.6 * float(np.exp(-epoch / 3)),
            "held_out_loss": 1.18 + 0.55 * float(np.exp(-epoch / 3)) + 0.004 * epoch,
        }
        for epoch in range(1, 16)
    ]
    return {"format": 1, "epochs": epochs, "best_epoch": 12}


def make_verdict(number: int) -> dict[str, Any]:
    """Return verdict.json of a stage that passed with two warnings."""
    rule = {"severity": "error", "passed": True, "examples": [], "hint": ""}
    names = ("has_cells", "labels_present", "labels_in_map", "finite_values", "values_as_declared",
             "cell_ids_unique", "genes_unique", "not_tested_on_before", "cells_per_type")  # fmt: skip
    rules = [{**rule, "rule": name, "expected": "none broken", "found": "0 of 700 cells"} for name in names]
    drift = {
        "rule": "drift",
        "severity": "warning",
        "passed": False,
        "expected": "an index up to 0.25 per gene",
        "found": "38 of 300 genes drift",
        "examples": ["S100A8 1.31", "LYZ 0.94", "CD74 0.61"],
        "hint": "Another chemistry or tissue does this; look at the recall of old types.",
    }
    coverage = {
        "rule": "panel_coverage",
        "severity": "warning",
        "passed": False,
        "expected": "at least 0.80 of 300 panel genes",
        "found": "0.67 (201 genes)",
        "examples": [],
        "hint": "Absent genes count as zero.",
    }
    rules += [drift, coverage] if number > 1 else []
    return {
        "format": 1,
        "stage": STAGES[number - 1],
        "source": STAGES[number - 1],
        "passed": True,
        "rules": rules,
    }


def make_cells(number: int) -> dict[str, dict[str, int]]:
    """Return cells by type and set: 60/20/20, roughly."""
    cells = TEST_CELLS[STAGES[number - 1]]
    return {name: {"train": 3 * n, "validation": n, "test": n} for name, n in cells.items()}


def make_bank(number: int) -> dict[str, dict[str, int]]:
    """Return the bank by type and stage."""
    bank: dict[str, dict[str, int]] = {}
    for stage in STAGES[:number]:
        for name, n in TEST_CELLS[stage].items():
            bank.setdefault(name, {})[stage] = min(3 * n, 200 // len(labels_after(number)))
    return bank


def make_reports(**changes: Any) -> list[StageReport]:
    """Return the reports of all three stages; ``changes`` touch the newest."""
    aliases = {1: (), 2: ("previous",), 3: ("candidate", "champion")}
    reports = [
        StageReport(
            name=STAGES[number - 1],
            evaluation=make_evaluation(number),
            history=make_history(number),
            verdict=make_verdict(number),
            key={"format": 1, "parent": make_digest(number - 1), "branch": 1},
            key_digest=make_digest(number),
            cells=make_cells(number),
            bank=make_bank(number),
            scores=tuple(np.random.default_rng(number).beta(2, 6, 140 * number)),
            version=number,
            aliases=aliases[number],
        )
        for number in (1, 2, 3)
    ]
    return [*reports[:2], replace(reports[2], **changes)]


def make_digest(number: int) -> str:
    """Return the digest of a stage's key; 0 is the backbone's."""
    return hashlib.sha256(str(number).encode()).hexdigest()
