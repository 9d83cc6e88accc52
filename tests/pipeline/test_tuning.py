"""A tuned stage on a small real project: chosen, learned, shown, restored; no test cell is looked at."""

import json
import shutil

import pytest

from canal.app.auditing import audit_project
from canal.app.choosing import choose, prepare_attempts, watch_trials
from canal.app.project import Project
from canal.core.digests import file_digest
from canal.core.files import read_json
from tests.support.cells import TUNING, tuned_stages

pytestmark = pytest.mark.pipeline


def tune_second(document):
    """Move the second stage to those that are tuned, on a new branch."""
    document["stages"] = tuned_stages(document["stages"], ("second",))
    document["tuning"] = dict(TUNING)
    document["stages"]["second"]["branch"] = 2


@pytest.fixture
def tuned(line):
    line.edit(tune_second)
    return line


def runs_of(store, step):
    runs = store.client.search_runs([store.experiment_id], max_results=200)
    return [run for run in runs if run.data.tags.get("canal.step") == step]


@pytest.mark.chaos
def test_a_tuned_stage_from_its_study_to_its_version_and_back(tuned):
    printed = tuned.learn()
    path = tuned.root / "tuned" / "second.json"
    found, digest = read_json(path), file_digest(path)
    assert "second: trial 0, λ 0.1, L 40: accuracy" in printed
    assert len(found["trials"]) == 3
    assert found["reproducible"]

    folder = tuned.root / "models" / "second"
    key, history = read_json(folder / "key.json"), read_json(folder / "history.json")
    assert (key["tuned"], key["choice"]) == (digest, found["choice"])
    assert key["files"]["tuned.json"] == digest
    assert {name: history[name] for name in found["choice"]} == found["choice"]
    assert "tuned" not in read_json(tuned.root / "models" / "first" / "key.json")

    store = tuned.project().store
    (step,), trials = runs_of(store, "tune"), runs_of(store, "trial")
    parents = {run.info.run_id: run for run in runs_of(store, "stage")}
    parent = parents[step.data.tags["mlflow.parentRunId"]]
    assert parent.data.tags["canal.stage_key"] == step.data.tags["canal.stage_key"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {step.info.run_id}
    assert [run.data.tags["canal.published"] for run in trials].count("true") == 1
    for run in trials:
        assert {"distillation", "bank_size"} <= run.data.params.keys()
        assert {"accuracy", "retention"} <= run.data.metrics.keys()
    drawn = {item.path for item in store.client.list_artifacts(step.info.run_id, "tuning")}
    assert {"tuning/tuned.json", "tuning/tuning-pareto_front.png", "tuning/tuning-lambda_by_l.png"} <= drawn

    assert tuned.project().store.version("candidate").branch == 2
    assert [str(one) for one in audit_project(tuned.project()).findings] == []
    version = store.version("candidate")
    assert (store.artifacts(version) / "figures" / "tuning-optimisation.png").is_file()
    shown = json.loads(tuned.canal("tune", "show", "second", "--json"))
    assert shown["choice"] == found["choice"]
    assert "published" in tuned.canal("tune", "show", "second")

    model = file_digest(folder / "key.json")
    tuned.lose("models/second", "tuned/second.json")
    shutil.rmtree(tuned.root / ".canal" / "tuning")
    tuned.run("dvc", "repro", "--quiet", "finetune@second")
    assert (file_digest(path), file_digest(folder / "key.json")) == (digest, model)
    assert not (tuned.root / ".canal" / "tuning").exists(), "a restored stage tunes nothing"
    assert len(runs_of(tuned.project().store, "trial")) == 3


def test_a_trial_cannot_reach_a_test_cell(tuned, monkeypatch):
    project, taken = tuned.project(), []
    cells = Project.cells

    def guarded(self, stage, chosen, genes=None):
        assert chosen != "test", f"test cells of {stage} were asked for"
        found = cells(self, stage, chosen, genes)
        taken.append((stage, chosen))
        return found

    monkeypatch.setattr(Project, "cells", guarded)
    splits = {stage: project.split(stage) for stage in ("first", "second")}
    tests = {name for split in splits.values() for name in split["cell_id"][split["set"] == "test"]}
    attempts = prepare_attempts(project, "second")
    given = attempts.task
    seen = {
        name
        for part in (given.train, given.validation, given.probe, attempts.bank.cells)
        for name in part.cell_ids
    }
    assert tests
    assert not seen & tests
    found = choose(project, "second", watch_trials)
    assert set(taken) == {("second", "train"), ("second", "validation")}
    assert found["n_validation"] == len(given.validation)
    assert 1 <= found["n_effective"] <= len(given.validation)
    assert found == choose(project, "second", watch_trials)


def test_processes_share_a_stages_study(tuned):
    tuned.edit(lambda document: document["tuning"].update(n_trials=4))
    printed = tuned.canal("tune", "run", "second", "--jobs", "2", "--json")
    found = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    assert len(found["trials"]) == 4
    assert len({json.dumps([one["settings"], one["n_replay"]]) for one in found["trials"]}) == 4
    assert "several processes" in found["because"][0]
