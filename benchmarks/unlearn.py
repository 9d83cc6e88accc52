"""What it takes to unlearn some cells, beside learning their stages: seconds and bytes on a finished project.

    python benchmarks/unlearn.py [--root PROJECT] [--source SOURCE] [--cells N]

The project is copied, N random training cells of a source leave the copy by `canal unlearn`, and an audit
looks at it. Learning took what the MLflow runs of the same stages' steps say, on the machine that ran them.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from canal.app.project import Project
from canal.data.split import read_split

STEPS = ("tune", "finetune", "evaluate")


def main() -> None:
    """Unlearn in a copy and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--source", help="by default that of the second stage")
    parser.add_argument("--cells", type=int, default=40)
    arguments = parser.parse_args()
    project = Project.open(arguments.root)
    source = arguments.source or list(project.config.stages.values())[1].source
    with TemporaryDirectory(prefix="canal-unlearn-") as folder:
        root = Path(folder) / "project"
        shutil.copytree(
            project.layout.root, root, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".canal")
        )
        stage = next(name for name, one in project.config.stages.items() if one.source == source)
        split = read_split(project.layout.split(stage))
        ids = sorted(split[split["set"] == "train"]["cell_id"])
        names = root / "withdrawn.txt"
        names.write_text("\n".join(random.Random(0).sample(ids, arguments.cells)))
        command = (
            "unlearn",
            source,
            "--cells",
            str(names),
            "--by",
            "benchmark",
            "--why",
            "measured",
            "--json",
        )
        start = timed(root, "versions", "--json")[0]
        seconds, said = timed(root, *command)
        document = json.loads(said)
        audit = timed(root, "audit", "--json", check=False)[0]
        made = Project.open(root)
        new = sum(size(made, one["after"]) for one in document["versions"].values())
    old = sum(size(project, one["before"]) for one in document["versions"].values())
    learning = learned_in(project, list(document["versions"]))
    stages = ", ".join(document["versions"])
    print(f"{document['n_cells']} cells of {source} leave {stages}")
    print(f"canal unlearn          {seconds:8.1f} s, of which a process starts in {start:.1f} s")
    print(f"learning these stages  {learning:8.1f} s (runs of {', '.join(STEPS)})")
    print(f"unlearning takes       {100 * (seconds - start) / learning:8.1f} % of it")
    print(f"new versions           {new / 1e6:8.1f} MB, the old ones {old / 1e6:.1f} MB")
    print(f"canal audit            {audit:8.1f} s")


def timed(root: Path, *command: str, check: bool = True) -> tuple[float, str]:
    """Return how long a canal command takes in a project, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "canal.cli", *command], cwd=root, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        sys.exit(f"canal {command[0]} failed: {done.stderr.strip()}")
    return time.perf_counter() - began, done.stdout


def size(project: Project, number: int) -> int:
    """Return the bytes of a version's artifacts."""
    folder = project.store.artifacts(project.store.version(str(number)))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def learned_in(project: Project, stages: list[str]) -> float:
    """Return the seconds that the steps of some stages took, as their MLflow runs say."""
    store = project.store
    runs = store.client.search_runs([store.experiment_id], max_results=10_000)
    return sum(
        (run.info.end_time - run.info.start_time) / 1000
        for run in runs
        if run.data.tags.get("canal.stage") in stages and run.data.tags.get("canal.step") in STEPS
    )


if __name__ == "__main__":
    main()
