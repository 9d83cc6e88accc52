"""Learn a project's lineage anew with the code of one revision: ``python learn.py CODE PROJECT INTO``.

``CODE`` holds ``src/`` and ``pipelines/``. What a training reads of ``PROJECT`` is copied to the new folder
``INTO``, where the pipeline's own scripts then learn every stage, in this process and without MLflow. Prints,
as JSON, digests of all files of ``models/`` by stage, keys without what names the code, and what code it was.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

INPUTS = ("params.yaml", "constraints.txt", "panel.json", "prepared", "splits", "verdicts", "tuned")
"""What a training reads; no registry, from which it would be restored."""


class Nothing:
    """A run that logs nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def main(code: Path, project_folder: Path, root: Path) -> None:
    """Pretrain the backbone and learn every stage on top of its parent."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from named import by_name, module_of

    sys.path.insert(0, str(code / "src"))
    lay_out(project_folder, root)
    os.chdir(root)
    import torch

    import canal

    assert Path(canal.__file__).is_relative_to(code), f"{canal.__file__} is not the code of {code}"
    tree_digests = by_name("tree_digests")
    step = module_of("project_step")
    step.project_step = lambda project, entry_point, stage, learn: learn(project, Nothing())
    project = by_name("Project").open()
    torch.set_num_threads(project.config.threads)
    for script in ("pretrain", *(f"finetune --stage {stage}" for stage in project.config.stages)):
        name, *arguments = script.split()
        sys.argv = [f"{name}.py", *arguments]
        runpy.run_path(str(code / "pipelines" / f"{name}.py"), run_name="__main__")
    folders = {path.name: path for path in sorted(Path("models").iterdir())}
    files = {
        stage: {name: digest for name, digest in tree_digests(path).items() if name != "key.json"}
        for stage, path in folders.items()
    }
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    mine = {Path(path) for path in loaded if path and Path(path).is_relative_to(code)}
    told = {
        "files": files,
        "keys": {stage: read_key(path) for stage, path in folders.items()},
        "code": sorted(path.relative_to(code).as_posix() for path in mine),
    }
    sys.stdout.write(json.dumps(told))


def lay_out(project_folder: Path, root: Path) -> None:
    """Copy what a training reads to a new folder."""
    root.mkdir()
    for name in INPUTS:
        path = project_folder / name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, root / name)


def read_key(folder: Path) -> dict[str, Any]:
    """Return a key without the digests of the code and of the parent's key, in which code stands."""
    key: dict[str, Any] = json.loads((folder / "key.json").read_text())
    return {name: value for name, value in key.items() if name not in ("code", "parent")}


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
