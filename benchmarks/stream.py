r"""The whole line on a stream of your own files: a scratch project, `dvc repro`, sync, the R matrix.

    python benchmarks/stream.py first --into /tmp/first
    python benchmarks/stream.py immune --data ~/cells --into /tmp/immune
    python benchmarks/stream.py immune --data ~/cells --into /tmp/wide --set panel.size=1000
    python benchmarks/stream.py pancreas --data ~/cells --into /tmp/full --stages baron --cells 500 \
        --set backbone.preset=scbert --set backbone.max_epochs=0 --set continual.max_epochs=5 \
        --set novelty.holdouts=[]

``streams/NAME.yaml`` names files below ``--data``, or in pip packages, with their SHA-256; nothing of them is
copied into this repository. Prints the wall time and peak memory of the run beside what sync prints.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from canal.core.digests import file_digest
from canal.data.split import largest_remainder

REPOSITORY = Path(__file__).resolve().parents[1]
STREAMS = Path(__file__).parent / "streams"
WHOLE = ("sources", "stages")
"""Sections that a stream replaces; of the others it sets keys. `tuned` names the stages with a study."""

_LEAST = 10
_SEED = 0


def main() -> None:
    """Read the arguments, make the project, run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stream", choices=sorted(path.stem for path in STREAMS.iterdir()))
    parser.add_argument("--data", type=Path, default=Path.cwd(), help="folder with the stream's files")
    parser.add_argument("--into", type=Path, required=True, help="folder of the scratch project")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another parameter")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="these stages alone")
    parser.add_argument("--cells", type=int, help="cut each file to so many cells")
    arguments = parser.parse_args()
    root = arguments.into.resolve()
    document = params(arguments.stream, arguments.data.resolve(), arguments.set, arguments.stages)
    if arguments.cells:
        cut(document, root.with_name(f"{root.name}-cells"), arguments.cells)
    if not (root / ".git").is_dir():
        make_project(root)
    YAML().dump(document, root / "params.yaml")
    began = time.monotonic()
    run(root, "python", "-m", "canal.runtime.warm", "dvc", "repro")
    run(root, "canal", "registry", "sync")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    sys.stdout.write(f"wall time {time.monotonic() - began:.0f} s, largest process {peak:.2f} GiB\n")


def params(
    stream: str, data: Path, changes: list[str], stages: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return params.yaml's document with the stream laid over it, and single keys on top."""
    yaml = YAML(typ="safe")
    document: dict[str, Any] = yaml.load(REPOSITORY / "params.yaml")
    laid = yaml.load(STREAMS / f"{stream}.yaml")
    tuned = laid.pop("tuned", ())
    for name, section in laid.items():
        document[name] = section if name in WHOLE else document[name] | section
    if stages:
        document["stages"] = {name: one for name, one in document["stages"].items() if name in stages}
        kept = {one["source"] for one in document["stages"].values()}
        document["sources"] = {name: one for name, one in document["sources"].items() if name in kept}
    for source in document["sources"].values():
        if "path" in source:
            source["path"] = str(data / source["path"])
    document["stages"] = tuned_stages(document["stages"], tuned)
    change(document, changes)
    return document


def cut(document: dict[str, Any], into: Path, n: int) -> None:
    """Write at most ``n`` cells of each source's file to ``into`` and let the document name those."""
    import anndata

    into.mkdir(parents=True, exist_ok=True)
    for name, source in document["sources"].items():
        if "path" not in source:
            raise SystemExit(f"--cells cuts files below --data; {name} comes from a package")
        adata = anndata.read_h5ad(source["path"])
        rows = sample(adata.obs[source["label"]].astype(str).to_numpy(), n)
        target = into / f"{name}.h5ad"
        if not target.is_file():
            adata[rows].copy().write_h5ad(target)
        source |= {"path": str(target), "sha256": file_digest(target)}


def sample(types: np.ndarray, n: int) -> np.ndarray:
    """Return the rows of about ``n`` cells, types in proportion, ten or all of each that has fewer."""
    random = np.random.default_rng(_SEED)
    names, counts = np.unique(types, return_counts=True)
    shares = largest_remainder(min(n, len(types)), counts.tolist())
    wanted = np.minimum(np.maximum(shares, _LEAST), counts)
    chosen = [
        random.permutation(np.flatnonzero(types == name))[:k]
        for name, k in zip(names, wanted.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def tuned_stages(stages: dict[str, Any], tuned: Sequence[str]) -> dict[str, Any]:
    """Return the stages, of which those named are tuned, and no others."""
    plain = {
        name: {key: value for key, value in one.items() if key != "tune"} for name, one in stages.items()
    }
    return {name: one | {"tune": True} if name in tuned else one for name, one in plain.items()}


def change(document: dict[str, Any], changes: Sequence[str]) -> None:
    """Set single keys of a document, given as ``a.b=value``."""
    yaml = YAML(typ="safe")
    for each in changes:
        key, value = each.split("=", 1)
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.load(value)


def make_project(root: Path) -> None:
    """Make a project folder: this repository's source and pipeline, git, DVC, and an empty data.dvc."""
    root.mkdir(parents=True, exist_ok=True)
    # Not what pip wrote beside the source either: where it is out of date, MLflow finds no plugin of ours.
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "pipelines", "gate"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for name in (
        "MLproject",
        "python_env.yaml",
        "dvc.yaml",
        "data.dvc",
        "constraints.txt",
        ".gitignore",
        ".dvcignore",
    ):
        shutil.copyfile(REPOSITORY / name, root / name)
    run(root, "git", "init", "--quiet")
    run(root, "dvc", "init", "--quiet")


def run(root: Path, *command: str) -> None:
    """Run a command in the project; what fails ends this script."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root / "src"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "true",
    }
    done = subprocess.run(command, cwd=root, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
