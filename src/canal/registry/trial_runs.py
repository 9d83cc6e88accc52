"""The trials of a study as MLflow runs below the run of their step."""

from collections.abc import Mapping
from typing import Any

from canal.registry.run_figures import TRIAL_MEASURES
from canal.registry.shown import PARENT_RUN
from canal.registry.store import TAG
from canal.registry.tracking import StepRun

_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def log_trials(logged: StepRun, study: str, trials: Mapping[int, Mapping[str, Any]]) -> None:
    """Make every trial a child of this step's run, once.

    Trials that a step logged which was then killed become children of this one.

    Parameters
    ----------
    study
        Digest of the study.
    trials
        Finished trials as `canal.tuning.document` describes them, by Optuna's number.
    """
    client, experiment = logged.store.client, logged.store.experiment_id
    wanted = f"tags.`{TAG}study` = '{study}' and tags.`{TAG}step` = 'trial'"
    runs = {
        int(run.data.tags[f"{TAG}trial"]): run
        for run in client.search_runs([experiment], wanted, max_results=10_000)
    }
    for number, trial in trials.items():
        run = runs.get(number)
        if run is None:
            tags = {f"{TAG}study": study, f"{TAG}step": "trial", f"{TAG}trial": str(number)}
            run = client.create_run(
                experiment, run_name=f"trial {trial['number']}", tags=tags | {PARENT_RUN: logged.run_id}
            )
        elif run.data.tags.get(PARENT_RUN) != logged.run_id:
            client.set_tag(run.info.run_id, PARENT_RUN, logged.run_id)
        if run.info.status == "RUNNING":
            _fill(StepRun(logged.store, run.info.run_id), trial)
            client.set_terminated(run.info.run_id, _STATUS[trial["state"]])


def _fill(run: StepRun, trial: Mapping[str, Any]) -> None:
    run.params(trial["settings"])
    run.metrics({name: trial[name] for name in TRIAL_MEASURES})
    for epoch, value in trial["curve"].items():
        run.metrics({"value_by_epoch": value}, int(epoch))
    tags = {f"{TAG}state": trial["state"], f"{TAG}published": str(trial["published"]).lower()}
    run.tags(tags | ({f"{TAG}reason": trial["reason"]} if trial["reason"] else {}))
