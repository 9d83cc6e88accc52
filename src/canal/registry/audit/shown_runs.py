"""Audit of MLflow's runs: their parameters and metrics against the documents of their versions.

A stage may have been learned or measured several times below one run; one of these must agree with it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal.config.sections import BACKBONE
from canal.core.files import read_json
from canal.registry.audit.version_files import AuditLog, examples
from canal.registry.manifest.pages import LONGEST, TRIAL_MEASURES, PageContent, flat, measures, same
from canal.registry.manifest.version_folder import Record
from canal.registry.provenance.registered import RegisteredVersion
from canal.registry.store.shown import ACTIVE, ENTRY_POINT, RUN_NAME, Points, Shown, ShownRun
from canal.registry.store.store import TAG
from canal.registry.store.tracking import epoch_numbers

_CHECK = "mlflow"
_EVALUATION, _HISTORY, _TUNED = "metrics/evaluation.json", "history.json", "tuned.json"
_COMBINATION = "model/combination.json"
_COMMIT = "mlflow.source.git.commit"
_STAGE_KEY = f"{TAG}stage_key"


@dataclass(frozen=True)
class CheckedVersion:
    """A version, its record, and whether it was registered after learning, not rebuilt: then it has runs.

    ``page`` comes from `canal.registry.audit.shown_versions.expected_page`.
    """

    member: RegisteredVersion
    record: Record
    page: PageContent | None
    registered: bool

    @property
    def learned_here(self) -> bool:
        """Whether it was learned here."""
        return self.registered and "imported_from" not in self.record


@dataclass(frozen=True)
class Expected:
    """The expected content of the runs of one step of a version, and the document it comes from.

    Attributes
    ----------
    latest : Mapping
        Last values of metrics.
    points : Mapping or None
        Every value by epoch; None where there are no epochs.
    """

    step: str
    document: str
    params: Mapping[str, tuple[str, ...]]
    latest: Mapping[str, float]
    points: Mapping[tuple[str, int], float] | None = None


def check_runs(shown: Shown, checked: Sequence[CheckedVersion], everything: bool, log: AuditLog) -> None:
    """Check the runs of versions; ``everything``: no run can belong to a version that is not audited."""
    agreeing: set[str] = set()
    for one in checked:
        run = shown.runs.get(str(one.record["run"]))
        if run is None or run.lifecycle != ACTIVE:
            if one.learned_here:
                what = f"MLflow shows no run {one.record['run']}, by which it was learned: it was deleted"
                log.note(one.member.name, _CHECK, what)
            continue
        _check_parent_run(shown, run, one, checked, log)
        below = list(shown.below(run.id))
        for wanted in _expected(one):
            agreeing |= _check_step(shown, below, one, wanted, run.tags.get(_STAGE_KEY, ""), log)
    for one in checked if everything else ():
        steps = {wanted.step for wanted in _expected(one)}
        for run in shown.below(str(one.record["run"])):  # learned again, or changed, where none agrees
            if run.steps & steps and run.id not in agreeing and run.latest:
                which = f"run {run.id} ({', '.join(sorted(run.steps))})"
                what = f"{which} in MLflow shows other figures than any registered version has"
                log.note(one.member.name, _CHECK, what)


def _check_parent_run(
    shown: Shown, run: ShownRun, one: CheckedVersion, checked: Sequence[CheckedVersion], log: AuditLog
) -> None:
    """Check the artifact folder and the tags of the run of a stage."""
    member, parent = one.member, one.record["parent"]
    _check_place(shown, run, member, log)
    numbers = {
        str(other.member.version.number)
        for other in checked
        if not other.member.elsewhere and other.record["run"] == one.record["run"]
    }
    tagged = run.tags.get(f"{TAG}version")
    # A higher number is that of a version that was registered later and is not audited now.
    highest = max(map(int, numbers), default=0)
    later = tagged is not None and tagged.isdecimal() and int(tagged) > highest
    if tagged not in numbers and not later:
        _wrong_tag(member, run, f"{TAG}version", tagged, " or ".join(sorted(numbers)), log)
    newest = not member.elsewhere and tagged == str(member.version.number)
    tags = {f"{TAG}step": "stage", RUN_NAME: run.name}
    if newest:
        tags[f"{TAG}parent_version"] = str(parent["version"]) if parent else "none"
    if "imported_from" not in one.record and (member.is_annotator or member.stage == BACKBONE):
        key = run.tags.get(_STAGE_KEY, "")  # by the request of that day, which params.yaml may have left
        if not re.fullmatch(f"{re.escape(member.stage)}-[0-9a-f]{{16}}", key):
            key = f"{member.stage}-{member.key['request_digest'][:16]}"
        tags |= {f"{TAG}stage": member.stage, _STAGE_KEY: key}
    for name, wanted in tags.items():
        if run.tags.get(name) != wanted:
            _wrong_tag(member, run, name, run.tags.get(name), wanted, log)
    if newest:
        _check_own_figures(shown, run, one, log)


def _check_own_figures(shown: Shown, run: ShownRun, one: CheckedVersion, log: AuditLog) -> None:
    """Compare the metrics of a stage's run with those of its newest version.

    Earlier points are those of an earlier version of the run, or of a killed registration.
    """
    if one.page is None:
        return
    wanted = {measure.name: measure.value for measure in one.page.measures}
    points = shown.history(run.id)
    wrong = [
        f"{name} {run.latest.get(name, 'is gone')}, not {value}"
        for name, value in sorted(wanted.items())
        if not same(run.latest.get(name), value) or not _all_same(points.get(name, ())[-1:], value)
    ]
    if wrong:
        what = f"run {run.id} (stage) in MLflow differs from {_EVALUATION}: {examples(wrong)}"
        log.finding(one.member.name, _CHECK, what)
    earlier = [name for name, value in sorted(wanted.items()) if not _all_same(points.get(name, ()), value)]
    if earlier and not wrong:
        what = f"run {run.id} (stage) shows earlier values of {examples(earlier)}, too"
        log.note(one.member.name, _CHECK, what)
    if strange := sorted(run.latest.keys() - wanted.keys()):
        what = f"run {run.id} (stage) shows {examples(strange)}, which {_EVALUATION} knows not"
        log.note(one.member.name, _CHECK, what)


def _check_place(shown: Shown, run: ShownRun, member: RegisteredVersion, log: AuditLog) -> None:
    wanted = shown.address(f"{run.id}/artifacts")
    for field, actual, expected in (
        ("artifact_uri", run.location, wanted),
        ("experiment_id", run.experiment, shown.experiment),
    ):
        if actual != expected:
            what = f"runs.{field} of run {run.id} in MLflow is {actual!r}, expected {expected!r}"
            log.finding(member.name, _CHECK, what)


def _wrong_tag(
    member: RegisteredVersion, run: ShownRun, name: str, actual: str | None, wanted: str, log: AuditLog
) -> None:
    state = "is gone" if actual is None else f"says {actual[:120]!r}"
    log.finding(member.name, _CHECK, f"the tag {name} of run {run.id} {state}, expected {wanted!r}")


def _expected(one: CheckedVersion) -> Iterator[Expected]:
    """Yield the expected content of each step's runs, from the documents that are intact.

    A version to which sums were added later, which cells left, or which two lineages were merged to, was not
    trained: it has no runs of steps.
    """
    member, key = one.member, one.member.key
    not_trained = key.get("backfilled") or key.get("unlearned") or key.get("merged")
    if (not member.is_annotator and member.stage != BACKBONE) or not_trained:
        return
    history = member.document(_HISTORY)
    if isinstance(history, dict):
        settings = key["request"].get("backbone" if member.stage == BACKBONE else "continual") or {}
        settings = {name: value for name, value in settings.items() if name != "network"}  # is no parameter
        params = dict(flat(settings)) | dict(key.get("choice") or {})
        extra: dict[str, float] = {}
        if member.is_annotator:
            params |= {"seed": key["seed"], "parent": key["request"]["parent"]["stage"]}
            combination = member.document(_COMBINATION)
            if isinstance(combination, dict) and "weight" in combination:
                extra["network_weight"] = float(combination["weight"])
        yield Expected(
            "finetune" if member.is_annotator else "pretrain",
            _HISTORY,
            {name: _param_texts(value) for name, value in params.items()},
            extra,
            points={
                (name, int(epoch["epoch"])): value
                for epoch in history.get("epochs", ())
                for name, value in epoch_numbers(epoch)
                if name != "epoch"
            },
        )
    tuned = member.document(_TUNED)
    if isinstance(tuned, dict):
        chosen = {f"chosen.{name}": _param_texts(value) for name, value in tuned["choice"].items()}
        yield Expected("tune", _TUNED, chosen, _numbers(tuned["objectives"]))
    evaluation = _evaluation(one)
    if evaluation is not None:
        yield Expected("evaluate", _EVALUATION, {}, _numbers(measures(evaluation)))


def _evaluation(one: CheckedVersion) -> Any:
    """Return metrics/evaluation.json where it is the one that record.json names."""
    digest = one.record["files"].get(_EVALUATION)
    if digest is None or one.member.sum(_EVALUATION) != digest:
        return None
    try:
        evaluation = read_json(one.member.folder / _EVALUATION)
        measures(evaluation)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # other checks report its schema
    return evaluation


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def _check_step(
    shown: Shown, below: Sequence[ShownRun], one: CheckedVersion, wanted: Expected, key: str, log: AuditLog
) -> set[str]:
    """Check the runs of one step; return those that agree with the version."""
    runs = [run for run in below if wanted.step in run.steps]
    if not runs:
        if one.learned_here:
            what = f"MLflow shows no run of {wanted.step}: what it showed stands in {wanted.document}"
            log.note(one.member.name, _CHECK, what)
        return set()
    differences = {run.id: _differences(shown, run, wanted) for run in runs}
    agreeing = [run for run in runs if not differences[run.id]]
    if not agreeing:
        run = runs[-1]
        unlike = examples(differences[run.id])
        what = f"run {run.id} ({wanted.step}) in MLflow differs from {wanted.document}: {unlike}"
        log.finding(one.member.name, _CHECK, what)
        return set()
    for run in agreeing:
        _check_step_run(shown, run, one.member, wanted, key, log)
    if wanted.points is not None:
        # A training that was killed and went on has its epochs in several runs.
        histories = [shown.history(run.id) for run in agreeing]
        points = {(name, step) for each in histories for name, values in each.items() for step, _ in values}
        if gone := sorted({f"{name} of epoch {step}" for name, step in wanted.points.keys() - points}):
            what = f"MLflow shows no {examples(gone)} ({wanted.step}); {wanted.document} has it"
            log.note(one.member.name, _CHECK, what)
    if wanted.step == "tune":
        _check_trials(shown, agreeing, one.member, log)
    log.counts["runs"] += len(agreeing)
    return {run.id for run in agreeing}


def _check_step_run(
    shown: Shown, run: ShownRun, member: RegisteredVersion, wanted: Expected, key: str, log: AuditLog
) -> None:
    """Check the tags of a run that agrees, and note metrics that the version's document lacks."""
    _check_place(shown, run, member, log)
    tags = {f"{TAG}stage": member.stage, _STAGE_KEY: key, f"{TAG}step": wanted.step, RUN_NAME: run.name}
    if f"{TAG}step" in run.tags and ENTRY_POINT in run.tags:
        tags[ENTRY_POINT] = wanted.step
    if _COMMIT in run.tags:
        tags[f"{TAG}git_commit"] = run.tags[_COMMIT]
    for name, value in tags.items():
        if run.tags.get(name) != value:
            _wrong_tag(member, run, name, run.tags.get(name), value, log)
    known = {*wanted.latest, *(name for name, _ in wanted.points or ())}
    if strange := sorted(set(run.latest) - known):
        what = f"run {run.id} ({wanted.step}) shows {examples(strange)}, which {wanted.document} knows not"
        log.note(member.name, _CHECK, what)


def _differences(shown: Shown, run: ShownRun, wanted: Expected) -> list[str]:
    """Return the differences between a run and a version's document."""
    wrong = [
        f"{name} {run.params.get(name, 'is gone')}, not {texts[0]}"
        for name, texts in sorted(wanted.params.items())
        if run.params.get(name) not in texts
    ]
    points = shown.history(run.id)
    wrong += [
        f"{name} {run.latest.get(name, 'is gone')}, not {value}"
        for name, value in sorted(wanted.latest.items())
        if not same(run.latest.get(name), value) or not _all_same(points.get(name, ()), value)
    ]
    return wrong + list(_other_points(run, points, wanted.points or {}))


def _other_points(
    run: ShownRun, points: Mapping[str, Points], wanted: Mapping[tuple[str, int], float]
) -> Iterator[str]:
    """Yield epochs with other values, and last values that are not those of the last epoch."""
    names = {name for name, _ in wanted}
    for name, values in sorted(points.items()):
        if name not in names:
            continue
        for step, value in values:
            if not same(wanted.get((name, step)), value):
                yield f"{name} of epoch {step} {value}, not {wanted.get((name, step), 'there')}"
        last = [value for step, value in values if step == values[-1][0]]
        if not any(same(run.latest.get(name), value) for value in last):
            yield f"{name} {run.latest.get(name, 'is gone')}, not {last[-1]}"
    for name in sorted((names & run.latest.keys()) - points.keys()):
        yield f"{name} {run.latest[name]}, of no epoch"


def _check_trials(shown: Shown, runs: Sequence[ShownRun], member: RegisteredVersion, log: AuditLog) -> None:
    """Check the runs of a study's trials; a trial without a run is noted."""
    tuned = member.document(_TUNED)
    below = [run for above in runs for run in shown.below(above.id)]
    for number, trial in enumerate(tuned["trials"]):
        name = f"trial {trial['number']}"
        names = (name, f"{name} {member.stage}")  # without the stage before versions had descriptions
        own = [run for run in below if run.tags.get(f"{TAG}study") == tuned["study"] and run.name in names]
        if not own:
            log.note(member.name, _CHECK, f"MLflow shows no run of {name} ({number + 1} of {_TUNED})")
        expected = Expected(
            "trial",
            _TUNED,
            {one: _param_texts(value) for one, value in trial["settings"].items()},
            _numbers({one: trial[one] for one in TRIAL_MEASURES}),
            {("value_by_epoch", int(epoch)): float(value) for epoch, value in trial["curve"].items()},
        )
        for run in own:
            if wrong := _differences(shown, run, expected):
                what = f"run {run.id} ({name}) in MLflow differs from {_TUNED}: {examples(wrong)}"
                log.finding(member.name, _CHECK, what)


def _all_same(points: Points, value: float) -> bool:
    """Whether all points of a metric have this value at step 0."""
    return bool(points) and all(step == 0 and same(actual, value) for step, actual in points)


def _param_texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a parameter in MLflow: a list in JSON may have been logged as a tuple."""
    kinds = (list, tuple) if isinstance(value, list) else (lambda one: one,)
    return tuple(str(kind(value))[:LONGEST] for kind in kinds)
