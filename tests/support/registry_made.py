"""A registry made by hand in a second: real keys, records, splits, banks and a database as MLflow writes it.

Nothing is learned: weights are a few bytes. What reads a registry cannot tell, short of loading a model.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from canal.app.project import Project
from canal.config.sections import BACKBONE
from canal.continual.cells import LabelledCells, StoredCells, save_cells
from canal.core.digests import file_digest, json_digest
from canal.core.files import write_json
from canal.data.split import COLUMNS
from canal.registry.manifest.stage_request import request_digest, stage_request
from canal.registry.manifest.version_folder import key_digest, read_key, write_key, write_record
from canal.registry.store.database import SCHEMA, Version
from canal.registry.versions.publish import import_facts
from tests.support.cells import make_document

TABLES = f"""
CREATE TABLE alembic_version (version_num);
INSERT INTO alembic_version VALUES ('{SCHEMA}');
CREATE TABLE model_versions (workspace, name, version, source, run_id, creation_time, current_stage);
CREATE TABLE model_version_tags (workspace, name, version, key, value);
CREATE TABLE registered_model_tags (workspace, name, key, value);
CREATE TABLE registered_model_aliases (workspace, name, alias, version);
CREATE TABLE logged_models (model_id, artifact_location);
"""
GENES = ("CD3D", "LYZ")
CORPUS = {"cells": "csv", "verdict": "json"}
CHOSEN_SIZE = 2
"""L that the study of a tuned stage chose: a cell of each of two types."""


@dataclass(frozen=True)
class StageCells:
    """What a stage is made from: names of cells by set, each ``<type>-<anything>``, and what it keeps.

    ``like`` names cells that hold the content of another: name -> ``<source>:<name>``. ``answers`` are the
    predictions of test cells, and ``profile`` what the gate counted, where a test looks at them.
    """

    train: Sequence[str] = ()
    validation: Sequence[str] = ()
    test: Sequence[str] = ()
    bank: Sequence[str] = ()
    probe: Sequence[str] = ()
    reserve: Sequence[str] = ()
    batches: Mapping[str, str] = field(default_factory=dict)
    like: Mapping[str, str] = field(default_factory=dict)
    recall: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tested: Sequence[str] = ()
    answers: pd.DataFrame | None = None
    profile: Mapping[str, Any] | None = None


class Made:
    """A project folder whose registry is written by hand; ``params`` None opens one that is there."""

    def __init__(self, root: Path, params: Mapping[str, Any] | None) -> None:
        self.root = root
        if params is None:
            self.project = Project.open(root)
            return
        root.mkdir(parents=True)
        self.set_params(**params)
        with sqlite3.connect(root / "mlflow.db") as database:
            database.executescript(TABLES)
        database.close()

    def set_params(self, **params: Any) -> None:
        """Write params.yaml anew, over tests' own defaults."""
        text = json.dumps(make_document(**params), indent=1)  # JSON is YAML, and written in no time
        (self.root / "params.yaml").write_text(text)
        self.project = Project.open(self.root)

    def imported(self, name: str = "x") -> Version:
        """Register published weights, and let params.yaml name them."""
        folder = self.root / "backbones" / name
        _weights(folder)
        write_key(folder, import_facts("1" * 64, "2" * 64, None), parent=None)
        entry = {"path": f"backbones/{name}", "key": key_digest(folder)}
        self.set_params(backbone={"imported": entry})
        return self._register(folder, self.project.config.registry.backbone, None)

    def backbone(
        self,
        split: StageCells,
        parent: Version | None = None,
        corpora: Mapping[str, StageCells] | None = None,
    ) -> Version:
        """Register a backbone that was trained on the first stage's cells, or adopted from ``parent``.

        ``corpora`` are the cells that it saw of unlabelled sources.
        """
        config = self.project.config
        folder = self._folder(BACKBONE)
        _weights(folder / "model")
        write_json(folder / "panel.json", {"genes": list(GENES)})
        scratch = self.root / "scratch" / BACKBONE
        self._split(scratch, config.root_stage, split)
        self._verdict(scratch, config.root_stage)
        facts = self._facts(BACKBONE, scratch, config.root_stage)
        for source, cells in (corpora or {}).items():
            table = _rows(source, cells).assign(cell_type="")
            kept = folder / "corpus" / source
            kept.mkdir(parents=True)
            table.to_csv(kept / "cells.csv", index=False)
            write_json(kept / "verdict.json", {"passed": True})
            digests = {name: file_digest(kept / f"{name}.{kind}") for name, kind in CORPUS.items()}
            facts.setdefault("unlabelled", {})[source] = {"prepared_sha256": "d" * 64, **digests}
        write_key(folder, facts, None if parent is None else parent.key)
        return self._register(folder, config.registry.backbone, parent)

    def stage(self, stage: str, parent: Version, stage_cells: StageCells, labels: Sequence[str]) -> Version:
        """Register a stage learned on ``parent``."""
        config, folder = self.project.config, self._folder(f"{stage}-{len(self.project.store.versions())}")
        source = config.stages[stage].source
        _weights(folder / "model")
        write_json(folder / "model" / "labels.json", list(labels))
        write_json(folder / "model" / "genes.json", list(GENES))
        self._split(folder, stage, stage_cells)
        self._verdict(folder, stage, stage_cells.profile)
        for name, cells in (("bank", stage_cells.bank), ("probe", stage_cells.probe)):
            (folder / name).mkdir()
            _store(folder / name / f"{name}.h5ad", stage, source, cells, ranked=name == "bank")
        write_key(folder, self._facts(stage, folder, stage), parent.key)
        self._measures(folder, stage, stage_cells, labels)
        return self._register(folder, config.registry.model, parent)

    def alias(self, name: str, version: Version) -> None:
        with sqlite3.connect(self.root / "mlflow.db") as database:
            database.execute("DELETE FROM registered_model_aliases WHERE alias = ?", (name,))
            row = ("default", version.model, name, version.number)
            database.execute("INSERT INTO registered_model_aliases VALUES (?, ?, ?, ?)", row)
        database.close()

    def folder(self, version: Version) -> Path:
        return self.project.store.artifacts(version)

    def _folder(self, name: str) -> Path:
        folder = self.root / "mlartifacts" / name
        folder.mkdir(parents=True)
        return folder

    def _facts(self, stage: str, folder: Path, origin: str) -> dict[str, Any]:
        config = self.project.config
        source = config.stages[origin].source
        request = stage_request(config, stage)
        tuned = stage != BACKBONE and config.study(stage) is not None
        own = {"tuned": "e" * 64, "choice": {"distillation": 0.5, "bank_size": CHOSEN_SIZE}} if tuned else {}
        return own | {
            "stage": stage,
            "branch": request["branch"],
            "request": request,
            "request_digest": request_digest(config, stage),
            "data": {
                "source": source,
                "source_sha256": config.sources[source].sha256,
                "prepared_sha256": json_digest(["prepared", source, config.sources[source].declaration()]),
            },
            "split": file_digest(folder / "split" / "cells.csv"),
            "panel": "a" * 64,
            "verdict": file_digest(folder / "validation" / "verdict.json"),
            "code": "b" * 64,
            "lock": "c" * 64,
            "seed": 0,
            "threads": 1,
        }

    def _split(self, folder: Path, stage: str, stage_cells: StageCells) -> None:
        table = _rows(self.project.config.stages[stage].source, stage_cells)
        (folder / "split").mkdir(parents=True)
        table.to_csv(folder / "split" / "cells.csv", index=False)
        counts = table.groupby(["cell_type", "set"]).size().unstack(fill_value=0)
        names = {
            str(name): {one: int(row.get(one, 0)) for one in ("train", "validation", "test")}
            for name, row in counts.iterrows()
        }
        write_json(folder / "split" / "cells.json", {"counts": names})

    def _verdict(self, folder: Path, stage: str, profile: Mapping[str, Any] | None = None) -> None:
        rules = [
            {"rule": "has_cells", "severity": "error", "passed": True},
            {"rule": "drift", "severity": "warning", "passed": False},
        ]
        counts = {"cells": 12, "genes": 120, "types": {"B": 6, "T": 6}}
        document = {"stage": stage, "passed": True, "rules": rules, "counts": counts}
        document |= {} if profile is None else {"profile": dict(profile)}
        (folder / "validation").mkdir(parents=True)
        write_json(folder / "validation" / "verdict.json", document)

    def _measures(self, folder: Path, stage: str, stage_cells: StageCells, labels: Sequence[str]) -> None:
        config = self.project.config
        source = config.stages[stage].source
        stages = [*config.ancestors(stage), stage]
        document = {
            "stage": stage,
            "stages": stages,
            "labels": list(labels),
            "row": {name: None if name not in stage_cells.recall else 0.9 for name in stages},
            "matrix": [[0.9] * (i + 1) for i in range(len(stages))],
            "average_accuracy": 0.9,
            "forgetting": None,
            "per_stage": {
                name: {"n": 5 * len(types), "recall": {t: {"n": 5, "recall": r} for t, r in types.items()}}
                for name, types in stage_cells.recall.items()
            },
            "novelty": {"h_score": None},
        }
        (folder / "metrics").mkdir()
        write_json(folder / "metrics" / "evaluation.json", document)
        ids = [*stage_cells.tested, *(f"{source}:{name}" for name in stage_cells.test)]
        answers = pd.DataFrame({"cell_id": ids, "stage": stage, "truth": "B", "predicted": "B"})
        if stage_cells.answers is not None:
            answers = stage_cells.answers
        answers.to_csv(folder / "metrics" / "predictions.csv", index=False)

    def _register(self, folder: Path, model: str, parent: Version | None) -> Version:
        run = hashlib.md5(str(folder).encode()).hexdigest()
        facts = {
            "run": run,
            "parent": None if parent is None else {"model": parent.model, "version": parent.number},
            "host": "a-host",
            "platform": "Linux",
            "user": "somebody",
            "time": "2026-01-02T03:04:05+00:00",
            "git_commit": "d" * 40,
            "dirty": False,
        }
        write_record(folder, facts)
        store, key = self.project.store, read_key(folder)
        number = len(store.versions(model)) + 1
        tags = {
            "canal.stage": key["stage"],
            "canal.branch": str(key["branch"]),
            "canal.key": key_digest(folder),
            "canal.request": key["request_digest"],
            "canal.record": file_digest(folder / "record.json"),
            "canal.parent": str(parent.number) if parent else "",
            "status": "ready",
        }
        with sqlite3.connect(self.root / "mlflow.db") as database:
            place = f"m-{model}-{number}"
            database.execute("INSERT INTO logged_models VALUES (?, ?)", (place, folder.as_uri()))
            row = ("default", model, number, f"models:/{place}", run, 1767323045000, None)
            database.execute("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            rows = [("default", model, number, name, value) for name, value in tags.items()]
            database.executemany("INSERT INTO model_version_tags VALUES (?, ?, ?, ?, ?)", rows)
        database.close()
        return next(one for one in store.versions(model) if one.number == number)


def _weights(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(str(folder.name).encode())


def _rows(source: str, cells: StageCells) -> pd.DataFrame:
    """Return the table of a source's cells by set."""
    rows = [
        (f"{source}:{name}", _type(name), cells.batches.get(name, source),
         _content(cells.like.get(name, f"{source}:{name}")), chosen)
        for chosen in ("train", "validation", "test", "reserve") for name in getattr(cells, chosen)
    ]  # fmt: skip
    return pd.DataFrame(sorted(rows), columns=list(COLUMNS))


def _type(name: str) -> str:
    return name.partition("-")[0]


def _content(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _store(path: Path, stage: str, source: str, names: Sequence[str], ranked: bool) -> None:
    """Store cells; a name with a source of its own, ``first:B-1``, is an older stage's cell."""
    ids = tuple(name if ":" in name else f"{source}:{name}" for name in names)
    own = tuple(one.partition(":")[0] for one in ids)
    cells = LabelledCells(
        cell_ids=ids,
        expression=np.zeros((len(ids), len(GENES)), dtype=np.float32),
        cell_types=tuple(_type(one.partition(":")[2]) for one in ids),
        stages=(stage,) * len(ids),
        sources=own,
        batches=own,
    )
    ranks = np.arange(1, len(ids) + 1) if ranked else None
    save_cells(path, StoredCells(cells, GENES, ranks, (stage,)))


FIRST = StageCells(
    train=["B-1", "B-2", "B-3", "T-1", "T-2", "T-3"],
    validation=["B-4", "T-4"],
    test=["B-5", "T-5"],
    bank=["B-1", "B-2", "B-3", "T-1", "T-2", "T-3"],
    probe=["B-4"],
    batches={"B-1": "donor-1", "T-1": "donor-1"},
    recall={"first": {"B": 0.8, "T": 1.0}},
)
SECOND = StageCells(
    train=["T-1", "Mono-1", "Mono-2"],
    validation=["Mono-3"],
    test=["Mono-4"],
    bank=["first:B-1", "Mono-1", "first:T-1", "T-1"],
    probe=["first:B-4", "Mono-3"],
    like={"Mono-2": "first:T-2"},
    recall={"first": {"B": 1.0, "T": 0.5}, "second": {"Mono": 0.75}},
    tested=["first:B-5", "first:T-5"],
)


def two_stages(root: Path) -> Made:
    """Return a registry of a backbone and two stages; the second replays two cells a type of its bank.

    The second's source holds, as Mono-2, the content of the first's T-2.
    """
    template = _two_stages()
    shutil.copytree(template.root, root)
    with sqlite3.connect(root / "mlflow.db") as database:
        change = "UPDATE logged_models SET artifact_location = replace(artifact_location, ?, ?)"
        database.execute(change, (template.root.as_uri(), root.as_uri()))
    database.close()
    return Made(root, params=None)


ATLAS = StageCells(
    train=["x-1", "x-2"], validation=["x-3"], batches={"x-2": "donor-9"}, like={"x-1": "second:Mono-1"}
)


def with_atlas(root: Path) -> Made:
    """Make a registry of two stages on a backbone that also saw cells without labels."""
    sources = make_document()["sources"]
    atlas = {name: one for name, one in sources["first"].items() if name != "label"} | {"sha256": "a" * 64}
    backbone = {"unlabelled": ["atlas"]}
    made = Made(
        root, {"sources": sources | {"atlas": atlas}, "backbone": backbone, "continual": {"bank_size": 4}}
    )
    first = made.stage("first", made.backbone(FIRST, corpora={"atlas": ATLAS}), FIRST, ["B", "T"])
    made.alias("champion", made.stage("second", first, SECOND, ["B", "T", "Mono"]))
    return made


@functools.cache
def _two_stages() -> Made:
    """Make it once a process; a copy is made in a moment."""
    folder = Path(tempfile.mkdtemp(prefix="canal-made-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sources = make_document()["sources"]
    sources["first"]["sha256"], sources["second"]["sha256"] = "1" * 64, "2" * 64
    made = Made(folder / "project", {"sources": sources, "continual": {"bank_size": 4}})
    first = made.stage("first", made.backbone(FIRST), FIRST, ["B", "T"])
    second = made.stage("second", first, SECOND, ["B", "T", "Mono"])
    made.alias("candidate", second)
    made.alias("champion", first)
    return made
