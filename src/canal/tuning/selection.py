"""Which attempts nothing else beats, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from canal.tuning.objective import Score
from canal.tuning_config import Tuning


@dataclass(frozen=True)
class Candidate:
    """A trial that ran to its end.

    Attributes
    ----------
    number : int
    score : Score
    value : float
        What Optuna maximised.
    bank_size : int
        L: of two trials as good as each other the smaller one is taken.
    """

    number: int
    score: Score
    value: float
    bank_size: int


@dataclass(frozen=True)
class Choice:
    """The trial that is taken; ``below`` says that none kept as much of the past as was wanted."""

    number: int
    below: bool


_RULES: dict[str, Callable[[Candidate], float]] = {
    "harmonic_mean": lambda one: one.value,
    "accuracy": lambda one: one.score.accuracy,
    "retention": lambda one: one.score.retention,
}


def choose(candidates: Sequence[Candidate], tuning: Tuning) -> Choice:
    """Return the best trial by ``tuning.rule`` among those that keep ``tuning.min_retention`` of the past.

    Where none does it is the trial that keeps most. Ties go to the smaller L, then to the earlier trial.
    ``candidates`` must not be empty.
    """
    enough = [one for one in candidates if one.score.retention >= tuning.min_retention]
    rule = _RULES[tuning.rule if enough else "retention"]
    best = max(enough or candidates, key=lambda one: (rule(one), -one.bank_size, -one.number))
    return Choice(best.number, below=not enough)


def front(candidates: Sequence[Candidate]) -> list[int]:
    """Return the numbers of the trials that no other one beats in both aims, by falling accuracy.

    Of trials with the same two numbers the one with the smallest L stands for all.
    """
    found: list[int] = []
    kept = -1.0
    for one in sorted(candidates, key=_from_accurate_to_faithful):
        if one.score.retention > kept:
            found.append(one.number)
            kept = one.score.retention
    return found


def _from_accurate_to_faithful(one: Candidate) -> tuple[Any, ...]:
    return -one.score.accuracy, -one.score.retention, one.bank_size, one.number
