"""Other annotators beside canal: trained on the same stages, in an environment and a process of their own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from canal.app.project import CellSet, Project
from canal.continual import evaluation as measures
from canal.model.annotator import Annotator

PACKAGES = {
    "celltypist": ("celltypist==1.7.1", "scikit-learn<1.8"),  # 1.8 took away what it asks for
    "scanvi": ("scvi-tools==1.4.2", "torch==2.13.0"),
}
_LAST_WORDS = 200


@dataclass(frozen=True)
class Limits:
    """How long a rival may take, and how much memory."""

    seconds: float = 1200.0
    memory_gib: float = 16.0


@dataclass(frozen=True, eq=False)
class Arena:
    """What every rival is asked: a project's training cells, its test cells, and where they lie.

    Attributes
    ----------
    folder : Path
        Holds ``train.h5ad`` and ``tests.h5ad``.
    truth : numpy.ndarray
        Types of the test cells.
    genes : list of str
        The genes that all stages have.
    """

    folder: Path
    truth: np.ndarray
    genes: list[str]

    @classmethod
    def of(cls, project: Project, folder: Path) -> Arena:
        """Write training and test cells of all stages: log1p of counts per 10,000, of genes that all have."""
        stages = list(project.config.stages)
        shared = set.intersection(*(set(project.prepared(stage).genes) for stage in stages))
        genes = sorted(shared)
        sets: dict[str, CellSet] = {"train": "train", "tests": "test"}
        for name, chosen in sets.items():
            parts = [project.cells(stage, chosen, genes) for stage in stages]
            # Expression is log2(1 + counts per 10,000).
            values = np.concatenate([part.expression for part in parts]) * np.float32(np.log(2))
            obs = pd.DataFrame({"cell_type": [name for part in parts for name in part.cell_types]})
            obs["stage"] = [stage for part in parts for stage in part.stages]
            obs.index = obs.index.astype(str)
            AnnData(csr_matrix(values), obs, pd.DataFrame(index=genes)).write_h5ad(folder / f"{name}.h5ad")
        return cls(folder, obs["cell_type"].to_numpy(dtype=object), genes)


def canals(project: Project, annotator: Annotator) -> np.ndarray:
    """Return the likeliest types that canal gives the test cells."""
    stages = list(project.config.stages)
    tests = [project.cells(one, "test", annotator.genes) for one in stages]
    return np.concatenate([annotator.predict(cells.expression).labels for cells in tests])


def right(said: Sequence[str], truth: np.ndarray) -> dict[str, float]:
    """Return accuracy, and recall averaged over types."""
    types, named = truth.tolist(), list(said)
    return {
        "accuracy": measures.accuracy(types, named),
        "balanced": measures.balanced_accuracy(types, named),
    }


def environment(name: str, cache: Path, packages: tuple[str, ...] = ()) -> Path:
    """Return the Python that has a rival installed; it is made below ``cache`` where there is none yet."""
    wanted = packages or PACKAGES[name]
    folder = cache / wanted[0].replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        sys.stderr.write(f"installing {wanted[0]} into {folder}\n")
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        torch = [package for package in wanted if package.startswith("torch==")]
        if torch and os.environ.get("TORCH_INDEX"):
            subprocess.run([*install, "--index-url", os.environ["TORCH_INDEX"], *torch], check=True)
        subprocess.run([*install, *wanted], check=True)
        done.touch()
    return python


def compete(
    name: str, python: Path, arena: Arena, query: Path, limits: Limits, threads: int | None = None
) -> dict[str, Any]:
    """Return what a rival took for a query and how many test cells it got right, or why it did not finish."""
    answer = arena.folder / "answer.json"
    script = Path(__file__).with_name(f"rival_{name}.py")
    files = [arena.folder / "train.h5ad", arena.folder / "tests.h5ad", query, answer]
    try:
        if why := finished([str(python), str(script), *map(str, files)], limits, threads):
            return {"who": name, "did_not_finish": why}
        found: dict[str, Any] = json.loads(answer.read_text())
    finally:
        for path in (answer, query.with_name("rival.h5ad")):
            path.unlink(missing_ok=True)
    share = right(found.pop("said"), arena.truth)
    return {"who": f"{name} {found.pop('version')}", **found, **share}


def finished(command: Sequence[str], limits: Limits, threads: int | None = None) -> str:
    """Run a command within limits; return why it did not finish, or ``""``."""
    most = int(limits.memory_gib * 2**30)

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    cores = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        subprocess.run(
            command,
            check=True,
            timeout=limits.seconds,
            preexec_fn=confine,
            env={**alone, **cores},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"{limits.seconds:.0f} s were over"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        if "MemoryError" in (error.stderr or ""):
            return f"{limits.memory_gib:g} GiB were not enough"
        return f"exit code {error.returncode}: {(said or ['it said nothing'])[-1][:_LAST_WORDS]}"
    return ""
