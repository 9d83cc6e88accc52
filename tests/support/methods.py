"""A tiny project of each method, learned in this process, step by step and without DVC."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

import canal.app.pipeline
from tests.pipeline.conftest import Line, lay_out, learned_once, move_database
from tests.released.learn import Nothing
from tests.support.cells import LENIENT, make_adata, make_document, source_of, write_adata
from tests.support.registered import EMPTY, keep_empty, open_store
from tests.support.warm import REPOSITORY

N_GENES = 48
CELLS = {
    "first": {"B": 26, "T": 26, "NK": 26},
    "second": {"B": 16, "T": 16, "Mono": 24},
    "third": {"T": 16, "DC": 24},
}
QUERY = {"B": 6, "T": 6, "NK": 6, "Mono": 6, "Mast": 6}


def make_line(root: Path, stages: Mapping[str, Mapping[str, Any]], **changes: Any) -> Line:
    """Make a project of these stages, each to be learned on the one before, in a repository of git.

    Parameters
    ----------
    stages
        Name -> what the stage says beside its source and parent. Sources lack what ``CELLS`` lacks.
    changes
        As `tests.support.cells.make_document` takes them.
    """
    line, parent, entries = lay_out(root), "backbone", {}
    for seed, name in enumerate(CELLS):
        cells = make_adata(CELLS[name], N_GENES, seed=seed, batches=("b1", "b2"))
        write_adata(cells, root / "raw" / f"{name}.h5ad")
    for name, said in stages.items():
        entries[name] = {"source": name, "parent": parent, **said}
        parent = name
    write_adata(make_adata(QUERY, N_GENES, seed=9), root / "raw" / "query.h5ad")
    sources = {
        name: source_of(root / "raw" / f"{name}.h5ad").model_dump(mode="json", exclude_unset=True)
        | {"path": f"raw/{name}.h5ad"}
        for name in entries
    }
    document = make_document(
        sources=sources,
        stages=entries,
        **{
            "panel": {"stage": next(iter(entries)), "size": 24},
            "novelty": {"mixtures": 20, "shadow_epochs": 2, "holdouts": ["NK"]},
            "policy": LENIENT,
            **changes,
        },
    )
    YAML().dump(document, root / "params.yaml")
    line.run("git", "init", "--quiet", "--initial-branch", "main")
    line.run("git", "add", "--all")
    line.run("git", "commit", "--quiet", "--message", "start")
    return line


def learn_here(line: Line, sync: bool = True) -> list[str]:
    """Run every step of the pipeline in this process; return the steps that began anew, in their order.

    Pages of the gate and figures, which other tests look at, take most of the time: none are made.
    """
    learned: list[str] = []

    def learn(project: Any, entry_point: str, stage: str, how: Any) -> None:
        learned.append(f"{entry_point} {stage}")
        how(project, Nothing())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canal.app.pipeline, "project_step", learn)
        without_pictures(patch)
        prepare_here(line, patch)
        stages = list(line.project().config.stages)
        step(patch, "pretrain")
        for name in stages:
            for script in ("labels", "tune", "finetune", "evaluate"):
                step(patch, script, "--stage", name)
        if sync:
            line.canal("registry", "sync")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return learned


def prepare_here(line: Line, patch: pytest.MonkeyPatch) -> None:
    """Run the steps up to the gate in this process and in the project's folder."""
    patch.chdir(line.root)
    project = line.project()
    step(patch, "ingest")
    for source in project.config.sources:
        data = line.root / "data" / source
        if not data.is_dir():
            data.parent.mkdir(exist_ok=True)
            (line.root / "incoming" / source).rename(data)
        step(patch, "prepare", "--source", source)
    for script in ("split", "panel"):
        step(patch, script)
    for name in project.config.stages:
        step(patch, "validate", "--stage", name)
    step(patch, "corpus")


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let no figures be drawn for a version; the gate's pages are written, for versions keep them."""
    patch.setattr("canal.app.versions.draw_figures", lambda *_: None)
    patch.setattr("canal.app.remaking._DRAW", "")


def with_database(line: Line, empty: Path) -> Line:
    """Give a project that has none an empty database of MLflow, which takes MLflow seconds to make."""
    shutil.copyfile(empty, line.root / "mlflow.db")
    move_database(line.root, empty.parent)
    return line


def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return MLflow's database of a project without versions, made once for all processes of the suite."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty"
    with FileLock(f"{shared}.lock"):
        if not (shared / EMPTY).is_file():
            shared.mkdir()
            keep_empty(open_store(shared))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return shared / EMPTY


def step(patch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script of today's pipeline in the working directory and in this process."""
    patch.setattr(sys, "argv", [f"{script}.py", *arguments])
    runpy.run_path(str(REPOSITORY / "pipelines" / f"{script}.py"), run_name="__main__")


STAGES: dict[str, dict[str, dict[str, Any]]] = {
    "exact": {"first": {}, "second": {}, "third": {"panel": {"grow": 4}}},
    "combined": {"first": {"continual": {"method": "published"}}, "second": {}, "third": {}},
}
"""Of each method a project's stages; sums of the combined one begin at its second stage."""


def learned_by(method: str, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Make and learn a project of a method once for all processes of the suite.

    On cells as easy as these, sums alone would do: the combined one is made to weigh both alike.
    """

    empty = empty_database(tmp_path_factory)

    def make(root: Path) -> Line:
        settings = {"method": method, "learning_rate": 0.01, "max_epochs": 2}
        return with_database(make_line(root, STAGES[method], continual=settings), empty)

    def learn(line: Line) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("canal.continual.combining.WEIGHTS", (0.5,))
            learn_here(line)
        query, labelled = (str(line.root / name) for name in ("raw/query.h5ad", "labelled.h5ad"))
        line.canal("annotate", query, "-o", labelled, "--model", "3")
        return ""

    return learned_once(tmp_path_factory, f"method-{method}", make, learn)[0]
