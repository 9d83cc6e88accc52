"""`canal.registry.shown` from the tables of a local database, in milliseconds."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from canal.config.sections import Registry
from canal.registry.database import DELETED, Database
from canal.registry.shown import OF_MLFLOW, Measured, Points, Shown, ShownModel, ShownRun, ShownVersion

_STATUS = {"1": "PENDING", "2": "READY", "3": "FAILED"}
"""How the database writes the status of a logged model."""

_MINE = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ?)"


def read_tables(database: Database, names: Registry) -> Shown:
    """Return what MLflow loads and shows of a project's versions."""
    found = database.rows(
        "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments WHERE name = ?",
        names.experiment,
    )
    experiment, home, lifecycle = map(_text, found[0] if found else ("", "", "gone"))
    models = (names.backbone, names.model)
    versions = {key: one for model in models for key, one in _versions(database, model).items()}
    referred = {one.run_id for one in versions.values()}
    return Shown(
        experiment,
        home,
        lifecycle,
        versions,
        _models(database),
        _runs(database, experiment, referred),
        {model: dict(database.aliases(model)) for model in models},
        lambda run_id: _history(database, run_id),
    )


def _versions(database: Database, model: str) -> dict[tuple[str, int], ShownVersion]:
    tags = _by_owner(
        database.rows("SELECT version, key, value FROM model_version_tags WHERE name = ?", model)
    )
    rows = database.rows(
        "SELECT version, source, storage_location, run_id, run_link, status, status_message, current_stage, "
        "description FROM model_versions "
        "WHERE workspace = 'default' AND name = ? AND current_stage IS NOT ? ORDER BY version",
        model,
        DELETED,
    )
    found = {}
    for number, *rest in rows:
        source, location, run_id, run_link, status, message, stage, description = map(_text, rest)
        found[model, int(number)] = ShownVersion(
            model=model,
            number=int(number),
            source=source,
            location=location,
            run_id=run_id,
            run_link=run_link,
            status=status,
            status_message=message,
            stage=stage,
            description=description,
            tags=tags.get(number, {}),
        )
    return found


def _models(database: Database) -> dict[str, ShownModel]:
    rows = database.rows(
        "SELECT model_id, name, artifact_location, status, status_message, model_type, lifecycle_stage, "
        "source_run_id, experiment_id FROM logged_models"
    )
    params = _by_owner(database.rows("SELECT model_id, param_key, param_value FROM logged_model_params"))
    tags = _by_owner(database.rows("SELECT model_id, tag_key, tag_value FROM logged_model_tags"))
    metrics: dict[str, set[Measured]] = defaultdict(set)
    for one, name, data, digest, value in database.rows(
        "SELECT model_id, metric_name, dataset_name, dataset_digest, metric_value FROM logged_model_metrics"
    ):
        metrics[one].add((str(name), _text(data), _text(digest), _number(value, value is None)))
    found = {}
    for one, *columns in rows:
        name, location, status, message, kind, lifecycle, run_id, experiment = map(_text, columns)
        found[str(one)] = ShownModel(
            id=str(one),
            name=name,
            location=location,
            status=_STATUS.get(status, status),
            status_message=message,
            kind=kind,
            lifecycle=lifecycle,
            run_id=run_id,
            experiment=experiment,
            params=params.get(one, {}),
            metrics=frozenset(metrics.get(one, ())),
            tags=tuple(sorted(name for name in tags.get(one, ()) if not name.startswith(OF_MLFLOW))),
        )
    return found


def _runs(database: Database, experiment: str, referred: set[str]) -> dict[str, ShownRun]:
    """Return the runs of the project's experiment, and those elsewhere that a version names."""
    rows = database.rows(
        "SELECT run_uuid, name, lifecycle_stage, artifact_uri, experiment_id, start_time FROM runs"
    )
    wanted = [row for row in rows if str(row[4]) == experiment or row[0] in referred]
    tags = _by_owner(database.rows(f"SELECT run_uuid, key, value FROM tags WHERE {_MINE}", experiment))  # noqa: S608
    params = _by_owner(
        database.rows(f"SELECT run_uuid, key, value FROM params WHERE {_MINE}", experiment)  # noqa: S608
    )
    latest: dict[Any, dict[str, float]] = defaultdict(dict)
    columns = "run_uuid, key, value, is_nan"
    for owner, name, value, nan in database.rows(
        f"SELECT {columns} FROM latest_metrics WHERE {_MINE}",  # noqa: S608
        experiment,
    ):
        latest[owner][str(name)] = _number(value, nan)
    return {
        str(one): ShownRun(
            str(one),
            _text(name),
            _text(life),
            _text(place),
            _text(at),
            int(began or 0),
            tags.get(one, {}),
            params.get(one, {}),
            latest.get(one, {}),
        )
        for one, name, life, place, at, began in wanted
    }


def _history(database: Database, run_id: str) -> Mapping[str, Points]:
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    query = "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp"
    for name, step, value, nan in database.rows(query, run_id):
        points[str(name)].append((int(step), _number(value, nan)))
    return {name: tuple(found) for name, found in points.items()}


def _by_owner(rows: list[tuple[Any, ...]]) -> dict[Any, dict[str, str]]:
    found: dict[Any, dict[str, str]] = defaultdict(dict)
    for owner, name, value in rows:
        found[owner][str(name)] = _text(value)
    return found


def _number(value: Any, nan: Any) -> float:
    return math.nan if nan else float(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
