"""A lineage made by hand in a real local MLflow store, and the same project with the store lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

from canal.config.layout import Layout
from canal.config.sections import Registry
from canal.registry.audit.full_audit import Report, audit
from canal.registry.ledger.rulings import POLICY
from canal.registry.manifest.version_folder import key_digest, read_key, write_key
from canal.registry.promotion.moves import moving
from canal.registry.promotion.policy import Ruling
from canal.registry.promotion.promotion import register_entry
from canal.registry.store.database import Version
from canal.registry.store.store import Store
from canal.registry.store.tracking import parent_run
from canal.registry.versions.publish import (
    Publication,
    adopt_import,
    extras,
    import_facts,
    parent_version,
    publish,
)
from tests.support.cells import make_config
from tests.support.lineage import add_records, make_lineage, make_specs

EMPTY = "empty.db"


def open_store(root: Path) -> Store:
    """Return the store of a project folder; another one that this process used is forgotten."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Store(Layout(root), Registry())


def make_models(root: Path) -> None:
    """Put a backbone and two stages into ``models/`` and their measures into ``metrics/``."""
    folders = make_lineage(root / "models", make_specs())
    shutil.rmtree(root / "models" / "scratch")
    add_records(folders)
    for stage, folder in folders.items():
        (folder / "record.json").unlink()
        if stage != "backbone":
            (root / "metrics").mkdir(exist_ok=True)
            (folder / "metrics").rename(root / "metrics" / stage)


def adopt_published(backbone: Path, scratch: Path) -> None:
    """Write a ``models/backbone`` that was adopted from published weights, as the pipeline does."""
    lineage = make_lineage(scratch / "lineage", make_specs())
    folder = scratch / "published"
    shutil.copytree(lineage["backbone"] / "model", folder)
    write_key(folder, import_facts("1" * 64, "2" * 64, None), None)
    facts = {**read_key(lineage["backbone"])}
    for name in ("files", "parent", "format"):
        facts.pop(name)
    backbone.mkdir(parents=True)
    adopt_import(folder, backbone)
    shutil.copyfile(lineage["backbone"] / "panel.json", backbone / "panel.json")
    write_key(backbone, facts, key_digest(folder))


def no_figures(layout: Layout, stage: str) -> Path:
    """Return an empty folder of figures."""
    folder = layout.private / "figures" / key_digest(layout.model(stage))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def register(store: Store, stage: str) -> Version:
    """Register what lies in ``models/<stage>``, as `canal registry sync` does."""
    layout, model = store.layout, store.names.backbone if stage == "backbone" else store.names.model
    folder = layout.model(stage)
    key = read_key(folder)
    with moving(store) as ledger:
        version = publish(
            store,
            Publication(
                model=model,
                folder=folder,
                run_id=parent_run(store, stage, key["request_digest"]),
                parent=parent_version(store, key, stage),
                extras=extras(layout, stage, no_figures(layout, stage)),
                pyfunc=stage != "backbone",
            ),
        )
        register_entry(store, ledger, version)
    return version


def lost(root: Path, target: Path) -> Store:
    """Return the store of a copy of a project whose MLflow store was lost, and is there again, but empty.

    Making a database takes MLflow seconds, so the empty one is that of before the first registration.
    """
    ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts")
    shutil.copytree(root, target, ignore=ignored)
    shutil.copyfile(root / EMPTY, target / "mlflow.db")
    with sqlite3.connect(target / "mlflow.db") as database:
        change = "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)"
        database.execute(change, (root.as_uri(), target.as_uri()))
    database.close()
    return open_store(target)


def keep_empty(store: Store) -> None:
    """Keep a copy of a store that was just made; see `lost`."""
    _ = store.client
    shutil.copyfile(store.layout.root / "mlflow.db", store.layout.root / EMPTY)


def state(store: Store) -> list[tuple[str, int, str, tuple[str, ...], bool]]:
    """Return model, number, key, aliases and retirement of every ready version."""
    return [
        (one.model, one.number, one.key, one.aliases, one.retired)
        for model in (store.names.backbone, store.names.model)
        for one in store.versions(model)
        if one.ready
    ]


def audited(store: Store) -> Report:
    """Audit everything."""
    return audit(store, store.layout, make_config())


PASSED = (
    Ruling("gate", "passed", "passed for these bytes", True),
    Ruling("audit", "0 findings", "none", True),
    Ruling("clean", "cc53841c6ba6", "a clean commit", True),
    Ruling("accuracy", "0.910", ">= 0.700", True, "new stage first, n = 100"),
    Ruling("balanced_accuracy", "0.880", ">= 0.500", True, "new stage first, n = 100"),
    Ruling("retention", "no champion yet", "does not apply", True, "nothing to keep: the first promotion"),
    Ruling("h_score", "0.410", ">= 0.100", True, "types left out"),
    Ruling("ece", "0.080", "<= 0.250", True, "[0.040, 0.120], n = 100"),
)

OVERRIDDEN = tuple(
    replace(one, value="not asked", passed=False, overridden=True)
    if one.rule in ("clean", "accuracy", "balanced_accuracy", "h_score", "ece")
    else one
    for one in PASSED
)
"""For versions of which other values are measured: what passed is compared with that."""


def promoted(to, before=None, rulings=PASSED):
    """Return the details of a promotion's entry."""
    overrides = [ruling.rule for ruling in rulings if ruling.overridden]
    given = {"rulings": [one.to_json() for one in rulings], "overrides": overrides, "policy": POLICY}
    return {"from": before, "to": to, **given}
