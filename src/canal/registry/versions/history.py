"""Learned stages are restored from the registry, not retrained; changed data or parameters are refused."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest, json_digest
from canal.core.errors import HistoryError, RegistryError
from canal.core.files import new_folder, read_json, write_json
from canal.core.progress import doing
from canal.registry.ledger.joined import ledger_records
from canal.registry.ledger.ledger_rules import LOST
from canal.registry.ledger.rulings import measured, remeasured
from canal.registry.manifest.stage_request import Request, differences, learning_part, stage_request
from canal.registry.manifest.version_folder import (
    EVALUATION,
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
        if version.request == digest or learned_request(store, version) == digest:
            _refuse_erased(version)
            return version
    if versions:
        raise HistoryError(_refusal(store, versions[-1], request))
    _refuse_unknown(store, stage, request["branch"])
    return None


def learned_request(store: Store, version: Version) -> str:
    """Return the digest of what a version was learned by, as requests are written today.

    Requests of an older canal also hold what only measures, and so do those of its parents, to which they
    chain: each is read from its version's key.json.
    """
    return json_digest(_learned_part(store, read_key(store.manifests(version))["request"]))


def _learned_part(store: Store, request: Mapping[str, Any]) -> Request:
    """Return a recorded request without what only measures, as `learning_part` has it."""
    parent = request.get("parent")
    if not isinstance(parent, Mapping):
        return learning_part(request, None)
    versions = (one for model in store.models for one in store.versions(model))
    known = next((one for one in versions if one.ready and one.request == parent["request"]), None)
    above = str(parent["request"]) if known is None else learned_request(store, known)
    return learning_part(request, above)


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
    _require_source(config, config.stages[stage].source, f"stage {stage!r}")


def require_corpora_available(config: Config) -> None:
    """Refuse to pretrain a backbone if an unlabelled source is not available.

    Raises
    ------
    HistoryError
        If a source is marked ``available: false``.
    """
    for source in config.backbone.unlabelled:
        _require_source(config, source, BACKBONE)


def _require_source(config: Config, source: str, learns: str) -> None:
    if not config.sources[source].available:
        raise HistoryError(
            f"{learns} was never registered as params.yaml asks for it, and its source {source!r} "
            "is marked available: false, so it cannot be learned now. Set available: true, or bring the "
            "registry (mlflow.db and mlartifacts/) that holds its version."
        )


@doing("checking the files of the version")
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


def restore_metrics(
    store: Store, version: Version, target: Path, novelty: Mapping[str, Any] | None = None
) -> None:
    """Restore the metrics of a registered version, checked against record.json and its registered digest.

    ``novelty`` are figures of held-out types that were measured later; by default those of the version's
    newest measurement.

    Raises
    ------
    RegistryError
        If the record or a metrics file holds other bytes than registered.
    """
    folder = store.artifacts(version)
    digests = _record_files(folder, version)
    measures = {name: digest for name, digest in digests.items() if name.startswith("metrics/")}
    check_files(folder, measures)
    evaluation = current_evaluation(store, version)
    if novelty is not None:
        evaluation["novelty"] = {**evaluation["novelty"], **novelty}
    with new_folder(target) as temporary:
        for name in measures:
            _copy(folder / name, temporary / name.removeprefix("metrics/"))
        if evaluation != read_json(folder / EVALUATION):
            write_json(temporary / Path(EVALUATION).name, evaluation)


# Measurements of a version: that with which it was registered, and those that followed it in the ledger. They
# differ in the types that were held out, which nothing is learned from.


def evaluations_of(store: Store, version: Version) -> list[dict[str, Any]]:
    """Return a version's evaluation as it was registered, then as each later measurement changed it.

    The file is read as it is: audits compare it with its digest.

    Raises
    ------
    LedgerError
        If the ledger does not hold.
    """
    registered = read_json(store.artifacts(version) / EVALUATION)
    later = measured(ledger_of(store).entries(), version.model, version.key)
    return [registered, *(remeasured(registered, entry) for entry in later)]


def current_evaluation(store: Store, version: Version) -> dict[str, Any]:
    """Return a version's evaluation with its newest measurement; see `evaluations_of`."""
    return evaluations_of(store, version)[-1]


def measured_as_asked(
    store: Store, version: Version, holdouts: Sequence[str] | None
) -> Mapping[str, Any] | None:
    """Return the newest figures of a version on the types that are to be held out; None: not measured yet.

    ``holdouts`` is ``novelty.holdouts`` of params.yaml; None stands for all types that the version knows.
    """
    evaluations = reversed(evaluations_of(store, version))
    return next((_figures(one) for one in evaluations if _is_asked(one, holdouts)), None)


def newly_measured(
    store: Store, version: Version, metrics: Path, holdouts: Sequence[str] | None
) -> Mapping[str, Any] | None:
    """Return the figures in a metrics folder, if they are of the types asked for and the newest are not.

    None for a folder whose other figures are not those of the version, and for one that cannot be read.
    """
    now = current_evaluation(store, version)
    if _is_asked(now, holdouts):
        return None
    try:
        here = read_json(metrics / Path(EVALUATION).name)
        figures = _figures(here)
        alike = {**now, "novelty": {**now["novelty"], **figures}} == here
        return figures if alike and _is_asked(here, holdouts) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # what is damaged in the folder is found by audits, which compare it with dvc.lock


def _is_asked(evaluation: Mapping[str, Any], holdouts: Sequence[str] | None) -> bool:
    figures = _figures(evaluation)
    types = {*(one["type"] for one in figures["holdouts"]), *figures["not_measured"]}
    return types == set(evaluation["labels"] if holdouts is None else holdouts)


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation says of held-out types."""
    novelty = evaluation["novelty"]
    empty: dict[str, Any] = {"holdouts": [], "h_score": None, "auroc": None, "not_measured": {}}
    return {name: novelty.get(name, value) for name, value in empty.items()}


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
    lines = differences(request, _learned_part(store, read_key(store.manifests(version))["request"]))
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
