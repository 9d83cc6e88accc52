"""Which attempts nothing else beats, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from canal.config.tuning import Tuning
from canal.tuning.objective import Score


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
    published : bool
        Whether it tried the published lambda and L.
    """

    number: int
    score: Score
    value: float
    bank_size: int
    published: bool = False


@dataclass(frozen=True)
class Choice:
    """The trial that is taken.

    Attributes
    ----------
    number : int
    below : bool
        None kept as much of the past as was wanted.
    passed_over : int or None
        The trial that looked better than the published point, which was taken, but not clearly so.
    """

    number: int
    below: bool
    passed_over: int | None = None


_RULES: dict[str, Callable[[Candidate], float]] = {
    "harmonic_mean": lambda one: one.value,
    "accuracy": lambda one: one.score.accuracy,
    "retention": lambda one: one.score.retention,
}


def choose(candidates: Sequence[Candidate], tuning: Tuning, n_effective: float) -> Choice:
    """Return the best trial by ``tuning.rule`` among those that keep ``tuning.min_retention`` of the past.

    Where none does it is the trial that keeps most. Ties go to the smaller L, then to the earlier trial. The
    best gives way to the published point where that keeps enough, too, and is worse by less than
    ``tuning.least_gain`` standard errors of its accuracy (after the one-standard-error rule of Breiman et al.
    1984): on few cells the best of several trials looks better than it is. ``candidates`` must not be empty.

    Parameters
    ----------
    n_effective
        Of how many cells an accuracy is as uncertain as these are (`canal.tuning.objective.effective_cells`).
    """
    enough = [one for one in candidates if one.score.retention >= tuning.min_retention]
    rule = _RULES[tuning.rule if enough else "retention"]
    best = max(enough or candidates, key=lambda one: (rule(one), -one.bank_size, -one.number))
    usual = next((one for one in enough if one.published), best)
    margin = tuning.least_gain * _error(usual.score, tuning.rule, n_effective)
    if usual is not best and rule(best) - rule(usual) < margin:
        return Choice(usual.number, below=False, passed_over=best.number)
    return Choice(best.number, below=not enough)


def _error(score: Score, rule: str, n: float) -> float:
    """Return the standard error of what a rule looks at, by that of its accuracy alone."""
    error = math.sqrt(score.accuracy * (1 - score.accuracy) / n) if n and rule != "retention" else 0.0
    total = score.accuracy + score.retention
    # By how much the harmonic mean changes with accuracy.
    return error * 2 * (score.retention / total) ** 2 if rule == "harmonic_mean" and total else error


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
