"""``tuned/<stage>.json``: the trials of a study, and the chosen one; the same study gives the same bytes.

The choice and the Pareto front of the trials are computed here. Reading the document needs no Optuna.
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
_LOST = "every process that tried it ended: does the machine's memory suffice?"
_RECORDED = ("accuracy", "retention", "harmonic_mean", "epoch", "n_replay", "reason")


def study_document(study: Study, facts: Document, doubts: Sequence[str] = ()) -> Document:
    """Return the document of a study.

    Parameters
    ----------
    study
        A study that has run.
    facts
        Further entries, ``n_effective`` (see `choose`) among them.
    doubts
        Reasons why the same study might choose otherwise another time, beside those of the study itself.

    Raises
    ------
    TrainingError
        If no trial was completed; the message has the reason for each of them.
    """
    tuning = study.plan.tuning
    trials = list(trial_documents(study).values())
    candidates = [Candidate.of(one) for one in trials if one["state"] == "complete"]
    if not candidates:
        lines = [
            f"trial {one['number']} ({', '.join(f'{k} {v}' for k, v in one['settings'].items())}): "
            f"{one['reason'] or one['state']}"
            for one in trials
        ]
        raise TrainingError(
            f"no trial of stage {study.plan.stage!r} ran to its end ({len(trials)} tried):\n  "
            + "\n  ".join(lines)
        )
    choice = choose(candidates, tuning, facts["n_effective"])
    chosen = trials[choice.number]
    states = Counter(one["state"] for one in trials)
    because = [*doubts, *irreproducibility(study, len(trials))]
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
        "importances": importances(study),
        "reproducible": not because,
        "because": because,
        **facts,
    }


def trial_documents(study: Study) -> dict[int, Document]:
    """Return a document of each trial that counts, the published one first, by Optuna's number.

    They have numbers of their own, from 0: Optuna counts trials that were given up, too.
    """
    varied = sorted(study.plan.tuning.varied)
    return {one.number: trial_document(one, number, varied) for number, one in enumerate(study.kept())}


def trial_times(study: Study) -> dict[int, tuple[int, int]]:
    """Return when each trial that counts began and ended, in milliseconds since 1970, by Optuna's number."""
    times = {}
    for trial in study.kept():
        began = trial.datetime_start or trial.datetime_complete
        ended = trial.datetime_complete or began
        if began is not None and ended is not None:
            times[trial.number] = (round(began.timestamp() * 1000), round(ended.timestamp() * 1000))
    return times


def read_tuned(path: Path) -> Document:
    """Read what `study_document` wrote.

    Raises
    ------
    TrainingError
        If the file is missing, of a format that this canal does not know, or from before the stage was to be
        tuned.
    """
    if not path.is_file():
        raise TrainingError(f"{path} not found: this stage is tuned first; run `dvc repro`")
    document = read_json(path)
    if document == no_study(path.stem):
        raise TrainingError(f"{path} is from before this stage was to be tuned: run `dvc repro`")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise TrainingError(f"{path}: this canal reads format {FORMAT}, found {found!r}")
    return document


def no_study(stage: str) -> Document:
    """Return the document of a stage whose lambda and L params.yaml sets: every stage has one, for DVC."""
    return {"format": FORMAT, "stage": stage, "tuned": False}


def settings_of(config: Config, stage: str, tuned: Path) -> Continual:
    """Return the settings of a stage's training: those of params.yaml, and the choice of its study, if any.

    ``tuned`` is the study's document: ``tuned/<stage>.json``, or its copy in a model folder.
    """
    settings = config.learning(stage)
    if config.study(stage) is None:
        return settings
    return settings.model_copy(update=read_tuned(tuned)["choice"])


def trial_document(trial: FrozenTrial, number: int, varied: list[str]) -> Document:
    """Return the document of one trial; ``varied`` are the settings that the study varies."""
    attrs = trial.user_attrs
    return {
        "number": number,
        "published": attrs.get("published", False),
        "state": _STATES[trial.state.name],
        "settings": {name: attrs[name] for name in varied},
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "curve": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
        **{name: attrs.get(name) for name in _RECORDED},
        "reason": attrs.get("reason") or (_LOST if trial.state.name == "FAIL" else None),
    }


def irreproducibility(study: Study, n_trials: int) -> list[str]:
    """Return the reasons why the same study might choose otherwise another time; empty without any."""
    because = []
    if n_trials < study.plan.tuning.n_trials:
        because.append(f"max_minutes ended it after {n_trials} of {study.plan.tuning.n_trials} trials")
    if any(one.user_attrs.get("shared") for one in study.kept()):
        because.append("several processes shared it, so the order of its trials was left to chance")
    return because


def importances(study: Study) -> dict[str, float]:
    """Return the share of the value's variance by parameter (fANOVA); empty with too few trials."""
    import optuna

    done = [one for one in study.kept() if one.state is optuna.trial.TrialState.COMPLETE]
    if len({one.value for one in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study.optuna, evaluator=evaluator))


@dataclass(frozen=True)
class Candidate:
    """A completed trial.

    Attributes
    ----------
    number : int
    score : Score
    value : float
        What Optuna maximised.
    bank_size : int
        L: of two equally good trials the one with the smaller L is chosen.
    published : bool
        Whether it tried the published lambda and L.
    """

    number: int
    score: Score
    value: float
    bank_size: int
    published: bool = False

    @classmethod
    def of(cls, trial: Document) -> Candidate:
        """Return the candidate for the document of a completed trial."""
        from canal.tuning.attempts import Score

        score = Score(trial["accuracy"], trial["retention"])
        bank_size, published = trial["settings"]["bank_size"], trial["published"]
        return cls(trial["number"], score, trial["value"], bank_size, published)


@dataclass(frozen=True)
class Choice:
    """The trial that is chosen.

    Attributes
    ----------
    number : int
    below : bool
        Whether no trial reached ``tuning.min_retention``.
    passed_over : int or None
        The trial that was better than the published point, but not clearly, so that the latter is chosen.
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
    """Return the best trial by ``tuning.rule`` among those that reach ``tuning.min_retention``.

    Where none reaches that, it is the trial of highest retention. Ties go to the smaller L, then to the
    earlier trial. The published point is chosen instead of the best trial where its retention is high enough,
    too, and it is worse by less than ``tuning.least_gain`` standard errors of its accuracy (after the
    one-standard-error rule of Breiman et al. 1984): on few cells the best of several trials looks better than
    it is. ``candidates`` must not be empty.

    Parameters
    ----------
    n_effective
        The number of cells from `canal.tuning.attempts.effective_cells`.
    """
    enough = [one for one in candidates if one.score.retention >= tuning.min_retention]
    rule = _RULES[tuning.rule if enough else "retention"]
    best = max(enough or candidates, key=lambda one: (rule(one), -one.bank_size, -one.number))
    usual = next((one for one in enough if one.published), best)
    margin = tuning.least_gain * standard_error(usual.score, tuning.rule, n_effective)
    if usual is not best and rule(best) - rule(usual) < margin:
        return Choice(usual.number, below=False, passed_over=best.number)
    return Choice(best.number, below=not enough)


def standard_error(score: Score, rule: str, n: float) -> float:
    """Return the standard error of a rule's value, from that of the accuracy alone, for ``n`` cells."""
    error = math.sqrt(score.accuracy * (1 - score.accuracy) / n) if n and rule != "retention" else 0.0
    total = score.accuracy + score.retention
    # By how much the harmonic mean changes with accuracy.
    return error * 2 * (score.retention / total) ** 2 if rule == "harmonic_mean" and total else error


def front(candidates: Sequence[Candidate]) -> list[int]:
    """Return the numbers of the trials on the Pareto front of both aims, by falling accuracy.

    Of trials with equal scores only the one with the smallest L is returned.
    """
    numbers: list[int] = []
    kept = -1.0
    for one in sorted(
        candidates, key=lambda one: (-one.score.accuracy, -one.score.retention, one.bank_size, one.number)
    ):
        if one.score.retention > kept:
            numbers.append(one.number)
            kept = one.score.retention
    return numbers
