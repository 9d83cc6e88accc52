"""Learned stages are restored from the registry, not retrained; changed data or parameters are refused."""

import shutil
from pathlib import Path

from canal.config.params import Config
from canal.core.digests import file_digest, json_digest
from canal.core.errors import HistoryError, RegistryError
from canal.core.files import new_folder
from canal.registry.ledger.joined import ledger_records
from canal.registry.ledger.ledger_rules import LOST
from canal.registry.manifest.stage_request import differences, stage_request
from canal.registry.manifest.version_folder import (
    KEY_FILE,
    RECORD_FILE,
    Key,
    check_files,
    read_key,
    read_record,
)
from canal.registry.promotion.moves import ledger_of
from canal.registry.store.connection import local_uri
from canal.registry.store.database import Version
from canal.registry.store.store import Store, fetch_again, require_rebuilt


def learned(store: Store, config: Config, stage: str) -> Version | None:
    """Return the ready version with exactly the request that params.yaml gives ``stage``, or None.

    None means that this branch of the stage was never learned here, so it may be learned; versions imported
    from another project do not count. The request names the parent's request, so no alias matters.

    Raises
    ------
    HistoryError
        If this branch was learned with other data or parameters (lists the differences), or if the ledger
        names a version of it that the store lacks.
    """
    request = stage_request(config, stage)
    digest = json_digest(request)
    versions = [
        version
        for version in store.versions(store.model_of(stage))
        if version.ready
        and not version.imported
        and (version.stage, version.branch) == (stage, request["branch"])
    ]
    for version in reversed(versions):
        if version.request == digest:
            _refuse_erased(version)
            return version
    if versions:
        raise HistoryError(_refusal(store, versions[-1], request))
    _refuse_unknown(store, stage, request["branch"])
    return None


def _refuse_erased(version: Version) -> None:
    """Refuse a version whose files were erased: params.yaml of before asks for the cells that it held."""
    if version.erased:
        raise HistoryError(
            f"params.yaml asks for stage {version.stage!r} as version {version.number}, which was erased "
            "with the cells that it held: take params.yaml of since then (git checkout), or leave these "
            "cells out (sources.NAME.exclude) and start a new branch with `canal stage relearn "
            f"{version.stage}`"
        )


def _refuse_unknown(store: Store, stage: str, branch: int) -> None:
    """Refuse to learn a stage whose version the ledger names and this store lacks.

    A project whose own store is lost altogether is rebuilt instead.
    """
    require_rebuilt(store)
    model, entries = store.model_of(stage), ledger_of(store).entries()
    for entry in reversed(ledger_records(entries).values()):
        details = entry.document["details"]
        if (entry.model, details.get("stage"), details.get("branch")) != (model, stage, branch):
            continue
        if details.get(LOST) or details.get("imported"):
            continue
        if not store.remote and not (store.versions(store.names.backbone) or store.versions()):
            return
        raise HistoryError(
            f"{store.layout.ledger.name} says that stage {stage!r} was learned as {model} {entry.version} "
            f"(entry {entry.seq}), but the MLflow store {store.shown} has no such version, and a learned "
            f"stage is not learned again. {_way_back(store, stage)}"
        )


def _way_back(store: Store, stage: str) -> str:
    """Return advice for a store that lacks a version of the ledger."""
    if store.remote and store.layout.database.is_file():
        return (
            "The project has a store of its own: leave out MLFLOW_TRACKING_URI, or, where `mlflow run` hands "
            f"down a store of the folder it was started in, set it to {local_uri(store.layout)}"
        )
    if store.remote:
        return (
            "Point MLFLOW_TRACKING_URI to the store that has it; one that is lost is made again by "
            "`canal registry rebuild`"
        )
    return (
        "Bring back a copy of mlflow.db and mlartifacts/ that has it, or start a new branch of the lineage "
        f"with `canal stage relearn {stage}`"
    )


def require_available(config: Config, stage: str) -> None:
    """Refuse to learn a stage whose source is not available.

    Raises
    ------
    HistoryError
        If the source is marked ``available: false``.
    """
    source = config.stages[stage].source
    if not config.sources[source].available:
        raise HistoryError(
            f"stage {stage!r} was never registered as params.yaml asks for it, and its source {source!r} "
            "is marked available: false, so it cannot be learned now. Set available: true, or bring the "
            "registry (mlflow.db and mlartifacts/) that holds its version."
        )


def verified(store: Store, version: Version) -> tuple[Path, Key]:
    """Return a version's artifacts and key after checking every file against its digest.

    A damaged copy of a remote version is downloaded again.

    Raises
    ------
    RegistryError
        Naming every file that differs from its digest in key.json.
    """
    folder = store.artifacts(version)
    try:
        return folder, _checked_key(folder, version)
    except RegistryError:
        if not fetch_again(store, version):
            raise
    folder = store.artifacts(version)
    return folder, _checked_key(folder, version)


def _checked_key(folder: Path, version: Version) -> Key:
    key = read_key(folder)
    digest = file_digest(folder / KEY_FILE)
    if digest != version.key:
        raise RegistryError(
            f"version {version.number}: key.json has sha256 {digest[:12]}..., "
            f"registered was {version.key[:12]}..."
        )
    check_files(folder, key["files"])
    return key


def restore_model(store: Store, version: Version, target: Path) -> None:
    """Restore the model folder of a registered version, byte for byte."""
    folder, key = verified(store, version)
    with new_folder(target) as temporary:
        for name in (*key["files"], KEY_FILE):
            _copy(folder / name, temporary / name)


def restore_file(store: Store, version: Version, name: str, target: Path) -> None:
    """Restore one file of a registered version, such as its panel, split or verdict.

    Raises
    ------
    RegistryError
        If the version has no such file, or other bytes than recorded.
    """
    folder = store.artifacts(version)
    digest = read_key(folder)["files"].get(name)
    if digest is None:
        raise RegistryError(f"version {version.number} ({version.stage}) holds no {name}")
    check_files(folder, {name: digest})
    _copy(folder / name, target)


def restore_metrics(store: Store, version: Version, target: Path) -> None:
    """Restore the metrics of a registered version, checked against record.json and its registered digest.

    Raises
    ------
    RegistryError
        If the record or a metrics file holds other bytes than registered.
    """
    folder = store.artifacts(version)
    digests = _record_files(folder, version)
    measures = {name: digest for name, digest in digests.items() if name.startswith("metrics/")}
    check_files(folder, measures)
    with new_folder(target) as temporary:
        for name in measures:
            _copy(folder / name, temporary / name.removeprefix("metrics/"))


def recorded(store: Store, version: Version, name: str) -> Path:
    """Return the path of one file that record.json covers, after checking its bytes.

    Raises
    ------
    RegistryError
        If the version has no such file, or it or the record holds other bytes than registered.
    """
    folder = store.artifacts(version)
    digest = _record_files(folder, version).get(name)
    if digest is None:
        raise RegistryError(f"version {version.number} ({version.stage}) holds no {name}")
    check_files(folder, {name: digest})
    return folder / name


def _record_files(folder: Path, version: Version) -> dict[str, str]:
    if not (folder / RECORD_FILE).is_file() or file_digest(folder / RECORD_FILE) != version.record:
        raise RegistryError(f"version {version.number}: record.json is not the one that was registered")
    files: dict[str, str] = read_record(folder)["files"]
    return files


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _refusal(store: Store, version: Version, request: dict[str, object]) -> str:
    lines = differences(request, read_key(store.manifests(version))["request"])
    own = [line for line in lines if not line.startswith("parent.request:")]
    above = [
        "its parent, or an ancestor, is asked for with other data or parameters than it was learned with"
    ]
    alone = any(line.startswith("continual.") for line in own)
    return (
        f"stage {version.stage!r} was already learned (version {version.number}) with another request, "
        f"and a learned stage is not retrained. What differs:\n  "
        + "\n  ".join(own or above)
        + "\nSet it back; "
        + ("or set it for a new stage alone (stages.NAME.continual); " if alone else "")
        + f"or start a new branch of the lineage with `canal stage relearn {version.stage}`."
    )
