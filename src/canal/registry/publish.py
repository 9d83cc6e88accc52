"""A finished folder becomes a version, visible only when whole.

Artifacts first, then manifests, then the version, then its ``status=ready`` tag.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.digests import file_digest
from canal.files import scratch_folder
from canal.registry.bundle import RECORD_FILE, assemble, read_record, write_record
from canal.registry.code import current_commit
from canal.registry.key import check_files, key_digest, read_key
from canal.registry.machine import cpu_capability
from canal.registry.store import LOGGED, READY, TAG, Store, Version


@dataclass(frozen=True)
class Publication:
    """What is to become a version.

    Attributes
    ----------
    model : str
        The registered model.
    folder : Path
        What was learned, or imported, with its key.json.
    run_id : str
        The MLflow run it belongs to.
    parent : Version or None
        The version whose key it names as its parent.
    extras : Mapping
        Name in the version -> file or folder; see `canal.registry.bundle.assemble`.
    pyfunc : bool
        Whether the model answers.
    facts : Mapping
        What record.json says instead of, or beside, what is found here and now.
    tags : Mapping
        Tags of the version beside those that every version has.
    """

    model: str
    folder: Path
    run_id: str
    parent: Version | None
    extras: Mapping[str, Path]
    pyfunc: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def whole_key(folder: Path) -> str:
    """Return the digest of a folder's key; raises `RegistryError` if a file is not what the key says."""
    check_files(folder, read_key(folder)["files"])
    return key_digest(folder)


def published(store: Store, model: str, key: str) -> Version | None:
    """Return the ready version with this key; what was left half made by a kill is removed first.

    A version without a key was made by somebody else's hand: it is not canal's to remove.
    """
    for version in store.versions(model):
        if not version.ready:
            if not version.key:
                continue
            with store.speaking():
                store.client.delete_model_version(model, str(version.number))
        elif version.key == key:
            return version
    return None


def publish(store: Store, what: Publication) -> Version:
    """Store the bundle, make the version and return it; the caller holds the registry's lock."""
    with scratch_folder("version") as scratch:
        bundle = scratch / "version"
        assemble(what.folder, what.extras, bundle, what.pyfunc)
        write_record(bundle, {**_facts(store, what), **what.facts})
        return enlist(store, bundle, what)


def enlist(store: Store, bundle: Path, what: Publication) -> Version:
    """Store a folder that is whole, manifests and all, make it a version and return that."""
    key, record, parent = read_key(bundle), read_record(bundle), what.parent
    source = _upload(store, key["stage"], bundle, what.run_id)
    tags = {
        f"{TAG}stage": key["stage"],
        f"{TAG}branch": str(key["branch"]),
        f"{TAG}key": key_digest(bundle),
        f"{TAG}request": key["request_digest"],
        f"{TAG}record": file_digest(bundle / RECORD_FILE),
        f"{TAG}parent": str(parent.number) if parent else "",
        f"{TAG}parent_key": key["parent"] or "",
        f"{TAG}git_commit": record["git_commit"] or "",
        f"{TAG}dirty": str(record["dirty"]).lower(),
    }
    store.make_model(what.model)
    with store.speaking():
        number = _create_version(store, what.model, source, what.run_id, {**tags, **what.tags})
        store.client.set_tag(what.run_id, f"{TAG}version", str(number))
        store.client.set_tag(what.run_id, f"{TAG}parent_version", str(parent.number) if parent else "none")
    return next(version for version in store.versions(what.model) if version.number == number)


def _create_version(store: Store, model: str, source: str, run_id: str, tags: dict[str, str]) -> int:
    """Make the version; ``status=ready`` comes last, in a call of its own."""
    made = store.client.create_model_version(
        model, source=source, run_id=run_id, tags=tags, model_id=source.removeprefix(LOGGED)
    )
    store.client.set_model_version_tag(model, made.version, "status", READY)
    return int(made.version)


def _upload(store: Store, stage: str, bundle: Path, run_id: str) -> str:
    """Store the bundle as a logged model of the stage's run and return its address."""
    with store.speaking():
        logged = store.client.create_logged_model(
            experiment_id=store.experiment_id, name=stage, source_run_id=run_id, model_type="canal"
        )
        store.client.log_model_artifacts(logged.model_id, str(bundle))
        store.client.finalize_logged_model(logged.model_id, "READY")
    return f"{LOGGED}{logged.model_id}"


def _facts(store: Store, what: Publication) -> dict[str, Any]:
    commit, parent = current_commit(store.layout.root), what.parent
    return {
        "run": what.run_id,
        "parent": None if parent is None else {"model": parent.model, "version": parent.number},
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_capability(),
        "user": os.environ.get("USER", ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit.sha,
        "dirty": commit.dirty,
    }
