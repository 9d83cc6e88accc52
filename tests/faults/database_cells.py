"""Every cell of MLflow's database by which it loads or shows a version, changed one at a time.

`docs/prove.md` lists the fields; `listed` reads them there, so that list and changes cannot part.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.warm import REPOSITORY

MODELS = ("canal-backbone", "canal-annotator")
_ORDER = "WHERE name IN (?, ?) ORDER BY name DESC, version"
Statement = tuple[str, tuple[object, ...]]

_VERSION_COLUMNS = {
    "storage_location": "file:///elsewhere/model",
    "source": "models:/m-00000000000000000000000000000000",
    "run_id": "0" * 32,
    "run_link": "https://example.org/run",
    "status": "PENDING_REGISTRATION",
    "status_message": "see elsewhere",
    "version": 77,
    "current_stage": "Production",
    "description": "reviewed by everybody",
}
_MODEL_COLUMNS = {
    "name": "another",
    "artifact_location": "file:///elsewhere/model",
    "status": 1,
    "status_message": "see elsewhere",
    "model_type": "other",
    "lifecycle_stage": "deleted",
    "source_run_id": "0" * 32,
    "experiment_id": 0,
}
_MODEL_FIGURES = (
    ("logged_model_params", "param_key", "y"),
    ("logged_model_params", "param_value", "x"),
    ("logged_model_metrics", "metric_name", "y"),
    ("logged_model_metrics", "metric_value", 0.123),
    ("logged_model_metrics", "dataset_name", "other/test"),
    ("logged_model_metrics", "dataset_digest", "0" * 32),
)
_RUN_COLUMNS = {
    "name": "another",
    "artifact_uri": "file:///elsewhere/run",
    "experiment_id": 0,
    "lifecycle_stage": "deleted",
}
_RUN_TAGS = (
    *("canal.stage", "canal.step", "canal.stage_key", "canal.version", "canal.parent_version"),
    *("canal.git_commit", "mlflow.runName", "mlflow.project.entryPoint", "mlflow.source.git.commit"),
    "mlflow.parentRunId",
)


@dataclass(frozen=True)
class Change:
    """One change of the database, the field of the docs that it is of, and what must name it."""

    table: str
    field: str
    about: str
    statements: tuple[Statement, ...]
    named: str


def listed() -> dict[tuple[str, str], str]:
    """Return the fields that docs/prove.md lists, each with what an audit makes of it."""
    text = (REPOSITORY / "docs" / "prove.md").read_text(encoding="utf-8")
    part = text.split("## What MLflow loads and shows", 1)[1].split("\n##", 1)[0]
    found = {}
    for line in part.splitlines():
        columns = [one.strip() for one in line.strip().strip("|").split("|")]
        if len(columns) == 4 and columns[0].startswith("`"):
            for field in re.findall(r"`([^`]+)`", columns[1]):
                found[columns[0].strip("`"), field] = columns[2]
    return found


@contextmanager
def changed(database: Path, change: Change) -> Iterator[None]:
    """Let a database be changed for a while."""
    aside = database.with_suffix(".aside")
    shutil.copyfile(database, aside)
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            for statement, values in change.statements:
                done = connection.execute(statement, values)
                assert done.rowcount, (statement, values)
        yield
    finally:
        shutil.copyfile(aside, database)
        aside.unlink()


def changes(database: Path) -> list[Change]:
    """Return a change of every listed field of every row that is a version's."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [
            *_of_versions(connection),
            *_of_models(connection),
            *_of_runs(connection),
            *_of_figures(connection),
            *_of_store(connection),
        ]


def _name(model: str, number: int) -> str:
    return f"version {number}" if model == MODELS[1] else f"{model} {number}"


def _of_versions(connection: sqlite3.Connection) -> Iterator[Change]:
    rows = connection.execute(f"SELECT name, version FROM model_versions {_ORDER}", MODELS)
    for model, number in rows.fetchall():
        name, where = _name(model, number), (model, number)
        for column, value in _VERSION_COLUMNS.items():
            statement = f"UPDATE model_versions SET {column} = ? WHERE name = ? AND version = ?"
            named = name if column in ("source", "version") else f"{name}: model_versions.{column}"
            yield Change("model_versions", column, name, ((statement, (value, *where)),), named)
        tags = "SELECT key FROM model_version_tags WHERE name = ? AND version = ?"
        for (tag,) in connection.execute(tags, where).fetchall():
            at = "model_version_tags WHERE name = ? AND version = ? AND key = ?"
            change = at.replace(" WHERE", " SET value = 'x' WHERE")
            yield Change(
                "model_version_tags", tag, f"{name} changed", ((f"UPDATE {change}", (*where, tag)),), name
            )
            yield Change(
                "model_version_tags", tag, f"{name} gone", ((f"DELETE FROM {at}", (*where, tag)),), name
            )
        for tag in ("canal.retired", "canal.imported_from"):
            added = "INSERT INTO model_version_tags (key, value, name, version, workspace) "
            added += "VALUES (?, 'true', ?, ?, 'default')"
            yield Change("model_version_tags", tag, f"{name} added", ((added, (tag, *where)),), name)


def _of_models(connection: sqlite3.Connection) -> Iterator[Change]:
    query = f"SELECT name, version, source FROM model_versions {_ORDER}"
    for model, number, source in connection.execute(query, MODELS).fetchall():
        name, one = _name(model, number), source.removeprefix("models:/")
        for column, value in _MODEL_COLUMNS.items():
            statement = f"UPDATE logged_models SET {column} = ? WHERE model_id = ?"
            named = name if column == "artifact_location" else f"{name}: logged_models.{column}"
            yield Change("logged_models", column, name, ((statement, (value, one)),), named)
        for table, column, value in _MODEL_FIGURES:
            label = {"logged_model_params": "param_key", "logged_model_metrics": "metric_name"}[table]
            of_cells = " AND dataset_name IS NOT NULL" if column.startswith("dataset") else ""
            query = f"SELECT max({label}) FROM {table} WHERE model_id = ?{of_cells}"
            (key,) = connection.execute(query, (one,)).fetchone()
            if key is not None:
                statement = f"UPDATE {table} SET {column} = ? WHERE model_id = ? AND {label} = ?"
                named = f"{name}: its logged model in MLflow differs"
                yield Change(table, column, f"{name} {key}", ((statement, (value, one, key)),), named)
        added = "INSERT INTO logged_model_tags (model_id, experiment_id, tag_key, tag_value) "
        added += "VALUES (?, 1, 't', 'v')"
        named = f"{name}: its logged model in MLflow shows t"
        yield Change("logged_model_tags", "tag_key", name, ((added, (one,)),), named)


def _of_runs(connection: sqlite3.Connection) -> Iterator[Change]:
    for name, run, step in _runs(connection):
        for column, value in _RUN_COLUMNS.items():
            statement = f"UPDATE runs SET {column} = ? WHERE run_uuid = ?"
            yield Change("runs", column, f"{name} {step}", ((statement, (value, run)),), name)
        for tag in _RUN_TAGS:
            there = "SELECT 1 FROM tags WHERE run_uuid = ? AND key = ?"
            if connection.execute(there, (run, tag)).fetchone():
                statement = "UPDATE tags SET value = 'x' WHERE run_uuid = ? AND key = ?"
                yield Change("tags", tag, f"{name} {step}", ((statement, (run, tag)),), name)


def _of_figures(connection: sqlite3.Connection) -> Iterator[Change]:
    """Yield changes of one parameter and one metric of each run, the last of the alphabet."""
    for name, run, step in _runs(connection):
        for table, columns in (
            ("params", {"value": "x", "key": "y"}),
            ("latest_metrics", {"value": 0.123, "is_nan": 1, "key": "y"}),
            ("metrics", {"value": 0.123, "is_nan": 1, "key": "y", "step": 9999}),
        ):
            if table == "params" and step == "evaluate":
                continue  # its only one is the stage, by which a step is started
            query = f"SELECT max(key) FROM {table} WHERE run_uuid = ?"
            (key,) = connection.execute(query, (run,)).fetchone()
            for column, value in columns.items() if key else ():
                statement = f"UPDATE {table} SET {column} = ? WHERE run_uuid = ? AND key = ?"
                if table == "metrics":
                    statement += " AND step = (SELECT max(step) FROM metrics WHERE run_uuid = ? AND key = ?)"
                values = (value, run, key, run, key) if table == "metrics" else (value, run, key)
                yield Change(table, column, f"{name} {step} {key}", ((statement, values),), f"{name}: ")


def _of_store(connection: sqlite3.Connection) -> Iterator[Change]:
    for column, value, named in (
        ("artifact_location", "file:///elsewhere", "artifact_location"),
        ("lifecycle_stage", "deleted", "experiments.lifecycle_stage"),
        ("name", "another", "experiment"),
    ):
        statement = f"UPDATE experiments SET {column} = ? WHERE name = 'canal'"
        yield Change("experiments", column, "canal", ((statement, (value,)),), named)
    alias = "registered_model_aliases"
    moved = f"UPDATE {alias} SET version = 1 WHERE alias = 'candidate'"
    yield Change(alias, "candidate", "moved", ((moved, ()),), "candidate points to")
    yield Change(
        alias,
        "candidate",
        "gone",
        ((moved.replace("UPDATE", "DELETE FROM").replace("SET version = 1 ", ""), ()),),
        "candidate points to",
    )
    for name in ("champion", "previous", "staging", "2"):
        for model in MODELS:
            added = f"INSERT INTO {alias} (alias, version, name, workspace) VALUES (?, 1, ?, 'default')"
            field = name if name in ("champion", "previous") else "any other"
            yield Change(alias, field, f"{model} {name}", ((added, (name, model)),), name)
    for model in MODELS:
        copied = (
            "INSERT INTO model_versions (name, version, creation_time, current_stage, source, run_id, "
            "status, storage_location, workspace) SELECT name, 99, creation_time, current_stage, source, "
            "run_id, status, storage_location, workspace FROM model_versions WHERE name = ? LIMIT 1"
        )
        yield Change("model_versions", "any other", model, ((copied, (model,)),), _name(model, 99))


def _runs(connection: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield version, id and step of the runs of versions and of those below them."""
    query = f"SELECT name, version, run_id FROM model_versions {_ORDER}"
    for model, number, run in connection.execute(query, MODELS).fetchall():
        yield _name(model, number), run, "stage"
        below = (
            "SELECT one.run_uuid, step.value FROM tags one JOIN tags step ON step.run_uuid = one.run_uuid "
            "AND step.key = 'canal.step' WHERE one.key = 'mlflow.parentRunId' AND one.value = ?"
        )
        for child, step in connection.execute(below, (run,)).fetchall():
            yield _name(model, number), child, step
