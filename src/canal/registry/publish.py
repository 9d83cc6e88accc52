"""A finished folder becomes a version, visible only when whole.

Artifacts first, then manifests, then the version, then its ``status=ready`` tag.
"""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.files import scratch_folder
from canal.registry.bundle import RECORD_FILE, assemble, read_record, write_record
from canal.registry.code import cpu_capability, current_commit
from canal.registry.key import check_files, key_digest, read_key
from canal.registry.pages import FLAG, FORMAT, Pages, show
from canal.registry.store import KIND, LOGGED, READY, TAG, Store, Version

MODEL_VERSIONS = "mlflow.modelVersions"
"""The tag by which MLflow's page of a logged model links to its version."""


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
        model_id = _begin(store, what)
        assemble(what.folder, what.extras, bundle, what.pyfunc, model_id)
        write_record(bundle, {**_facts(store, what), **what.facts, FLAG: FORMAT})
        with store.speaking():
            store.client.log_model_artifacts(model_id, str(bundle))
            store.client.finalize_logged_model(model_id, "READY")
        return _enlist(store, bundle, what, model_id)


def _begin(store: Store, what: Publication) -> str:
    """Make the logged model that will hold a version's files, and return its id, which stands among them.

    An experiment that an older canal made is told its kind.
    """
    with store.speaking():
        there = store.client.get_experiment(store.experiment_id).tags
        for name in KIND.keys() - there.keys():
            store.client.set_experiment_tag(store.experiment_id, name, KIND[name])
        made = store.client.create_logged_model(
            experiment_id=store.experiment_id,
            name=read_key(what.folder)["stage"],
            source_run_id=what.run_id,
            model_type="canal",
        )
    return str(made.model_id)


def _enlist(store: Store, bundle: Path, what: Publication, model_id: str) -> Version:
    """Make a version of a folder that is stored whole, manifests and all, and return it."""
    key, record, parent = read_key(bundle), read_record(bundle), what.parent
    pages = Pages(bundle, key, record)
    tags = {
        "stage": key["stage"],
        "branch": str(key["branch"]),
        "key": key_digest(bundle),
        "request": key["request_digest"],
        "record": file_digest(bundle / RECORD_FILE),
        "parent": str(parent.number) if parent else "",
        "parent_key": key["parent"] or "",
        "git_commit": record["git_commit"] or "",
        "dirty": str(record["dirty"]).lower(),
        **pages.tags,
    }
    tags = {f"{TAG}{name}": value for name, value in tags.items()}
    store.make_model(what.model)
    with store.speaking():
        show(store.client, pages, what.run_id, model_id, _model_id(parent))
        number = _create_version(store, what, model_id, {**tags, **what.tags}, pages)
    return next(version for version in store.versions(what.model) if version.number == number)


def _create_version(
    store: Store, what: Publication, model_id: str, tags: dict[str, str], pages: Pages
) -> int:
    """Make the version; ``status=ready`` comes last of all: what a kill leaves before it is no version."""
    client, model, parent = store.client, what.model, what.parent
    made = client.create_model_version(
        model, source=f"{LOGGED}{model_id}", run_id=what.run_id, tags=tags, model_id=model_id
    )
    number = int(made.version)
    client.update_model_version(model, str(number), pages.description(number))
    client.set_logged_model_tags(model_id, {MODEL_VERSIONS: json.dumps([{"name": model, "version": number}])})
    client.set_tag(what.run_id, f"{TAG}version", str(number))
    client.set_tag(what.run_id, f"{TAG}parent_version", str(parent.number) if parent else "none")
    client.set_model_version_tag(model, str(number), "status", READY)
    return number


def _model_id(version: Version | None) -> str | None:
    return None if version is None else version.source.removeprefix(LOGGED)


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
