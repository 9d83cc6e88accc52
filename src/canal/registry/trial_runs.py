"""The trials of a study as MLflow runs below the run of their step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from canal.registry.run_figures import TRIAL_MEASURES
from canal.registry.shown import PARENT_RUN
from canal.registry.store import TAG
from canal.registry.tracking import StepRun

_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class Trials:
    """The finished trials of a study.

    Attributes
    ----------
    stage, study : str
        The stage that is tuned, and the digest of the study.
    documents : Mapping
        Each as `canal.tuning.document` describes it, by Optuna's number.
    times : Mapping
        When each began and ended, in milliseconds since 1970.
    """

    stage: str
    study: str
    documents: Mapping[int, Mapping[str, Any]]
    times: Mapping[int, tuple[int, int]] = field(default_factory=dict)


def log_trials(logged: StepRun, trials: Trials) -> None:
    """Make every trial a child of this step's run, once, with the times it ran at.

    Trials that a step logged which was then killed become children of this one.
    """
    client, experiment = logged.store.client, logged.store.experiment_id
    wanted = f"tags.`{TAG}study` = '{trials.study}' and tags.`{TAG}step` = 'trial'"
    runs = {
        int(run.data.tags[f"{TAG}trial"]): run
        for run in client.search_runs([experiment], wanted, max_results=10_000)
    }
    for number, trial in trials.documents.items():
        run, (began, ended) = runs.get(number), trials.times.get(number, (None, None))
        if run is None:
            tags = {f"{TAG}study": trials.study, f"{TAG}step": "trial", f"{TAG}trial": str(number)}
            run = client.create_run(
                experiment,
                start_time=began,
                run_name=f"trial {trial['number']} {trials.stage}",
                tags=tags | {PARENT_RUN: logged.run_id},
            )
        elif run.data.tags.get(PARENT_RUN) != logged.run_id:
            client.set_tag(run.info.run_id, PARENT_RUN, logged.run_id)
        if run.info.status == "RUNNING":
            _fill(StepRun(logged.store, run.info.run_id), trial)
            client.set_terminated(run.info.run_id, _STATUS[trial["state"]], ended)


def _fill(run: StepRun, trial: Mapping[str, Any]) -> None:
    run.params(trial["settings"])
    run.metrics({name: trial[name] for name in TRIAL_MEASURES})
    for epoch, value in trial["curve"].items():
        run.metrics({"value_by_epoch": value}, int(epoch))
    tags = {f"{TAG}state": trial["state"], f"{TAG}published": str(trial["published"]).lower()}
    run.tags(tags | ({f"{TAG}reason": trial["reason"]} if trial["reason"] else {}))
