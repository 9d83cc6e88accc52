"""What MLflow shows of a project's versions, models and runs, for audits to compare with canal's documents.

A local database of the known schema is read from its tables, in milliseconds; a server, or a database of
another schema, through MLflow's client. `docs/prove.md` lists the fields;
`canal.registry.audit.shown_versions` compares them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from canal.config.sections import Registry
from canal.registry.store.database import DELETED, LOGGED, Database
from canal.registry.store.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


Points = tuple[tuple[int, float], ...]
"""Steps and values of a metric."""

Measured = tuple[str, str, str, float]
"""A metric of a logged model: its name, name and digest of the data set it belongs to or "", its value."""

PARENT_RUN, ENTRY_POINT, RUN_NAME = "mlflow.parentRunId", "mlflow.project.entryPoint", "mlflow.runName"
ACTIVE = "active"
OF_MLFLOW = "mlflow."

_STATUS = {"1": "PENDING", "2": "READY", "3": "FAILED"}
"""Status of a logged model, as the database writes it."""

_MINE = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ?)"

_PAGE = 1000
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class ShownVersion:
    """One row of ``model_versions`` with its tags; ``location`` is where MLflow serves it from."""

    model: str
    number: int
    source: str
    location: str
    run_id: str
    run_link: str
    status: str
    status_message: str
    stage: str
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownModel:
    """One row of ``logged_models``: where the artifacts of a version lie."""

    id: str
    name: str
    location: str
    status: str
    status_message: str
    kind: str
    lifecycle: str
    run_id: str
    experiment: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: frozenset[Measured] = frozenset()
    tags: tuple[str, ...] = ()
    """Names of tags, but those of MLflow's own making (``mlflow.``)."""


@dataclass(frozen=True)
class ShownRun:
    """One row of ``runs`` with tags, parameters, and the last value of each metric.

    ``started`` and ``ended`` are in milliseconds since 1970; 0 where MLflow has none.
    """

    id: str
    name: str
    lifecycle: str
    location: str
    experiment: str
    started: int
    ended: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    latest: Mapping[str, float]

    @property
    def steps(self) -> frozenset[str]:
        """Names of the step by canal's tag and MLflow's; they differ only where a tag was changed."""
        return frozenset(self.tags.get(name, "") for name in ("canal.step", ENTRY_POINT)) - {""}


@dataclass(frozen=True)
class Shown:
    """Everything that MLflow loads or shows of a project's versions.

    Attributes
    ----------
    experiment : str
        Id of the project's experiment.
    home : str
        The address of its artifacts, with which the addresses of runs and models begin.
    lifecycle : str
        Whether the experiment is active.
    aliases : Mapping
        By registered model.
    history : callable
        Returns all points of all metrics of a run.
    """

    experiment: str
    home: str
    lifecycle: str
    versions: Mapping[tuple[str, int], ShownVersion]
    models: Mapping[str, ShownModel]
    runs: Mapping[str, ShownRun]
    aliases: Mapping[str, Mapping[str, int]]
    history: Callable[[str], Mapping[str, Points]]

    def address(self, place: str) -> str:
        """Return an address below that of the experiment, as the project's present folder has it."""
        return f"{self.home.rstrip('/')}/{place}"

    def below(self, run_id: str) -> Iterator[ShownRun]:
        """Yield the runs below a run that were not deleted, oldest first."""
        runs = (run for run in self.runs.values() if run.tags.get(PARENT_RUN) == run_id)
        yield from sorted((run for run in runs if run.lifecycle == ACTIVE), key=lambda run: run.started)


def read_shown(store: Store) -> Shown:
    """Return what MLflow has; a local database is read without MLflow.

    Raises
    ------
    RegistryError
        If the database or the server cannot be read.
    """
    if not store.exists:
        return Shown("", "", ACTIVE, {}, {}, {}, {}, lambda _: {})
    if database := store.database:
        return read_tables(database, store.names)
    return read_client(store)


def read_tables(database: Database, names: Registry) -> Shown:
    """Return what MLflow loads and shows of a project's versions."""
    experiments = database.rows(
        "SELECT experiment_id, artifact_location, lifecycle_stage FROM experiments WHERE name = ?",
        names.experiment,
    )
    experiment, home, lifecycle = map(_text, experiments[0] if experiments else ("", "", "gone"))
    models = (names.backbone, names.model)
    versions = {key: one for model in models for key, one in _table_versions(database, model).items()}
    referred = {one.run_id for one in versions.values()}

    def history(run_id: str) -> Mapping[str, Points]:
        points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        query = "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp"
        for name, step, value, nan in database.rows(query, run_id):
            points[str(name)].append((int(step), _number(value, nan)))
        return {name: tuple(values) for name, values in points.items()}

    return Shown(
        experiment,
        home,
        lifecycle,
        versions,
        _table_models(database),
        _table_runs(database, experiment, referred),
        {model: dict(database.aliases(model)) for model in models},
        history,
    )


def _table_versions(database: Database, model: str) -> dict[tuple[str, int], ShownVersion]:
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
    versions = {}
    for number, *rest in rows:
        source, location, run_id, run_link, status, message, stage, description = map(_text, rest)
        versions[model, int(number)] = ShownVersion(
            model=model, number=int(number), source=source, location=location, run_id=run_id,
            run_link=run_link, status=status, status_message=message, stage=stage, description=description,
            tags=tags.get(number, {}),
        )  # fmt: skip
    return versions


def _table_models(database: Database) -> dict[str, ShownModel]:
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
    models = {}
    for one, *columns in rows:
        name, location, status, message, kind, lifecycle, run_id, experiment = map(_text, columns)
        models[str(one)] = ShownModel(
            id=str(one), name=name, location=location, status=_STATUS.get(status, status),
            status_message=message, kind=kind, lifecycle=lifecycle, run_id=run_id, experiment=experiment,
            params=params.get(one, {}), metrics=frozenset(metrics.get(one, ())),
            tags=tuple(sorted(name for name in tags.get(one, ()) if not name.startswith(OF_MLFLOW))),
        )  # fmt: skip
    return models


def _table_runs(database: Database, experiment: str, referred: set[str]) -> dict[str, ShownRun]:
    """Return the runs of the project's experiment, and runs of other experiments that a version names."""
    rows = database.rows(
        "SELECT run_uuid, name, lifecycle_stage, artifact_uri, experiment_id, start_time, end_time FROM runs"
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
            int(ended or 0),
            tags.get(one, {}),
            params.get(one, {}),
            latest.get(one, {}),
        )
        for one, name, life, place, at, began, ended in wanted
    }


def _by_owner(rows: list[tuple[Any, ...]]) -> dict[Any, dict[str, str]]:
    values: dict[Any, dict[str, str]] = defaultdict(dict)
    for owner, name, value in rows:
        values[owner][str(name)] = _text(value)
    return values


def _number(value: Any, nan: Any) -> float:
    return math.nan if nan else float(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def read_client(store: Store) -> Shown:
    """Return what MLflow loads and shows of a project's versions, as its API has it."""
    client = store.client
    with store.translated_errors():
        experiment = client.get_experiment(store.experiment_id)
        versions: dict[tuple[str, int], ShownVersion] = {}
        aliases: dict[str, dict[str, int]] = {}
        for model in store.models:
            own = _api_versions(client, model)
            versions |= own
            aliases_of_model = client.get_registered_model(model).aliases if own else {}
            aliases[model] = {alias: int(number) for alias, number in aliases_of_model.items()}
        ids = {one.source.removeprefix(LOGGED) for one in versions.values()}
        models = {one: found for one in sorted(ids) if (found := _api_model(client, one)) is not None}
        runs = _api_runs(client, store.experiment_id, {one.run_id for one in versions.values()})

    def history(run_id: str) -> Mapping[str, Points]:
        points = {}
        with store.translated_errors():
            for name in runs[run_id].latest:
                metrics = client.get_metric_history(run_id, name)
                metrics = sorted(metrics, key=lambda one: (one.step, one.timestamp))
                points[name] = tuple((int(one.step), float(one.value)) for one in metrics)
        return points

    home = str(experiment.artifact_location or "")
    return Shown(
        store.experiment_id, home, experiment.lifecycle_stage, versions, models, runs, aliases, history
    )


def _api_versions(client: "MlflowClient", model: str) -> dict[tuple[str, int], ShownVersion]:
    versions, token = {}, None
    while True:
        page = client.search_model_versions(f"name='{model}'", max_results=_PAGE, page_token=token)
        for one in page:
            number = int(one.version)
            versions[model, number] = ShownVersion(
                model,
                number,
                one.source or "",
                client.get_model_version_download_uri(model, str(number)) or "",
                one.run_id or "",
                one.run_link or "",
                str(one.status or ""),
                one.status_message or "",
                one.current_stage or "",
                one.description or "",
                dict(one.tags),
            )
        token = page.token
        if not token:
            return versions


def _api_model(client: "MlflowClient", model_id: str) -> ShownModel | None:
    from mlflow.exceptions import MlflowException

    try:
        one = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code in _GONE:
            return None
        raise
    return ShownModel(
        one.model_id,
        one.name or "",
        one.artifact_location or "",
        str(getattr(one.status, "value", one.status)),
        one.status_message or "",
        one.model_type or "",
        ACTIVE,  # a deleted one is not handed out
        one.source_run_id or "",
        str(one.experiment_id),
        dict(one.params or {}),
        frozenset(
            (metric.key, metric.dataset_name or "", metric.dataset_digest or "", float(metric.value))
            for metric in one.metrics or ()
        ),
        tuple(sorted(name for name in one.tags or () if not name.startswith(OF_MLFLOW))),
    )


def _api_runs(client: "MlflowClient", experiment: str, referred: set[str]) -> dict[str, ShownRun]:
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    runs: dict[str, ShownRun] = {}
    token: Any = None
    while True:
        page = client.search_runs(
            [experiment], run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token
        )
        runs |= {run.info.run_id: _api_run(run) for run in page}
        token = page.token
        if not token:
            break
    for one in sorted(referred - runs.keys()):
        try:
            runs[one] = _api_run(client.get_run(one))
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
    return runs


def _api_run(run: "Run") -> ShownRun:
    info, data = run.info, run.data
    return ShownRun(
        info.run_id,
        info.run_name or "",
        info.lifecycle_stage,
        info.artifact_uri or "",
        str(info.experiment_id),
        int(info.start_time or 0),
        int(info.end_time or 0),
        dict(data.tags),
        dict(data.params),
        dict(data.metrics),
    )
