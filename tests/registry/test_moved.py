"""A project that was moved or copied answers from its own files, and writes into no other folder."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from canal.app.project import Project
from canal.core.digests import tree_digests
from canal.core.errors import ConfigError, RegistryError
from canal.registry.store.database import foreign
from canal.registry.store.tracking import parent_run
from tests.support.registered import audited, open_store, state

GONE = "version 2: the ledger has it (entry 3, register), the registry has not"
"""What does not hold in the lineage that the copies are made of."""

ODD = 'a b#c\'d µ & 100% "e" $f;g'


def copied(registered, folder, moved=False):
    """Return the store of a copy of a registered project; of a moved one, the old folder is no more."""
    shutil.copytree(registered, folder)
    if moved:
        gone = f"{registered}-that-is-gone"
        with sqlite3.connect(folder / "mlflow.db") as database:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("model_versions", "storage_location"),
            ):
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                database.execute(change, (str(registered), gone))
        database.close()
    return open_store(folder)


@pytest.fixture(autouse=True)
def forgotten():
    """Let MLflow forget where the runs of another copy lie: in one process it asks once for each run."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
@pytest.mark.parametrize("name", ["elsewhere", ODD])
def test_a_project_answers_from_its_own_files_and_writes_into_no_other(registered, tmp_path, moved, name):
    before = tree_digests(registered)
    store = copied(registered, tmp_path / name, moved)
    folder = store.layout.root
    assert store.artifacts(store.version("champion")).is_relative_to(folder)
    report = audited(store)
    assert [str(one) for one in report.findings] == [GONE]
    assert any("moved or copied from" in str(one) for one in report.notes)
    run = parent_run(store, "first", "0" * 64)  # opens the store with MLflow
    old = store.client.search_runs([store.experiment_id], max_results=1, order_by=["attributes.start_time"])
    for one in (run, old[0].info.run_id):
        store.client.log_text(one, "x", "note.txt")
        assert (folder / "mlartifacts" / one / "artifacts" / "note.txt").read_text() == "x"
    assert foreign(store.layout, store.names) == []
    assert not any("moved or copied from" in str(one) for one in audited(store).notes)
    assert state(store) == state(open_store(registered))
    assert tree_digests(registered) == before
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_mlflow_finds_a_version_of_a_copy_once_it_was_told(registered, tmp_path):
    from mlflow.artifacts import download_artifacts

    store = copied(registered, tmp_path / "copy", moved=True)
    assert store.update_paths() > 5
    assert store.update_paths() == 0
    _ = store.client  # makes it the store of MLflow's own functions in this process
    found = download_artifacts("models:/canal-annotator@champion", tracking_uri=store.uri)
    assert Path(found).samefile(store.artifacts(store.version("champion")))


def test_damage_in_a_copy_is_found_there(registered, tmp_path):
    store = copied(registered, tmp_path / "copy")
    (store.artifacts(store.version("3")) / "model" / "labels.json").write_text("[]")
    assert any("labels.json" in str(one) for one in audited(store).findings)
    assert [str(one) for one in audited(open_store(registered)).findings] == [GONE]


def test_a_copy_without_its_artifacts_does_not_answer_from_the_first_ones(registered, tmp_path):
    store = copied(registered, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "mlartifacts")
    with pytest.raises(RegistryError, match="not in this project, and .*copy/mlartifacts.*is not there"):
        store.artifacts(store.version("3"))
    assert audited(store).findings


def test_an_experiment_whose_files_go_elsewhere_is_found_and_never_written(registered, tmp_path):
    store = copied(registered, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "mlflow.db") as database:
        change = "UPDATE experiments SET artifact_location = ? WHERE name = 'canal'"
        database.execute(change, ((tmp_path / "disk").as_uri(),))
    database.close()
    with pytest.raises(RegistryError, match=r"keeps its files in .*/disk, which is not in this project"):
        parent_run(store, "first", "0" * 64)
    assert not (tmp_path / "disk").exists()
    found = [str(one) for one in audited(store).findings]
    assert any("outside of this project" in one and "disk" in one for one in found)


@pytest.mark.parametrize(
    ("before", "after"), [("outer", "outer/inner"), ("outer/inner", "outer")], ids=["into", "out of"]
)
def test_a_copy_within_the_folder_of_the_other(registered, tmp_path, before, after):
    first = copied(registered, tmp_path / before)
    first.update_paths()
    second = tmp_path / "scratch"
    shutil.copytree(first.layout.root, second)
    shutil.copytree(second, tmp_path / after, dirs_exist_ok=True)
    store = open_store(tmp_path / after)
    folder = store.artifacts(store.version("3"))
    assert folder.is_relative_to(tmp_path / after / "mlartifacts")
    store.update_paths()
    assert foreign(store.layout, store.names) == []


@pytest.mark.parametrize("name", ["a%20b", "a?b", "50%ab"])
def test_a_folder_that_mlflow_would_misread_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="which MLflow would read as .*: rename the folder"):
        Project.open(tmp_path / name)
    assert [one.name for one in tmp_path.iterdir()] == [name]
