"""Trials as runs of a real store: each once, below the step that is under way, with the times it ran at."""

import pytest

from canal.registry.store.tracking import StepRun, Trials, log_trials
from tests.support.registered import open_store
from tests.support.studies import make_tuned

STUDY = make_tuned()["study"]
BEGAN, LASTED = 1_700_000_000_000, 90_000


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("trials"))
    _ = store.client
    return store


@pytest.fixture
def step(opened):
    """Return what makes the run of a step; trials of another test are not there."""
    for run in opened.client.search_runs([opened.experiment_id], max_results=1000):
        opened.client.delete_run(run.info.run_id)
    return lambda: StepRun(opened, opened.client.create_run(opened.experiment_id).info.run_id)


def logged(numbers=None):
    """Return the finished trials by Optuna's number, which counts one that was given up."""
    found = {one["number"] + (one["number"] > 2): one for one in make_tuned()["trials"]}
    times = {number: (BEGAN + number * LASTED, BEGAN + (number + 1) * LASTED) for number in found}
    wanted = found if numbers is None else {number: found[number] for number in numbers}
    return Trials("pbmc", STUDY, wanted, times)


def below(run):
    """Return the trials below a step's run, the published one first."""
    wanted = f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    runs = run.store.client.search_runs([run.store.experiment_id], wanted)
    return sorted(runs, key=lambda one: int(one.data.tags["canal.trial"]))


def test_each_trial_is_a_run_with_its_settings_both_aims_state_and_times(step):
    tune = step()
    log_trials(tune, logged([0, 1]))
    log_trials(tune, logged())
    runs = below(tune)
    assert len(runs) == 8
    published, *_, last = runs
    assert published.data.params == {"distillation": "0.1", "bank_size": "200"}
    assert published.data.metrics["accuracy"] == 0.61
    assert published.data.metrics["retention"] == 0.95
    assert published.data.tags["canal.published"] == "true"
    assert (last.info.status, last.info.run_name) == ("KILLED", "trial 7 pbmc")
    assert (published.info.start_time, published.info.end_time) == (BEGAN, BEGAN + LASTED)
    assert {one.info.end_time - one.info.start_time for one in runs} == {LASTED}
    (failed,) = [run for run in runs if run.info.status == "FAILED"]
    assert "became nan" in failed.data.tags["canal.reason"]
    assert "accuracy" not in failed.data.metrics


def test_the_trials_of_a_step_that_was_killed_go_on_below_the_next_one(step):
    first, second = step(), step()
    log_trials(first, logged([0, 1]))
    half = first.store.client.create_run(
        first.store.experiment_id,
        tags={
            "canal.study": STUDY,
            "canal.step": "trial",
            "canal.trial": "2",
            "mlflow.parentRunId": first.run_id,
        },
    )
    log_trials(second, logged())
    assert (len(below(first)), len(below(second))) == (0, 8)
    (done,) = [run for run in below(second) if run.info.run_id == half.info.run_id]
    assert (done.info.status, done.data.metrics["accuracy"]) == ("FINISHED", 0.63)
