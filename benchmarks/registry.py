"""Seconds of the registry's commands under load: many versions, streams of other teams, thousands of runs.

    python benchmarks/registry.py                          # 50, 100 and 200 versions; some ten minutes
    python benchmarks/registry.py --versions 20 --streams 4 --runs 500

One store, a database that folders share: a stream with most of the versions, whose commands are measured,
beside streams of other tissues (a folder and a registered model each, all on one backbone), registered by
canal itself from models made by hand: real keys, records and networks, nothing learned. Runs are copies of
one that canal logged. Each command is a process of its own and is called three times; the quickest counts,
since other work only slows it.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.cells import make_document  # noqa: E402
from tests.support.folders import Folder  # noqa: E402
from tests.support.lineage import add_records, make_lineage, make_specs  # noqa: E402
from tests.support.registered import OVERRIDDEN, make_models, register  # noqa: E402

from canal.registry.promotion.moves import catch_up, moving  # noqa: E402
from canal.registry.promotion.promotion import Decision, promote  # noqa: E402

MOST_S = 2.0
"""Asked for, of each command with 200 versions, 50 streams and 10,000 runs."""

COMMANDS = {
    "versions": ("versions",),
    "show": ("show", "{newest}"),
    "lineage": ("lineage", "{newest}"),
    "audit": ("audit",),
    "audit --resume": ("audit", "--resume"),
    "promote --dry-run": ("promote", "{newest}", "--by", "A", "--why", "a benchmark", "--dry-run"),
}
_TIMES = 3


class Streams:
    """A store that grows: streams beside each other, and their runs."""

    def __init__(self, scratch: Path) -> None:
        self.database = scratch / "shared.db"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.database}"
        self.scratch = scratch
        make_models(scratch / "pattern")
        self.own = self._folder("own", "canal")
        self.own.sync()
        self.n_versions, self.n_streams, self.n_runs = 2, 1, 0

    def grow(self, versions: int, streams: int, runs: int) -> None:
        """Register versions until there are so many in so many streams, and log so many runs."""
        while self.n_streams < streams:  # another tissue, in a folder of its own
            other = self._folder(f"tissue-{self.n_streams:02}", f"tissue-{self.n_streams:02}")
            catch_up(other.project().store)
            other.register(1)
            self.n_streams += 1
            self.n_versions += 1
        while self.n_versions < versions:
            self._relearn(self.n_versions, min(2, versions - self.n_versions))
        self._log(runs)
        with moving(self.own.project().store) as ledger:
            store = self.own.project().store
            newest = store.versions()[-1]
            promote(store, ledger, newest, OVERRIDDEN, Decision("A. Person", "a benchmark"))

    def _folder(self, place: str, model: str) -> Folder:
        root = self.scratch / place
        shutil.copytree(self.scratch / "pattern", root)
        names = {"model": model, "backbone": "canal-backbone", "experiment": model}
        YAML().dump(make_document(registry=names), root / "params.yaml")
        return Folder(root)

    def _relearn(self, seed: int, number: int) -> None:
        """Register both stages of the own stream once more, with other weights."""
        specs = make_specs()
        for place, spec in enumerate(specs.values()):
            spec.seed = 2 * seed + place
        layout = self.own.project().layout
        for folder in (layout.root / "models", layout.root / "metrics"):
            shutil.rmtree(folder)
        folders = make_lineage(layout.root / "models", specs)
        shutil.rmtree(layout.root / "models" / "scratch")
        add_records(folders)
        (layout.root / "metrics").mkdir()
        for stage in specs:
            (folders[stage] / "record.json").unlink()
            (folders[stage] / "metrics").rename(layout.root / "metrics" / stage)
        for stage in list(specs)[:number]:
            register(self.own.project().store, stage)
            self.n_versions += 1

    def _log(self, runs: int) -> None:
        """Copy a run of canal's, with all that is logged of it, until there are so many."""
        with closing(sqlite3.connect(self.database)) as database, database:
            (pattern,) = database.execute("SELECT run_uuid FROM runs ORDER BY start_time LIMIT 1").fetchone()
            for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                rows = database.execute(
                    f"SELECT {', '.join(columns)} FROM {table} WHERE run_uuid = ?", (pattern,)
                ).fetchall()
                place = columns.index("run_uuid")
                copies = (
                    (*row[:place], UUID(int=number + 1).hex, *row[place + 1 :])
                    for number in range(self.n_runs, runs)
                    for row in rows
                )
                marks = ", ".join("?" * len(columns))
                database.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", copies)
        self.n_runs = runs


def measured(streams: Streams) -> Iterator[tuple[str, float, float, int]]:
    """Yield each command with its quickest seconds, those of the processor, and its exit code."""
    newest = str(streams.own.project().store.versions()[-1].number)
    for name, words in COMMANDS.items():
        command = [sys.executable, "-m", "canal.cli", *(word.format(newest=newest) for word in words)]
        took = []
        for _ in range(_TIMES):
            before, began = _cpu(), time.perf_counter()
            done = subprocess.run(
                [*command, "--root", str(streams.own.root)], capture_output=True, text=True, check=False
            )
            took.append((time.perf_counter() - began, _cpu() - before))
            if "Traceback" in done.stderr or "unexpected" in done.stderr:
                raise SystemExit(done.stderr)
        yield name, min(one for one, _ in took), min(one for _, one in took), done.returncode


def _cpu() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    """Measure at three sizes, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also into this file")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="canal-registry-") as scratch:
        streams = Streams(Path(scratch))
        for share in (4, 2, 1):
            size = [max(2, one // share) for one in (arguments.versions, arguments.streams, arguments.runs)]
            streams.grow(*size)
            print(f"{size[0]} versions, {size[1]} streams, {size[2]:,} runs")
            for name, wall, cpu, code in measured(streams):
                late = "" if wall <= MOST_S else f"  more than {MOST_S:g} s"
                print(
                    f"  {name:<18} {wall:6.2f} s  {cpu:6.2f} s of CPU  (exit code {code}){late}", flush=True
                )
                found.append({"versions": size[0], "command": name, "s": wall, "cpu_s": cpu, "code": code})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
