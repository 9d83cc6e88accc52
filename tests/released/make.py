"""Make the fixture of a released revision: ``python -m tests.released.make b42cc87`` in the repository.

That revision's own code, from `git archive`, makes a small project in today's environment: three stages are
learned by DVC and registered, one is promoted, all signed, a file is labelled, a version exported. Into
``tests/released/<revision>/`` go

project.tar.xz
    The project without its code, DVC's cache and git: it opens at any path. In it lies ``version.zip``, the
    last version as `canal export` wrote it.
source.tar.xz
    What of the revision's code learns a stage, so that a clone without history can train with it.
params.yaml
    The parameters that the revision came with.
golden.json
    Requests, keys, weights and labels, as the revision's code says them.

A fixture is made once, when its revision is released, and never changed: another machine learns other bits.
"""

from __future__ import annotations

import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from tests.support.cells import TUNING, make_adata, make_document, source_of, tuned_stages, write_adata
from tests.support.warm import REPOSITORY, environment

HERE = Path(__file__).parent
CODE = ("src", "pipelines")
FILES = ("MLproject", "dvc.yaml", "data.dvc", "constraints.txt", ".gitignore", ".dvcignore")
LEFT_OUT = {".git", ".dvc", *CODE, "__pycache__", ".canal", "incoming", "MLproject", "dvc.yaml", ".dvcignore"}
"""What a packed project lacks: code, and what DVC makes again."""

N_GENES = 48
CELLS: dict[str, dict[str, int]] = {
    "first": {"B": 26, "T": 26, "NK": 26},
    "second": {"B": 16, "T": 16, "Mono": 24},
    "third": {"T": 16, "DC": 24},
}
QUERY = {"B": 6, "T": 6, "NK": 6, "Mono": 6, "DC": 6, "Mast": 6}
PERSON = "A. Person"


def make(revision: str, into: Path) -> None:
    """Write the fixture of ``revision``, a commit of this repository, to the folder ``into``."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    with TemporaryDirectory(prefix="canal-released-") as scratch:
        checkout, root = Path(scratch, "checkout"), Path(scratch, "project")
        check_out(revision, checkout)
        lay_out(checkout, root)
        learn(root)
        run(root, "canal", "export", "3", "-o", "version.zip")
        said = json.loads(run(root, "python", str(HERE / "golden.py"), str(checkout / "params.yaml")))
        told = {"revision": revision, "labels": labels(root), **said}
        (into / "golden.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
        shutil.copyfile(checkout / "params.yaml", into / "params.yaml")
        learner = json.loads(
            run(root, "python", str(HERE / "learn.py"), str(checkout), str(root), f"{scratch}/again")
        )
        pack(into / "project.tar.xz", root, kept(root))
        sources = [checkout / name for name in sorted({*learner["code"], *pipelines(checkout)})]
        pack(into / "source.tar.xz", checkout, sources)


def check_out(revision: str, folder: Path) -> None:
    """Write the files of a commit to a new folder."""
    done = subprocess.run(["git", "archive", revision], cwd=REPOSITORY, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder)  # noqa: S202 - git made it, of this repository


def lay_out(checkout: Path, root: Path) -> None:
    """Make a project of three stages with the pipeline of a checkout: the second tuned, the third growing."""
    root.mkdir()
    for name in (*CODE, "gate"):
        if (checkout / name).is_dir():  # revisions before own rules have no folder of them
            shutil.copytree(checkout / name, root / name)
    for name in FILES:
        shutil.copyfile(checkout / name, root / name)
    for seed, (stage, types) in enumerate(CELLS.items()):
        cells = make_adata(types, N_GENES, seed=seed, batches=("b1", "b2", "b3"))
        write_adata(cells, root / "raw" / f"{stage}.h5ad")
    write_adata(make_adata(QUERY, N_GENES, seed=9), root / "raw" / "query.h5ad")
    YAML().dump(params(root), root / "params.yaml")
    for command in ("git init --quiet --initial-branch main", "dvc init --quiet"):
        run(root, *command.split())
    commit(root, "start")


def params(root: Path) -> dict[str, Any]:
    """Return parameters that use what a request may hold beside the necessary."""
    changes: dict[str, dict[str, Any]] = {
        "first": {
            "label_map": {"B": "B", "T": "T", "NK": "NK"},
            "ontology": {"B": "CL:0000236"},
            "exclude": {"cells": ["cell0-0003"], "batches": []},
        },
        "second": {},
        "third": {},
    }
    sources = {
        name: source_of(path := root / "raw" / f"{name}.h5ad", **change).model_dump(
            mode="json", exclude_unset=True
        )
        | {"path": path.relative_to(root).as_posix()}
        for name, change in changes.items()
    }
    stages: dict[str, dict[str, Any]] = {
        "first": {"source": "first", "parent": "backbone"},
        "second": {"source": "second", "parent": "first"},
        "third": {
            "source": "third",
            "parent": "second",
            "panel": {"grow": 4},
            "continual": {"distillation": 0.5, "max_epochs": 1},
        },
    }
    document = make_document(
        sources=sources,
        stages=stages,
        panel={"stage": "first", "size": 24},
        continual={"learning_rate": 0.01, "max_epochs": 2},
        tuning=TUNING | {"n_trials": 2, "epochs": 1},
        novelty={"mixtures": 20, "shadow_epochs": 2, "holdouts": ["NK"]},
        policy={
            "min_accuracy": 0.0,
            "max_loss": 1.0,
            "max_loss_per_type": 1.0,
            "min_h_score": 0.0,
            "max_ece": 1.0,
        },
    )
    document["stages"] = tuned_stages(document["stages"], ("second",))
    return document


def learn(root: Path) -> None:
    """Run the pipeline, register what it learned, let version 2 serve, all signed; label a file."""
    run(root, "dvc", "repro", "--quiet")
    for font in (root / ".canal" / "data_docs").rglob("*.otf"):
        font.unlink()  # half a megabyte in every version
    key = root / ".canal" / "key.pem"
    line = run(root, "canal", "keys", "new", "--name", PERSON, "-o", str(key)).splitlines()[0]
    (root / "keyring.txt").write_text(f"{line}\n")
    signed = ("--sign", str(key))
    run(root, "canal", "registry", "sync", *signed)
    run(root, "canal", "promote", "2", "--by", PERSON, "--why", "first release", *signed)
    run(root, "canal", "annotate", "raw/query.h5ad", "-o", "labelled.h5ad", "--model", "3")
    commit(root, "learned")


def labels(root: Path) -> dict[str, list[str | float]]:
    """Return label and confidence of each cell that version 3 labelled."""
    import anndata

    obs = anndata.read_h5ad(root / "labelled.h5ad").obs
    return {
        str(name): [str(label), round(float(confidence), 6)]
        for name, label, confidence in zip(
            obs.index, obs["canal_cell_type"], obs["canal_confidence"], strict=True
        )
    }


def commit(root: Path, message: str) -> None:
    """Commit everything in a project."""
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", message)


def run(root: Path, *command: str) -> str:
    """Run a command with the code of the project in ``root`` and return what it printed."""
    done = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def kept(root: Path) -> Iterable[Path]:
    """Return the files of a project that are packed."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if not LEFT_OUT & set(path.relative_to(root).parts[:1])]


def pipelines(checkout: Path) -> list[str]:
    """Return the scripts of a checkout's pipeline."""
    return [path.relative_to(checkout).as_posix() for path in (checkout / "pipelines").glob("*.py")]


def pack(target: Path, root: Path, files: Iterable[Path]) -> None:
    """Write files below ``root`` to an archive that holds neither times nor owners."""
    with (
        lzma.open(target, "wb", preset=9 | lzma.PRESET_EXTREME) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)


if __name__ == "__main__":
    make(sys.argv[1], HERE / sys.argv[1])
