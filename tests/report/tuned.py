"""A plausible study: ``from tests.report.tuned import make_tuned``."""

from typing import Any

from canal.tuning.document import FORMAT

# Lambda, L, state, balanced accuracy, retention, last epoch.
TRIALS = [
    (0.1, 200, "complete", 0.61, 0.95, 4),
    (0.0, 50, "complete", 0.66, 0.84, 4),
    (0.342, 100, "complete", 0.63, 0.93, 4),
    (7.91, 25, "pruned", 0.41, 0.97, 2),
    (1.2, 50, "complete", 0.58, 0.97, 4),
    (0.0152, 25, "failed", None, None, 1),
    (0.871, 100, "complete", 0.64, 0.96, 4),
    (0.0261, 100, "pruned", 0.52, 0.88, 3),
]


RULE = {"name": "harmonic_mean", "min_retention": 0.9, "below": False, "least_gain": 0.0, "passed_over": None}


def make_tuned(stage: str = "tumour-lymphoid", **changes: Any) -> dict[str, Any]:
    """Return tuned.json of a study of eight trials: the first is published, the seventh was chosen."""
    trials = [_trial(number, *row) for number, row in enumerate(TRIALS)]
    chosen = trials[6]
    return {
        "format": FORMAT,
        "stage": stage,
        "study": "5" * 64,
        "choice": dict(chosen["settings"]),
        "chosen": 6,
        "objectives": {name: chosen[name] for name in ("accuracy", "retention", "harmonic_mean", "value")},
        "rule": RULE,
        "trials": trials,
        "states": {"complete": 5, "pruned": 2, "failed": 1},
        "tuning": {
            "n_trials": 8, "epochs": 4, "distillation": {"low": 0.01, "high": 10.0, "with_zero": True},
        },
        "front": [1, 6, 4],
        "importances": {"distillation": 0.72, "bank_size": 0.28},
        "reproducible": True,
        "because": [],
        "n_validation": 166,
        "n_effective": 63.7,
        "n_probe": {"pbmc": 142},
        "n_bank": 184,
        "bank_capacity": 200,
        **changes,
    }  # fmt: skip


def _trial(
    number: int, strength: float, size: int, state: str, accuracy: float | None, kept: float | None, last: int
) -> dict[str, Any]:
    done = accuracy is not None and kept is not None
    mean = 2 * accuracy * kept / (accuracy + kept) if done else None
    value = mean - 0.01 * size / 200 if done else 0.3
    return {
        "number": number,
        "published": number == 0,
        "state": state,
        "settings": {"bank_size": size, "distillation": strength},
        "accuracy": accuracy,
        "retention": kept,
        "harmonic_mean": mean,
        "value": value if state == "complete" else None,
        "curve": {str(epoch): value * (0.7 + 0.3 * epoch / last) for epoch in range(1, last + 1)},
        "epoch": last if state == "complete" else None,
        "n_replay": size if state == "complete" else None,
        "reason": "the loss became nan in epoch 2: lower the learning rate" if state == "failed" else None,
    }
