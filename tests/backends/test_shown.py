"""Through a server an audit reads the same fields as from a database, and finds the same changes."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from canal.registry.audit.full_audit import audit
from canal.registry.store.database import Database
from canal.registry.store.shown import read_client, read_tables

pytestmark = pytest.mark.xdist_group("backends")

VERSION = "name = ? AND version = 2"
GONE = f"DELETE FROM model_version_tags WHERE {VERSION} AND key ="
CHANGES = {
    "model_versions.storage_location": f"UPDATE model_versions SET storage_location = 'x' WHERE {VERSION}",
    "model_versions.run_id": f"UPDATE model_versions SET run_id = '{'0' * 32}' WHERE {VERSION}",
    "the tag canal.parent_key is gone": f"{GONE} 'canal.parent_key'",
    "the tag canal.git_commit is gone": f"{GONE} 'canal.git_commit'",
    "model_versions.current_stage": f"UPDATE model_versions SET current_stage = 'Staging' WHERE {VERSION}",
    "'staging' points to version 1": (
        "INSERT INTO registered_model_aliases (alias, version, name, workspace) "
        "VALUES ('staging', 1, ?, 'default')"
    ),
}


@pytest.fixture
def served(use, new_folder):
    server = use("server")
    folder = new_folder("ada")
    folder.register()
    return folder.project(), Path(server.folder) / "server.db"


def told(project):
    report = audit(project.store, project.layout, project.config)
    return [str(one) for one in (*report.findings, *report.notes)]


def test_a_server_says_what_its_database_holds(served):
    project, database = served
    store = project.store
    client, run = store.client, store.versions()[-1].run_id
    client.log_metric(run, "loss", 0.5, step=1)
    client.log_metric(run, "loss", 0.25, step=2)
    client.log_param(run, "seed", 0)
    ours, theirs = read_client(store), read_tables(Database(database), store.names)
    assert ours.versions == theirs.versions
    assert len(ours.versions) == 2
    assert ours.models == {one: theirs.models[one] for one in ours.models}
    assert len(ours.models) == 2
    assert ours.runs == theirs.runs
    assert (ours.aliases, ours.home, ours.experiment, ours.lifecycle) == (
        theirs.aliases,
        theirs.home,
        theirs.experiment,
        theirs.lifecycle,
    )
    assert ours.history(run) == theirs.history(run) == {"loss": ((1, 0.5), (2, 0.25))}


@pytest.mark.chaos
def test_what_a_server_would_serve_is_compared_with_the_version(served):
    project, database = served
    model = project.store.names.model
    before = told(project)
    for named, statement in CHANGES.items():
        with closing(sqlite3.connect(database)) as there, closing(sqlite3.connect(":memory:")) as aside:
            there.backup(aside)
            with there:
                assert there.execute(statement, (model,)).rowcount == 1
            said = told(project)
            aside.backup(there)  # so that the server's own connection sees it, too
        assert any(named in one for one in set(said) - set(before)), (named, set(said) - set(before))
    assert told(project) == before
