"""The first command's database: whole or not there, whatever kills it and whoever makes it, too."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from canal.registry.store import new_database
from canal.registry.store.database import SCHEMA, Database
from canal.registry.store.new_database import ensure_database
from tests.support.warm import REPOSITORY, warmly

MLFLOW = """
import sys
import sqlalchemy
from mlflow.store.db.utils import _initialize_tables
print("ready", flush=True)
_initialize_tables(sqlalchemy.create_engine("sqlite:///" + sys.argv[1]))
"""
CANAL = """
import sys
from pathlib import Path
import sqlalchemy, alembic.command, mlflow.store.db.utils
from canal.registry.store.new_database import ensure_database
print("ready", flush=True)
sys.stdin.readline()
ensure_database(Path(sys.argv[1]))
"""


def started(code, path, python=(sys.executable, "-c"), env=None):
    process = subprocess.Popen(
        [*python, code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def go(process):
    process.stdin.write(b"go\n")
    process.stdin.flush()


@pytest.fixture(scope="module")
def half_made(tmp_path_factory):
    """Give a file that a kill left while MLflow made its tables in place, as canal once let it do."""
    path = tmp_path_factory.mktemp("half") / "mlflow.db"
    process = started(MLFLOW, path)
    while not tables(path):
        time.sleep(0.002)
    time.sleep(0.05)
    process.kill()
    process.wait()
    assert not Database(path).known
    return path


def tables(path):
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as file:
        try:
            return file.execute(
                "SELECT count(*) FROM sqlite_master WHERE name = 'registered_models'"
            ).fetchone()[0]
        except sqlite3.OperationalError:
            return 0


@pytest.fixture
def left(half_made, tmp_path):
    """Give a copy of it that lies there for a while."""
    path = tmp_path / "mlflow.db"
    for one in half_made.parent.iterdir():
        copied = tmp_path / one.name
        copied.write_bytes(one.read_bytes())
        os.utime(copied, (time.time() - 60, time.time() - 60))
    return path


@pytest.mark.chaos
def test_a_kill_at_any_moment_leaves_no_database_or_a_whole_one(tmp_path):
    path, moments = tmp_path / "mlflow.db", random.Random(7)
    for _ in range(3):
        process = started(CANAL, path)
        go(process)
        time.sleep(moments.uniform(0, 1.5))
        process.kill()
        process.wait()
        assert Database(path).known or not path.exists()
    ensure_database(path)
    assert Database(path).known
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]


def test_processes_that_make_it_at_once_get_one(tmp_path):
    path, script = tmp_path / "made" / "mlflow.db", tmp_path / "make.py"
    path.parent.mkdir()
    script.write_text(CANAL)
    processes = [started(str(script), path, ["python"], warmly(REPOSITORY)) for _ in range(3)]
    for process in processes:
        go(process)
    first = None
    while any(process.poll() is None for process in processes):
        if first is None and path.exists():
            first = path.stat().st_ino
        time.sleep(0.01)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert path.stat().st_ino == first
    assert [one.name for one in path.parent.iterdir()] == ["mlflow.db"]


def test_what_an_older_canal_left_half_made_is_made_anew(left):
    ensure_database(left)
    assert Database(left).known
    assert [one.name for one in left.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    "journal", [b"", pytest.param(b"\0" * 512, marks=pytest.mark.chaos), b"\0" * 5000], ids=len
)
def test_a_journal_that_a_kill_left_is_no_sign_of_work(left, journal):
    """SQLite takes back what it needs to; a journal that was never synced lies there for good."""
    beside = left.with_name("mlflow.db-journal")
    beside.write_bytes(journal)
    ensure_database(left)
    assert Database(left).known
    assert [one.name for one in left.parent.iterdir()] == ["mlflow.db"]


def test_what_somebody_is_amid_writing_is_left_as_it_is(left):
    with closing(sqlite3.connect(left, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        file.execute("CREATE TABLE more (x)")
        os.utime(left, (0, 0))
        ensure_database(left)
        assert not Database(left).known
        file.execute("COMMIT")
        assert file.execute("SELECT count(*) FROM more").fetchone() == (0,)


def test_an_empty_file_is_made_a_database(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()
    os.utime(path, (0, 0))
    ensure_database(path)
    assert Database(path).known


def test_what_still_changes_is_waited_for(left, monkeypatch):
    monkeypatch.setattr(new_database, "_STILL_S", 1.0)
    os.utime(left)
    began = time.monotonic()
    ensure_database(left)
    assert time.monotonic() - began >= 0.8
    assert Database(left).known


@pytest.mark.parametrize("table", ["experiments", "runs"])
def test_a_database_with_any_row_is_left_as_it_is(left, table):
    columns = {"experiments": "experiment_id, name", "runs": "run_uuid, name"}[table]
    with closing(sqlite3.connect(left)) as file, file:
        file.execute("PRAGMA foreign_keys = OFF")
        file.execute(f"INSERT INTO {table} ({columns}) VALUES (7, 'mine')")
    os.utime(left, (0, 0))
    before = left.read_bytes()
    ensure_database(left)
    assert left.read_bytes() == before


@pytest.mark.parametrize("content", ["CREATE TABLE mine (x)", None])
def test_what_is_no_half_made_database_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "mlflow.db"
    if content is None:
        path.write_bytes(b"no database" * 100)
    else:
        with closing(sqlite3.connect(path)) as file, file:
            file.execute(content)
    os.utime(path, (0, 0))
    before = path.read_bytes()
    ensure_database(path)
    assert path.read_bytes() == before


def test_a_whole_database_of_another_mlflow_is_left_as_it_is(tmp_path):
    path = tmp_path / "mlflow.db"
    ensure_database(path)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("INSERT INTO experiments (experiment_id, name) VALUES (0, 'Default')")
        file.execute("UPDATE alembic_version SET version_num = ?", (SCHEMA[::-1],))
    os.utime(path, (0, 0))
    before = path.read_bytes()
    ensure_database(path)
    assert path.read_bytes() == before
