"""A released revision's project under today's pipeline: `make run` learns one more stage, and no other.

    python benchmarks/released.py            # tests/released/b42cc87
    python benchmarks/released.py REVISION

The project gets today's code, DVC and git as a person's would, a stage is added, and the pipeline runs: DVC
finds its steps changed and starts each. Prints what was learned and restored, what an audit found, and the
seconds; ends with 1 where an old byte changed or another stage was learned. The suite tests all but DVC.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipeline.conftest import Line, begin, lay_out  # noqa: E402
from tests.released.make import N_GENES  # noqa: E402
from tests.released.test_released import HERE, bytes_of, unpack  # noqa: E402
from tests.support.cells import make_adata, write_adata  # noqa: E402

TODAYS = ("constraints.txt", ".gitignore")
"""Files that a project takes from today's repository though it has its own."""


def upgraded(revision: str, scratch: Path) -> Line:
    """Return the revision's project with today's code, committed to a git repository of its own."""
    old, line = unpack(HERE / revision / "project.tar.xz", scratch / "old"), lay_out(scratch / "project")
    for path in old.iterdir():
        if path.name not in TODAYS:
            path.rename(line.root / path.name)
    write_adata(make_adata({"B": 16, "Plasma": 24}, N_GENES, seed=4), line.root / "raw" / "fourth.h5ad")
    return begin(line)


def add_stage(line: Line) -> None:
    """Add a stage to the project's parameters, of one epoch."""
    form = ("--values", "counts", "--batch", "batch", "--min-genes", "1", "--fixed")
    line.run("canal", "stage", "add", "fourth", "--file", "raw/fourth.h5ad", *form)
    line.edit(lambda document: document["stages"]["fourth"].update(continual={"max_epochs": 1}))


def learned(line: Line) -> list[str]:
    """Return the steps that trained or measured something, as MLflow has them, oldest first."""
    store = line.project().store
    runs = store.client.search_runs([store.experiment_id], max_results=500, order_by=["start_time ASC"])
    steps = [(run.data.tags.get("canal.step"), run.data.tags.get("canal.stage")) for run in runs]
    return [
        f"{step} {stage}" for step, stage in steps if step in ("pretrain", "tune", "finetune", "evaluate")
    ]


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revision", nargs="?", default="b42cc87")
    scratch = Path(tempfile.mkdtemp(prefix="canal-released-"))
    try:
        line = upgraded(parser.parse_args().revision, scratch)
        steps, before = learned(line), bytes_of(line)
        add_stage(line)
        start = time.perf_counter()
        line.run("python", "-m", "canal.app.running")
        seconds = time.perf_counter() - start
        after = bytes_of(line)
        changed = sorted(name for name in before if after.get(name) != before[name])
        new = learned(line)[len(steps) :]
        findings = json.loads(line.run("canal", "audit", "--json"))["findings"]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    restored = len(before) - len(changed)
    sys.stdout.write(
        f"make run on a project of {parser.parse_args().revision}: {seconds:.0f} s\n"
        f"learned anew or first: {', '.join(new)}\n"
        f"old files as they were: {restored} of {len(before)} {' '.join(changed)}\n"
        f"findings of the audit: {len(findings)}\n"
    )
    return int(bool(changed or findings or new != ["finetune fourth", "evaluate fourth"]))


if __name__ == "__main__":
    sys.exit(main())
