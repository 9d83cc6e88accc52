"""`canal.registry.shown` from MLflow's client: of a server, or of a database of another schema."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from canal.registry.shown import ACTIVE, OF_MLFLOW, Points, Shown, ShownModel, ShownRun, ShownVersion
from canal.registry.store import LOGGED, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def read_client(store: Store) -> Shown:
    """Return what MLflow loads and shows of a project's versions, as its API has it."""
    client = store.client
    with store.speaking():
        experiment = client.get_experiment(store.experiment_id)
        versions: dict[tuple[str, int], ShownVersion] = {}
        aliases: dict[str, dict[str, int]] = {}
        for model in (store.names.backbone, store.names.model):
            own = _versions(client, model)
            versions |= own
            said = client.get_registered_model(model).aliases if own else {}
            aliases[model] = {alias: int(number) for alias, number in said.items()}
        ids = {one.source.removeprefix(LOGGED) for one in versions.values()}
        models = {one: found for one in sorted(ids) if (found := _model(client, one)) is not None}
        runs = _runs(client, store.experiment_id, {one.run_id for one in versions.values()})

    def history(run_id: str) -> Mapping[str, Points]:
        with store.speaking():
            return _history(client, run_id, list(runs[run_id].latest))

    home = str(experiment.artifact_location or "")
    return Shown(
        store.experiment_id, home, experiment.lifecycle_stage, versions, models, runs, aliases, history
    )


def _versions(client: "MlflowClient", model: str) -> dict[tuple[str, int], ShownVersion]:
    found, token = {}, None
    while True:
        page = client.search_model_versions(f"name='{model}'", max_results=_PAGE, page_token=token)
        for one in page:
            number = int(one.version)
            found[model, number] = ShownVersion(
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
            return found


def _model(client: "MlflowClient", model_id: str) -> ShownModel | None:
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


def _runs(client: "MlflowClient", experiment: str, referred: set[str]) -> dict[str, ShownRun]:
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    found: dict[str, ShownRun] = {}
    token: Any = None
    while True:
        page = client.search_runs(
            [experiment], run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token
        )
        found |= {run.info.run_id: _run(run) for run in page}
        token = page.token
        if not token:
            break
    for one in sorted(referred - found.keys()):
        try:
            found[one] = _run(client.get_run(one))
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
    return found


def _run(run: "Run") -> ShownRun:
    info, data = run.info, run.data
    return ShownRun(
        info.run_id,
        info.run_name or "",
        info.lifecycle_stage,
        info.artifact_uri or "",
        str(info.experiment_id),
        int(info.start_time or 0),
        dict(data.tags),
        dict(data.params),
        dict(data.metrics),
    )


def _history(client: "MlflowClient", run_id: str, names: list[str]) -> Mapping[str, Points]:
    found = {}
    for name in names:
        points = sorted(client.get_metric_history(run_id, name), key=lambda one: (one.step, one.timestamp))
        found[name] = tuple((int(one.step), float(one.value)) for one in points)
    return found
