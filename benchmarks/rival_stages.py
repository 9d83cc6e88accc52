"""A rival asked about stages, in a process and an environment of its own: knows nothing of canal.

    python rival_stages.py NAME folder answer.json

The folder holds ``train-STAGE.h5ad`` and ``test-STAGE.h5ad`` (log1p of counts per 10,000, ``cell_type`` and
``stage`` in obs) and ``tasks.json``: task -> the stages to learn from. For each task the rival learns these
stages' training cells at once and names the test cells of all stages.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import anndata
from anndata import AnnData


def main() -> None:
    """Do all tasks and write the labels, and the seconds of learning."""
    name, folder, told = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rival = importlib.import_module(f"rival_{name}")
    tests = {path.stem.removeprefix("test-"): anndata.read_h5ad(path) for path in folder.glob("test-*.h5ad")}
    found: dict[str, Any] = {}
    for task, stages in json.loads((folder / "tasks.json").read_text()).items():
        train = anndata.concat([anndata.read_h5ad(folder / f"train-{stage}.h5ad") for stage in stages])
        train.obs_names_make_unique()
        began = time.perf_counter()
        named = rival.learn(as_wanted(rival, train))
        seconds = time.perf_counter() - began
        said = {stage: [str(one) for one in named(as_wanted(rival, cells))] for stage, cells in tests.items()}
        found[task] = {"seconds": seconds, "said": said}
    told.write_text(json.dumps(found))


def as_wanted(rival: Any, cells: AnnData) -> AnnData:
    """Return a copy of cells such as the rival wants them."""
    made: AnnData = getattr(rival, "of_logs", AnnData.copy)(cells.copy())
    return made


if __name__ == "__main__":
    main()
