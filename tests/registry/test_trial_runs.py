"""Trials as runs: each once, below the step that is under way."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from canal.registry.tracking import StepRun
from canal.registry.trial_runs import log_trials
from tests.report.tuned import make_tuned

STUDY = make_tuned()["study"]


@dataclass
class FakeClient:
    """Keeps runs in memory, as MLflow's client does."""

    runs: dict = field(default_factory=dict)

    def search_runs(self, experiments, wanted, max_results):
        assert f"'{STUDY}'" in wanted
        return list(self.runs.values())

    def create_run(self, experiment, run_name, tags):
        run_id = f"run{len(self.runs)}"
        data = SimpleNamespace(tags=dict(tags), params={}, metrics={})
        self.runs[run_id] = SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, status="RUNNING", run_name=run_name), data=data
        )
        return self.runs[run_id]

    def log_batch(self, run_id, params=(), metrics=(), tags=()):
        data = self.runs[run_id].data
        for kind, values in (("params", params), ("metrics", metrics), ("tags", tags)):
            getattr(data, kind).update({one.key: one.value for one in values})

    def set_tag(self, run_id, key, value):
        self.runs[run_id].data.tags[key] = value

    def set_terminated(self, run_id, status):
        self.runs[run_id].info.status = status


@pytest.fixture
def client():
    return FakeClient()


def step(client, run_id):
    return StepRun(SimpleNamespace(client=client, experiment_id="1"), run_id)


def trials():
    """Return the finished trials by Optuna's number, which counts one that was given up."""
    return {one["number"] + (one["number"] > 2): one for one in make_tuned()["trials"]}


def test_each_trial_is_a_run_with_its_settings_both_aims_and_state(client):
    found = trials()
    log_trials(step(client, "tune1"), STUDY, {0: found[0], 1: found[1]})
    log_trials(step(client, "tune1"), STUDY, found)
    assert len(client.runs) == 8
    published, *_, last = client.runs.values()
    assert published.data.params == {"distillation": "0.1", "bank_size": "200"}
    assert published.data.metrics["accuracy"] == 0.61
    assert published.data.metrics["retention"] == 0.95
    assert published.data.tags["canal.published"] == "true"
    assert {run.data.tags["mlflow.parentRunId"] for run in client.runs.values()} == {"tune1"}
    assert (last.info.status, last.info.run_name) == ("KILLED", "trial 7")
    (failed,) = [run for run in client.runs.values() if run.info.status == "FAILED"]
    assert "became nan" in failed.data.tags["canal.reason"]
    assert "accuracy" not in failed.data.metrics


def test_the_trials_of_a_step_that_was_killed_go_on_below_the_next_one(client):
    found = trials()
    log_trials(step(client, "tune1"), STUDY, {number: found[number] for number in (0, 1, 2)})
    half = client.runs["run2"]
    half.info.status, half.data.metrics = "RUNNING", {}
    log_trials(step(client, "tune2"), STUDY, found)
    assert len(client.runs) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in client.runs.values()} == {"tune2"}
    assert (half.info.status, half.data.metrics["accuracy"]) == ("FINISHED", 0.63)
