"""Which run a step logs into: the one that MLflow made for it, and no other."""

import os

import pytest

from canal.core.errors import HistoryError
from canal.registry.store.tracking import handed_run
from canal.registry.versions.history import learned
from tests.registry.test_moved import copied
from tests.support.cells import make_config
from tests.support.registered import lost, open_store

ENTRY, STAGE = "mlflow.project.entryPoint", "stage"


@pytest.fixture(scope="module")
def store(registered, tmp_path_factory):
    return copied(registered, tmp_path_factory.mktemp("runs") / "project")


def made(store, entry_point="finetune", stage="second", experiment=None, status=None):
    run = store.client.create_run(experiment or store.experiment_id, tags={ENTRY: entry_point})
    store.client.log_param(run.info.run_id, STAGE, stage)
    if status:
        store.client.set_terminated(run.info.run_id, status)
    return run.info.run_id


def asked(store, monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    return handed_run(store, "finetune", "second")


def test_a_step_takes_the_run_that_was_made_for_it(store, monkeypatch):
    run = made(store)
    assert asked(store, monkeypatch, run) == run
    assert "MLFLOW_RUN_ID" not in os.environ  # what the step starts has runs of its own


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "FINISHED"},
        {"status": "FAILED"},
        {"experiment": "0"},
        {"entry_point": "evaluate"},
        {"stage": "first"},
    ],
    ids=lambda wrong: "-".join(wrong.values()),
)
def test_another_run_in_a_person_s_shell_is_left_alone(store, monkeypatch, wrong):
    run = made(store, **wrong)
    assert asked(store, monkeypatch, run) is None
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ


@pytest.mark.parametrize("run_id", ["0" * 32, "no run", "../x"])
def test_an_id_that_nobody_knows_is_ignored(store, monkeypatch, run_id):
    assert asked(store, monkeypatch, run_id) is None


def test_a_deleted_run_is_ignored(store, monkeypatch):
    run = made(store)
    store.client.delete_run(run)
    assert asked(store, monkeypatch, run) is None


def test_without_an_id_nothing_is_opened(tmp_path):
    fresh = open_store(tmp_path)
    assert handed_run(fresh, "finetune", "second") is None
    assert not fresh.opened


@pytest.mark.parametrize("stage", ["backbone", "first", "second"])
def test_a_stage_of_the_ledger_that_a_handed_store_lacks_is_not_learned_again(
    registered, tmp_path, monkeypatch, stage
):
    """`mlflow run file:///project` from another folder hands down a store of that folder."""
    project = copied(registered, tmp_path / "project")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    handed = type(project)(project.layout, project.names)
    with pytest.raises(
        HistoryError, match=f"says that stage '{stage}' was learned as .* set it to sqlite:///"
    ):
        learned(handed, make_config(), stage)
    assert not (tmp_path / "other.db").exists()


def test_a_version_that_the_own_store_lost_is_not_learned_again(registered, tmp_path):
    store = copied(registered, tmp_path / "project")
    store.client.delete_model_version_tag(store.names.model, "3", "status")
    store.client.delete_model_version(store.names.model, "3")
    what = "canal-annotator 3 .* has no such version.*canal stage relearn second"
    with pytest.raises(HistoryError, match=what):
        learned(store, make_config(), "second")


def test_a_store_that_is_lost_altogether_is_learned_and_rebuilt(registered, tmp_path):
    assert learned(lost(registered, tmp_path / "project"), make_config(), "second") is None
