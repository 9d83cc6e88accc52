"""MLflow runs: a parent run a stage, its steps as MLflow Project runs below, a study's trials below those."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.config.params import Config
from canal.core.errors import TrainingError
from canal.registry.manifest.pages import LONGEST, TRIAL_MEASURES, flat
from canal.registry.manifest.stage_request import current_commit, request_digest
from canal.registry.store.shown import PARENT_RUN
from canal.registry.store.store import TAG, Store
from canal.runtime.startup import quiet_libraries

STAGE_KEY = f"{TAG}stage_key"

_LEARNING = ("torch._dynamo",)  # by the first optimiser otherwise
_AHEAD = {
    "pretrain": _LEARNING,
    "tune": (*_LEARNING, "optuna"),
    "finetune": _LEARNING,
    "evaluate": (*_LEARNING, "sklearn.metrics", "matplotlib.figure"),
}
"""Modules that a step imports anyway: the spare process imports them while this one opens its store."""


_HANDED = "MLFLOW_RUN_ID"
_KIN = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ACTIVE_MODEL_ID")
"""Further variables by which MLflow hands a run to a process."""

_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def handed_run(store: Store, entry_point: str, stage: str) -> str | None:
    """Return the id of the run that MLflow started this process for, as a project's entry point.

    ``MLFLOW_RUN_ID`` may also be left in a shell by a notebook or by another step: it counts only if that run
    is running and belongs to this project's experiment, entry point and stage. Otherwise MLflow's variables
    are removed from the environment, so that no library logs into that run.
    """
    wanted = os.environ.pop(_HANDED, None)
    if wanted and _started_for(store, wanted, entry_point, stage):
        return wanted
    for name in _KIN:
        os.environ.pop(name, None)
    return None


def _started_for(store: Store, run_id: str, entry_point: str, stage: str) -> bool:
    """Whether a run was started for this entry point of this stage and is running."""
    client = store.client
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT

    with store.translated_errors():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
    return (
        run.info.status == "RUNNING"
        and run.info.lifecycle_stage == "active"
        and run.info.experiment_id == store.experiment_id
        and run.data.tags.get(MLFLOW_PROJECT_ENTRY_POINT) == entry_point
        and run.data.params.get("stage", stage) == stage
    )


def stage_run(store: Store, config: Config, stage: str) -> str:
    """Return the id of the stage's parent run, looked up by the stage's request or created."""
    return parent_run(store, stage, request_digest(config, stage))


def parent_run(store: Store, stage: str, digest: str) -> str:
    """Return the id of the parent run of a stage, looked up by ``canal.stage_key`` or created."""
    wanted = f"{stage}-{digest[:16]}"
    tags = {STAGE_KEY: wanted, f"{TAG}stage": stage, f"{TAG}step": "stage"}
    client = store.client
    with store.translated_errors():
        runs = client.search_runs(
            [store.experiment_id],
            f"tags.`{STAGE_KEY}` = '{wanted}' and tags.`{TAG}step` = 'stage'",
            max_results=1,
        )
        if runs:
            return str(runs[0].info.run_id)
        run = client.create_run(store.experiment_id, run_name=stage, tags=tags)
        client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)


def start_entry_point(store: Store, config: Config, entry_point: str, stage: str) -> None:
    """Run an entry point of MLproject as a child of the stage's parent run, and wait for it.

    Raises
    ------
    TrainingError
        If the step fails; its output says why.
    """
    quiet_libraries()
    import mlflow.projects
    from mlflow.exceptions import ExecutionException

    how = _backend(store, entry_point)
    run_id = stage_run(store, config, stage)
    parameters = {} if entry_point == "pretrain" else {"stage": stage}
    with mlflow.start_run(run_id=run_id):
        try:
            mlflow.projects.run(  # type: ignore[no-untyped-call]
                uri=_address(store.layout.root),
                entry_point=entry_point,
                parameters=parameters,
                experiment_id=store.experiment_id,
                **how,
                env_manager="local",
                run_name=f"{entry_point} {stage}",
            )
        except ExecutionException as error:
            raise TrainingError(f"{entry_point} of {stage!r} failed, see above: {error}") from error


def _address(root: Path) -> str:
    """Return the project's address for MLflow, which takes the part of a path behind a # for a folder."""
    return "." if root == Path.cwd() else str(root)


def _backend(store: Store, entry_point: str) -> dict[str, Any]:
    """Return the backend that starts a step: a fork with MLflow imported, or MLflow's own.

    Forking is not safe on macOS, nor once a store is open: two processes must not share a database's
    connections.
    """
    from canal.registry.forked import NAME, SPARE, Spare, import_stores

    if sys.platform != "linux" or store.opened:
        return {"backend": "local"}
    if "://" in store.uri and not store.uri.startswith("http"):
        import_stores()
    return {"backend": NAME, "backend_config": {SPARE: Spare(_AHEAD.get(entry_point, ()))}}


@dataclass(frozen=True)
class StepRun:
    """The MLflow run of one step: where its params, metrics, inputs and artifacts go."""

    store: Store
    run_id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones with dotted names."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST]) for name, value in flat(values)]
        self.store.client.log_batch(self.run_id, params=params)

    def metrics(self, values: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers at a step (an epoch); None is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [
            Metric(name, float(value), now, step) for name, value in values.items() if value is not None
        ]
        self.store.client.log_batch(self.run_id, metrics=entities)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.store.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def dataset(self, name: str, path: Path, context: str) -> None:
        """Log a file as an input of the run, under the MD5 that DVC gives it."""
        import mlflow
        from mlflow.data.dataset_source_registry import get_dataset_source_from_json
        from mlflow.data.meta_dataset import MetaDataset

        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        source = get_dataset_source_from_json(json.dumps({"uri": str(path)}), source_type="local")
        data = MetaDataset(source, name=name, digest=digest)  # type: ignore[abstract]
        mlflow.log_input(data, context=context)

    def artifacts(self, folder: Path, place: str) -> None:
        """Log a folder's files below ``place``."""
        self.store.client.log_artifacts(self.run_id, str(folder), place)


@contextmanager
def step_run(store: Store, config: Config, stage: str, step: str, run_id: str) -> Iterator[StepRun]:
    """Log into the run MLflow started this process for, tagged with stage, commit and stage key."""
    import mlflow

    _ = store.client
    commit = current_commit(store.layout.root)
    with mlflow.start_run(run_id=run_id) as run:
        logged = StepRun(store, run.info.run_id)
        logged.tags(
            {
                f"{TAG}stage": stage,
                f"{TAG}step": step,
                STAGE_KEY: f"{stage}-{request_digest(config, stage)[:16]}",
                f"{TAG}git_commit": commit.sha or "none",
                f"{TAG}dirty": str(commit.dirty).lower(),
            }
        )
        yield logged


@dataclass(frozen=True)
class Trials:
    """The finished trials of a study.

    Attributes
    ----------
    stage, study : str
        The stage that is tuned, and the digest of the study.
    documents : Mapping
        Each as `canal.tuning.document` describes it, by Optuna's number.
    times : Mapping
        When each began and ended, in milliseconds since 1970.
    """

    stage: str
    study: str
    documents: Mapping[int, Mapping[str, Any]]
    times: Mapping[int, tuple[int, int]] = field(default_factory=dict)


def log_trials(logged: StepRun, trials: Trials) -> None:
    """Log every trial once, as a child of this step's run, with its start and end.

    Trials logged by an earlier, killed step become children of this step's run.
    """
    client, experiment = logged.store.client, logged.store.experiment_id
    wanted = f"tags.`{TAG}study` = '{trials.study}' and tags.`{TAG}step` = 'trial'"
    runs = {
        int(run.data.tags[f"{TAG}trial"]): run
        for run in client.search_runs([experiment], wanted, max_results=10_000)
    }
    for number, trial in trials.documents.items():
        run, (began, ended) = runs.get(number), trials.times.get(number, (None, None))
        if run is None:
            tags = {f"{TAG}study": trials.study, f"{TAG}step": "trial", f"{TAG}trial": str(number)}
            run = client.create_run(
                experiment,
                start_time=began,
                run_name=f"trial {trial['number']} {trials.stage}",
                tags=tags | {PARENT_RUN: logged.run_id},
            )
        elif run.data.tags.get(PARENT_RUN) != logged.run_id:
            client.set_tag(run.info.run_id, PARENT_RUN, logged.run_id)
        if run.info.status == "RUNNING":
            _fill(StepRun(logged.store, run.info.run_id), trial)
            client.set_terminated(run.info.run_id, _STATUS[trial["state"]], ended)


def _fill(run: StepRun, trial: Mapping[str, Any]) -> None:
    run.params(trial["settings"])
    run.metrics({name: trial[name] for name in TRIAL_MEASURES})
    for epoch, value in trial["curve"].items():
        run.metrics({"value_by_epoch": value}, int(epoch))
    tags = {f"{TAG}state": trial["state"], f"{TAG}published": str(trial["published"]).lower()}
    run.tags(tags | ({f"{TAG}reason": trial["reason"]} if trial["reason"] else {}))


def epoch_numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of an epoch's record with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from epoch_numbers(value, f"{path}{name}.")
        elif isinstance(value, int | float):
            yield f"{path}{name}", float(value)
