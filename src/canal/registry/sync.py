"""`canal registry sync`: every whole model folder that the registry does not know becomes a version.

It stands outside DVC, since DVC restores outs without running what made them. A version is visible only when
whole: artifacts, manifests, then the version, then its ``status=ready`` tag, then the ``candidate`` alias.
"""

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.config import BACKBONE, Config
from canal.digests import file_digest
from canal.errors import RegistryError
from canal.layout import Layout
from canal.registry.bundle import RECORD_FILE, assemble, write_record
from canal.registry.code import current_commit
from canal.registry.key import KEY_FILE, Key, check_files, key_digest, read_key
from canal.registry.store import READY, TAG, Store, Version
from canal.registry.tracking import stage_run

CANDIDATE = "candidate"

DrawFigures = Callable[[str], Path]
"""Returns the folder of a stage's figures; handed in, since the report room lies above this one."""


@dataclass(frozen=True)
class Synced:
    """What sync found: versions made now, and versions that were there."""

    made: tuple[Version, ...]
    known: tuple[Version, ...]


def sync(store: Store, layout: Layout, config: Config, draw: DrawFigures) -> Synced:
    """Register every finished stage, oldest first; a second call finds nothing to do.

    Raises
    ------
    RegistryError
        If a model folder does not hold what its key says, or a stage's parent is not registered.
    """
    made: list[Version] = []
    known: list[Version] = []
    with store.lock("registry"):
        for stage in (BACKBONE, *config.stages):
            if not _finished(layout, stage):
                continue
            key = _whole_key(layout.model(stage))
            version = _registered(store, _model_name(store, stage), key)
            if version is None:
                made.append(_register(store, layout, config, stage, draw))
            else:
                known.append(version)
        _move_candidate(store)
    return Synced(tuple(made), tuple(known))


def _finished(layout: Layout, stage: str) -> bool:
    """Whether a stage was learned and measured: DVC makes outs whole, so their manifests tell."""
    measured = stage == BACKBONE or (layout.metrics(stage) / "evaluation.json").is_file()
    return (layout.model(stage) / KEY_FILE).is_file() and measured


def _whole_key(folder: Path) -> str:
    check_files(folder, read_key(folder)["files"])
    return key_digest(folder)


def _registered(store: Store, model: str, key: str) -> Version | None:
    """Return the ready version with this key; what a killed sync left half made is removed first."""
    for version in store.versions(model):
        if not version.ready:
            store.client.delete_model_version(model, str(version.number))
        elif version.key == key:
            return version
    return None


def _register(store: Store, layout: Layout, config: Config, stage: str, draw: DrawFigures) -> Version:
    model, folder = _model_name(store, stage), layout.model(stage)
    key = read_key(folder)
    parent = _parent_version(store, key, stage)
    run_id = stage_run(store, config, stage)
    with tempfile.TemporaryDirectory(prefix="canal-version-") as scratch:
        bundle = Path(scratch) / "version"
        assemble(folder, _extras(layout, stage, draw(stage)), bundle, pyfunc=stage != BACKBONE)
        write_record(bundle, _facts(layout, run_id, parent))
        source = _upload(store, stage, bundle, run_id)
        record = file_digest(bundle / RECORD_FILE)
    tags = {
        f"{TAG}stage": stage,
        f"{TAG}branch": str(key["branch"]),
        f"{TAG}key": key_digest(folder),
        f"{TAG}request": key["request_digest"],
        f"{TAG}record": record,
        f"{TAG}parent": str(parent.number) if parent else "",
        f"{TAG}parent_key": key["parent"] or "",
    }
    number = _create_version(store, model, source, run_id, tags)
    store.client.set_tag(run_id, f"{TAG}version", str(number))
    store.client.set_tag(run_id, f"{TAG}parent_version", str(parent.number) if parent else "none")
    return next(version for version in store.versions(model) if version.number == number)


def _create_version(store: Store, model: str, source: str, run_id: str, tags: dict[str, str]) -> int:
    """Make the version; ``status=ready`` comes last, in a call of its own."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.get_registered_model(model)
    except MlflowException:
        store.client.create_registered_model(model, description="Made by `canal registry sync`.")
    made = store.client.create_model_version(model, source=source, run_id=run_id, tags=tags)
    store.client.set_model_version_tag(model, made.version, "status", READY)
    return int(made.version)


def _upload(store: Store, stage: str, bundle: Path, run_id: str) -> str:
    """Store the bundle as a logged model of the stage's run and return its address."""
    logged = store.client.create_logged_model(
        experiment_id=store.experiment_id, name=stage, source_run_id=run_id, model_type="canal"
    )
    store.client.log_model_artifacts(logged.model_id, str(bundle))
    store.client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}"


def _move_candidate(store: Store) -> None:
    """Point ``candidate`` at the newest ready version; it moves only when it must."""
    ready = [version for version in store.versions() if version.ready]
    if ready and CANDIDATE not in ready[-1].aliases:
        newest = ready[-1]
        store.client.set_registered_model_alias(newest.model, CANDIDATE, str(newest.number))


def _parent_version(store: Store, key: Key, stage: str) -> Version | None:
    """Find the parent by its key, never by an alias."""
    if key["parent"] is None:
        return None
    for model in (store.names.model, store.names.backbone):
        for version in store.versions(model):
            if version.ready and version.key == key["parent"]:
                return version
    raise RegistryError(
        f"stage {stage!r} was learned from a model with key {key['parent'][:12]}... that is not registered; "
        "run `make run`, or bring the registry that holds it"
    )


def _extras(layout: Layout, stage: str, figures: Path) -> dict[str, Path]:
    return {
        "metrics": layout.metrics(stage),
        "validation/data_docs": layout.data_docs(stage),
        "figures": figures,
    }


def _facts(layout: Layout, run_id: str, parent: Version | None) -> dict[str, Any]:
    commit = current_commit(layout.root)
    return {
        "run": run_id,
        "parent": None if parent is None else {"model": parent.model, "version": parent.number},
        "host": platform.node(),
        "platform": platform.platform(),
        "user": os.environ.get("USER", ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit.sha,
        "dirty": commit.dirty,
    }


def _model_name(store: Store, stage: str) -> str:
    return store.names.backbone if stage == BACKBONE else store.names.model
