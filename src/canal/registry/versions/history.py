"""The past is not retrained: a stage that was learned is restored, or the wish to change it is refused."""

import shutil
from pathlib import Path

from canal.config.params import Config
from canal.core.digests import file_digest, json_digest
from canal.core.errors import HistoryError, RegistryError
from canal.core.files import new_folder
from canal.registry.ledger.ledger import ledger_records
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
    """Return the ready version that is exactly what params.yaml asks ``stage`` to be, or None.

    None means that this branch of the stage was never learned here, so it may be; what was imported from
    another project does not count. The parent is found by the request's chain, never by an alias.

    Raises
    ------
    HistoryError
        If this branch was learned with other data or parameters, which says what differs; or if the ledger
        knows a version of it that the store lacks.
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
            return version
    if versions:
        raise HistoryError(_refusal(store, versions[-1], request))
    _refuse_unknown(store, stage, request["branch"])
    return None


def _refuse_unknown(store: Store, stage: str, branch: int) -> None:
    """Refuse to learn what the ledger says was learned: this store is another one, or lost a version.

    A project whose own store is lost altogether is learned and rebuilt, as ever.
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
            f"(entry {entry.seq}), but the MLflow store {store.shown} has no such version, and the past is "
            f"not learned again. {_way_back(store, stage)}"
        )


def _way_back(store: Store, stage: str) -> str:
    """Return what to do where a store lacks a version of the ledger."""
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
    """Refuse to learn a stage whose source is not there.

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

    A copy that was damaged on this disk is brought again from the store.

    Raises
    ------
    RegistryError
        Naming every file that does not hold what key.json says.
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
    """Put the model folder of a registered version back, byte for byte."""
    folder, key = verified(store, version)
    with new_folder(target) as temporary:
        for name in (*key["files"], KEY_FILE):
            _copy(folder / name, temporary / name)


def restore_file(store: Store, version: Version, name: str, target: Path) -> None:
    """Put one file of a registered version back, such as its panel, split or verdict.

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
    """Put the measures of a registered version back, checked against record.json and its registered digest.

    Raises
    ------
    RegistryError
        If the record or a measure holds other bytes than registered.
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
    lines = differences(request, read_key(store.artifacts(version))["request"])
    own = [line for line in lines if not line.startswith("parent.request:")]
    above = [
        "its parent, or an ancestor, is asked for with other data or parameters than it was learned with"
    ]
    alone = any(line.startswith("continual.") for line in own)
    return (
        f"stage {version.stage!r} was already learned (version {version.number}) from something else, "
        f"and the past is not retrained. What differs:\n  "
        + "\n  ".join(own or above)
        + "\nSet it back; "
        + ("or set it for a new stage alone (stages.NAME.continual); " if alone else "")
        + f"or start a new branch of the lineage with `canal stage relearn {version.stage}`."
    )
