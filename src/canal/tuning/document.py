"""``tuned/<stage>.json``: what was chosen, from which trials; the same study gives the same bytes.

Of the trials those are found which nothing else beats, and the one that is taken. Reading it needs no Optuna.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.config.params import Config, Tuning
from canal.config.sections import Continual
from canal.core.errors import TrainingError
from canal.core.files import read_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from canal.tuning.attempts import Score
    from canal.tuning.study import Study

FORMAT = 1
TUNED_FILE = "tuned.json"
"""Its name in a model folder."""

Document = dict[str, Any]

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
_NOTED = ("accuracy", "retention", "harmonic_mean", "epoch", "n_replay", "reason")


def study_document(study: Study, facts: Document, doubts: Sequence[str] = ()) -> Document:
    """Return what a study found.

    Parameters
    ----------
    study
        A study that has run.
    facts
        What to say beside it; among them ``n_effective`` (see `choose`).
    doubts
        Why the same study might choose otherwise another time, beside what it knows itself.

    Raises
    ------
    TrainingError
        If no trial ran to its end; says why each of them did not.
    """
    tuning = study.plan.tuning
    trials = list(trial_documents(study).values())
    candidates = [_candidate(one) for one in trials if one["state"] == "complete"]
    if not candidates:
        raise TrainingError(_all_failed(study.plan.stage, trials))
    choice = choose(candidates, tuning, facts["n_effective"])
    chosen = trials[choice.number]
    states = Counter(one["state"] for one in trials)
    because = [*doubts, *_not_reproducible(study, len(trials))]
    return {
        "format": FORMAT,
        "stage": study.plan.stage,
        "study": study.plan.digest,
        "choice": {name: chosen["settings"][name] for name in sorted(tuning.varied)},
        "chosen": choice.number,
        "objectives": {name: chosen[name] for name in ("accuracy", "retention", "harmonic_mean", "value")},
        "rule": {
            "name": tuning.rule,
            "min_retention": tuning.min_retention,
            "below": choice.below,
            "least_gain": tuning.least_gain,
            "passed_over": choice.passed_over,
        },
        "trials": trials,
        "states": {name: states[name] for name in _STATES.values()},
        "tuning": tuning.asked(),
        "front": front(candidates),
        "importances": _importances(study),
        "reproducible": not because,
        "because": because,
        **facts,
    }


def trial_documents(study: Study) -> dict[int, Document]:
    """Return a document of each trial that counts, the published one first, by Optuna's number.

    They have numbers of their own, from 0: Optuna counts trials that were given up, too.
    """
    varied = sorted(study.plan.tuning.varied)
    return {one.number: _trial(one, number, varied) for number, one in enumerate(study.kept())}


def trial_times(study: Study) -> dict[int, tuple[int, int]]:
    """Return when each trial that counts began and ended, in milliseconds since 1970, by Optuna's number."""
    found = {}
    for trial in study.kept():
        began = trial.datetime_start or trial.datetime_complete
        ended = trial.datetime_complete or began
        if began is not None and ended is not None:
            found[trial.number] = (round(began.timestamp() * 1000), round(ended.timestamp() * 1000))
    return found


def read_tuned(path: Path) -> Document:
    """Read what `study_document` wrote.

    Raises
    ------
    TrainingError
        If it is not there, or of a format that this canal does not know.
    """
    if not path.is_file():
        raise TrainingError(f"{path} not found: this stage is tuned first; run `dvc repro`")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise TrainingError(f"{path}: this canal reads format {FORMAT}, found {found!r}")
    return document


def settings_of(config: Config, stage: str, tuned: Path) -> Continual:
    """Return what a stage is learned with: params.yaml, and what the study chose where the stage is tuned.

    ``tuned`` is the study's document: ``tuned/<stage>.json``, or its copy in a model folder.
    """
    settings = config.learning(stage)
    if config.study(stage) is None:
        return settings
    return settings.model_copy(update=read_tuned(tuned)["choice"])


def _trial(trial: FrozenTrial, number: int, varied: list[str]) -> Document:
    attrs = trial.user_attrs
    return {
        "number": number,
        "published": attrs.get("published", False),
        "state": _STATES[trial.state.name],
        "settings": {name: attrs[name] for name in varied},
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "curve": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
        **{name: attrs.get(name) for name in _NOTED},
    }


def _candidate(trial: Document) -> Candidate:
    from canal.tuning.attempts import Score

    score = Score(trial["accuracy"], trial["retention"])
    bank_size, published = trial["settings"]["bank_size"], trial["published"]
    return Candidate(trial["number"], score, trial["value"], bank_size, published)


def _not_reproducible(study: Study, n_trials: int) -> list[str]:
    """Return why the same study might choose otherwise another time; nothing where it would not."""
    because = []
    if n_trials < study.plan.tuning.n_trials:
        because.append(f"max_minutes ended it after {n_trials} of {study.plan.tuning.n_trials} trials")
    if any(one.user_attrs.get("shared") for one in study.kept()):
        because.append("several processes shared it, so the order of its trials was left to chance")
    return because


def _importances(study: Study) -> dict[str, float]:
    """Return how much of the value's variance each parameter explains (fANOVA); too few trials: nothing."""
    import optuna

    done = [one for one in study.kept() if one.state is optuna.trial.TrialState.COMPLETE]
    if len({one.value for one in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study.optuna, evaluator=evaluator))


def _all_failed(stage: str, trials: list[Document]) -> str:
    lines = [
        f"trial {one['number']} ({', '.join(f'{k} {v}' for k, v in one['settings'].items())}): "
        f"{one['reason'] or one['state']}"
        for one in trials
    ]
    return f"no trial of stage {stage!r} ran to its end ({len(trials)} tried):\n  " + "\n  ".join(lines)


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
        Of how many cells an accuracy is as uncertain as these are (`canal.tuning.attempts.effective_cells`).
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
    for one in sorted(
        candidates, key=lambda one: (-one.score.accuracy, -one.score.retention, one.bank_size, one.number)
    ):
        if one.score.retention > kept:
            found.append(one.number)
            kept = one.score.retention
    return found
