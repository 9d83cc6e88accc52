"""Registration of model folders as versions, one by one or all by `canal registry sync`.

Artifacts are stored first, then manifests, then the version, then its ``status=ready`` tag, without which no
version is visible; last come the ledger's entry and the ``candidate`` alias. `sync` is no DVC stage, since
DVC restores outs without running the command that made them.

An imported backbone begins a lineage that was not learned here. ``backbones/<name>`` holds the weights with a
key of their own. ``models/backbone`` holds the same bytes under ``model/`` and that key as ``imported.json``,
so that sync can register the import from what DVC pulled.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.sections import BACKBONE
from canal.core.digests import file_digest, json_digest
from canal.core.errors import RegistryError
from canal.core.files import read_json, scratch_folder
from canal.core.progress import doing
from canal.registry.ledger.ledger import Sign
from canal.registry.manifest.card import README, Card, lineage_data, write_sources
from canal.registry.manifest.pages import FLAG, FORMAT, Pages, show
from canal.registry.manifest.stage_request import cpu_capability, current_commit
from canal.registry.manifest.version_folder import (
    EVALUATION,
    IMPORT_KEY,
    IMPORTED,
    KEY_FILE,
    RECORD_FILE,
    Key,
    assemble,
    check_files,
    key_digest,
    read_key,
    read_record,
    write_record,
)
from canal.registry.promotion.moves import moving
from canal.registry.promotion.promotion import Decision, measurement_entry, register_entry
from canal.registry.store.connection import KIND
from canal.registry.store.database import LOGGED, READY, Version
from canal.registry.store.store import TAG, Store
from canal.registry.store.tracking import parent_run
from canal.registry.versions.history import newly_measured

MODEL_VERSIONS = "mlflow.modelVersions"
"""The tag that links a logged model to its version in MLflow's pages."""

DrawFigures = Callable[[str], Path]
"""Returns the folder of a stage's figures; handed in, since the report room lies above this one."""
_MODEL = "model"


@dataclass(frozen=True)
class Publication:
    """The content of a version to be registered.

    Attributes
    ----------
    model : str
        The registered model.
    folder : Path
        The folder of the model, with its key.json.
    run_id : str
        The MLflow run of its stage.
    parent : Version or None
        The version with the parent's key.
    extras : Mapping
        Name in the version -> file or folder; see `canal.registry.manifest.version_folder.assemble`.
    pyfunc : bool
        Whether the model annotates cells.
    facts : Mapping
        Facts for record.json, before those of this machine and moment.
    tags : Mapping
        Tags of the version beside those that every version has.
    sources : sequence of Mapping
        What its model card says of the data of each stage.
    """

    model: str
    folder: Path
    run_id: str
    parent: Version | None
    extras: Mapping[str, Path]
    pyfunc: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = ()


def whole_key(folder: Path) -> str:
    """Return the digest of a folder's key; raises `RegistryError` if a file differs from its digest there."""
    check_files(folder, read_key(folder)["files"])
    return key_digest(folder)


def published(store: Store, model: str, key: str) -> Version | None:
    """Return the ready version with this key; incomplete versions, left by a kill, are deleted on the way.

    A version without a key was not made by canal, and is left alone.
    """
    for version in store.versions(model):
        if not version.ready:
            if not version.key:
                continue
            with store.translated_errors():
                store.client.delete_model_version(model, str(version.number))
        elif version.key == key:
            return version
    return None


def publish(store: Store, what: Publication) -> Version:
    """Store the files of a version, register it and return it; the caller holds the registry's lock."""
    stage = read_key(what.folder)["stage"]
    with doing(f"registering a version of {stage} in MLflow"), scratch_folder("version") as scratch:
        bundle = scratch / "version"
        with store.translated_errors():
            experiment = store.client.get_experiment(store.experiment_id)
            for name in KIND.keys() - experiment.tags.keys():  # of an experiment that an older canal made
                store.client.set_experiment_tag(store.experiment_id, name, KIND[name])
            made = store.client.create_logged_model(
                experiment_id=store.experiment_id,
                name=stage,
                source_run_id=what.run_id,
                model_type="canal",
            )
        model_id = str(made.model_id)  # which stands among the version's files
        assemble(what.folder, what.extras, bundle, what.pyfunc, model_id)
        _write_card(bundle, what)
        write_record(bundle, {**_facts(store, what), **what.facts, FLAG: FORMAT})
        with store.translated_errors():
            store.client.log_model_artifacts(model_id, str(bundle))
            store.client.finalize_logged_model(model_id, "READY")
        return _enlist(store, bundle, what, model_id)


def _write_card(bundle: Path, what: Publication) -> None:
    """Write the model card of a version that annotates cells, and what it says of the data, as its files."""
    if (bundle / EVALUATION).is_file():
        write_sources(bundle, what.sources)
        stage, evaluation = read_key(bundle)["stage"], read_json(bundle / EVALUATION)
        Card(what.model, stage, key_digest(bundle), evaluation, what.sources).write(bundle / README)


def _enlist(store: Store, bundle: Path, what: Publication, model_id: str) -> Version:
    """Register a version whose files and manifests are stored, and return it."""
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
    with store.translated_errors():
        parent_id = None if parent is None else parent.source.removeprefix(LOGGED)
        show(store.client, pages, what.run_id, model_id, parent_id)
        client, model = store.client, what.model
        made = client.create_model_version(
            model,
            source=f"{LOGGED}{model_id}",
            run_id=what.run_id,
            tags={**tags, **what.tags},
            model_id=model_id,
        )
        number = int(made.version)
        links = json.dumps([{"name": model, "version": number}])
        client.update_model_version(model, str(number), pages.description(number))
        client.set_logged_model_tags(model_id, {MODEL_VERSIONS: links})
        client.set_tag(what.run_id, f"{TAG}version", str(number))
        client.set_tag(what.run_id, f"{TAG}parent_version", str(parent.number) if parent else "none")
        # Last of all: without this tag, a kill leaves an incomplete version, which nothing uses.
        client.set_model_version_tag(model, str(number), "status", READY)
    return next(version for version in store.versions(what.model) if version.number == number)


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


@dataclass(frozen=True)
class Synced:
    """The result of sync: versions made now, known, and measured again; the number of updated paths."""

    made: tuple[Version, ...]
    known: tuple[Version, ...]
    moved: int = 0
    measured: tuple[Version, ...] = ()


def sync(
    store: Store,
    layout: Layout,
    config: Config,
    draw: DrawFigures,
    sign: Sign | None = None,
    decision: Decision | None = None,
) -> Synced:
    """Register every measured stage, oldest first; a second call changes nothing.

    ``sign`` signs the new entries of the ledger, and with them the digests of keys and records;
    ``decision`` says who made the new versions and why, if they are no plain learning.

    Raises
    ------
    RegistryError
        If a file differs from its digest in the key, or a stage's parent is not registered.
    """
    made: list[Version] = []
    known: list[Version] = []
    with moving(store) as ledger:
        if adopted := register_adopted(store, layout.model(BACKBONE)):
            (made if adopted[1] else known).append(adopted[0])
        for stage in (BACKBONE, *config.stages):
            # DVC makes outs atomically, so the two files show that a stage was learned and measured.
            measured = stage == BACKBONE or (layout.metrics(stage) / "evaluation.json").is_file()
            if not measured or not (layout.model(stage) / KEY_FILE).is_file():
                continue
            version = published(store, store.model_of(stage), whole_key(layout.model(stage)))
            if version is None:
                made.append(publish(store, _publication(store, layout, config, stage, draw)))
            else:
                known.append(version)
        for version in (*known, *made):
            register_entry(store, ledger, version, sign, decision=decision)
        again = list(_measured_again(store, layout, config, known))
        for version, novelty in again:
            measurement_entry(store, ledger, version, novelty, sign)
    return Synced(tuple(made), tuple(known), measured=tuple(version for version, _ in again))


def _measured_again(
    store: Store, layout: Layout, config: Config, known: Sequence[Version]
) -> Iterator[tuple[Version, Mapping[str, Any]]]:
    """Yield versions that ``metrics/`` holds other figures of, and these: of types held out since."""
    for version in known:
        if version.model == store.names.model and version.stage in config.stages:
            metrics = layout.metrics(version.stage)
            novelty = newly_measured(store, version, metrics, config.novelty.holdouts)
            if novelty is not None:
                yield version, novelty


def _publication(store: Store, layout: Layout, config: Config, stage: str, draw: DrawFigures) -> Publication:
    folder = layout.model(stage)
    key = read_key(folder)
    return Publication(
        model=store.model_of(stage),
        folder=folder,
        parent=parent_version(store, key, stage),
        run_id=parent_run(store, stage, key["request_digest"]),
        extras=extras(layout, stage, draw(stage)),
        pyfunc=stage != BACKBONE,
        sources=lineage_data(layout, config, stage),
    )


def parent_version(store: Store, key: Key, stage: str) -> Version | None:
    """Return the version with the parent's key; None where a lineage begins.

    Raises
    ------
    RegistryError
        If it is not registered.
    """
    if key["parent"] is None:
        return None
    if parent := ready_version(store, key["parent"]):
        return parent
    raise RegistryError(
        f"stage {stage!r} was learned from a model with key {key['parent'][:12]}... that is not registered; "
        "run `canal run`, or bring the registry that holds it"
    )


def ready_version(store: Store, key: str) -> Version | None:
    """Return the ready version of either model that has this key, or None."""
    for model in (store.names.model, store.names.backbone):
        for version in store.versions(model):
            if version.ready and version.key == key:
                return version
    return None


def extras(layout: Layout, stage: str, figures: Path) -> dict[str, Path]:
    """Return the files beside a version's model; see `canal.registry.manifest.version_folder.assemble`."""
    return {
        "metrics": layout.metrics(stage),
        "validation/data_docs": layout.data_docs(stage),
        "figures": figures,
    }


def import_facts(checkpoint: str, genes: str, gene_vectors: str | None) -> dict[str, Any]:
    """Return the facts for the key of an import: the digests of the published files.

    They name no code and no path: an import only renames tensors, and the digests of its own files cover the
    result. So the same files give the same key with any version of canal.
    """
    request = {"stage": IMPORTED, "checkpoint": checkpoint, "genes": genes, "gene_vectors": gene_vectors}
    return {"stage": IMPORTED, "branch": 1, "request": request, "request_digest": json_digest(request)}


def adopt_import(folder: Path, target: Path) -> None:
    """Fill ``target``, the future ``models/backbone``, from the folder of an import."""
    (target / _MODEL).mkdir()
    for name in read_key(folder)["files"]:
        shutil.copyfile(folder / name, target / _MODEL / name)
    shutil.copyfile(folder / KEY_FILE, target / IMPORT_KEY)


def register_import(store: Store, folder: Path) -> tuple[Version, bool]:
    """Return the version of an import, and whether it was made now; the caller holds the registry's lock.

    Raises
    ------
    RegistryError
        If a file differs from its digest in the key.
    """
    model, key = store.names.backbone, whole_key(folder)
    if version := published(store, model, key):
        return version, False
    run_id = parent_run(store, IMPORTED, key)
    return publish(store, Publication(model, folder, run_id, None, {}, pyfunc=False)), True


def register_adopted(store: Store, backbone: Path) -> tuple[Version, bool] | None:
    """Return `register_import` of the import in ``models/backbone``; None where the backbone was learned."""
    path = backbone / IMPORT_KEY
    if not path.is_file():
        return None
    if version := published(store, store.names.backbone, file_digest(path)):
        return version, False
    whole_key(backbone)
    with tempfile.TemporaryDirectory(prefix="canal-import-") as scratch:
        return register_import(store, import_of(backbone, Path(scratch)))


def import_of(backbone: Path, scratch: Path) -> Path:
    """Return a folder below ``scratch`` with the import in ``models/backbone``."""
    folder = scratch / IMPORTED
    shutil.copytree(backbone / _MODEL, folder)
    shutil.copyfile(backbone / IMPORT_KEY, folder / KEY_FILE)
    return folder
