"""Studies made small, and a plausible one that is done; no torch is needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.config.params import Tuning
from canal.config.sections import Continual
from canal.core.errors import TrainingError
from canal.tuning.attempts import Attempt, Changes, Report, Score, Space
from canal.tuning.document import FORMAT
from canal.tuning.study import Plan, Study, Watch

QUIET = Watch(lambda settings, epoch: None, lambda: None)


def make_tuning(**changes: Any) -> Tuning:
    """Return a study of six trials of three epochs."""
    asked = {"n_trials": 6, "epochs": 3, "bank_sizes": (10, 20, 40), "startup_trials": 2, "warmup_epochs": 1}
    return Tuning(**asked | changes)


def make_plan(folder: Path, digest: str = "1" * 64, **changes: Any) -> Plan:
    """Return a plan whose journal lies in ``folder``."""
    tuning = make_tuning(**changes)
    space = Space.of(tuning, Continual(), capacity=40, n_old_cells=100, n_old_types=2)
    return Plan("second", digest, space, tuning, folder / "tuning", folder)


def make_score(changes: Changes, epoch: int) -> Score:
    """Return what a stage would do: more lambda keeps more and learns less, more bank keeps more."""
    strength = math.log10(changes["distillation"] + 0.01) + 2
    kept = 0.5 + 0.1 * strength + changes["bank_size"] / 200
    return Score(accuracy=0.9 - 0.08 * strength - 0.3 / epoch, retention=min(1.0, kept))


@dataclass
class FakeLearner:
    """Scores settings by a formula; ``before`` is called with the settings and each epoch first."""

    price: float = 0.01
    epochs: int = 3
    pause: float = 0.0
    before: Callable[[Changes, int], None] = lambda changes, epoch: None
    learned: list[Changes] = field(default_factory=list)

    def learn(self, changes: Changes, report: Report) -> Attempt:
        """Tell each epoch and return the last one."""
        self.learned.append(changes)
        for epoch in range(1, self.epochs + 1):
            self.before(changes, epoch)
            time.sleep(self.pause)
            score = make_score(changes, epoch)
            report(epoch, score, self._value(changes, score))
        return Attempt(score, self._value(changes, score), self.epochs, int(changes["bank_size"]))

    def identity(self, changes: Changes) -> str:
        """Return the settings themselves."""
        return repr(sorted(changes.items()))

    def _value(self, changes: Changes, score: Score) -> float:
        return score.value(self.price * changes["bank_size"] / 40)


def fails_on(condition: Callable[[Changes], bool]) -> Callable[[Changes, int], None]:
    """Return a hook under which settings that meet a condition diverge in their second epoch."""

    def before(changes: Changes, epoch: int) -> None:
        if epoch == 2 and condition(changes):
            raise TrainingError("the loss became nan in epoch 2: lower the learning rate")

    return before


def run(plan: Plan, learner: FakeLearner | None = None, **options: Any) -> Study:
    """Run a study to its end and return it."""
    study = Study.open(plan)
    study.work(learner or FakeLearner(), QUIET, **options)
    return study


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
