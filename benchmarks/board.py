"""Seconds of `canal ui`: its start, its pages, 32 readers beside a decision, and a dropped file.

    python benchmarks/board.py --root PROJECT [--versions 200] [--records 10000] [--cells 3000] [--json]

Works on a copy of a finished project, whose newest version is registered again and again (its documents, each
learned on the one before; no weights) with an entry of the ledger each, and whose log gets records. Seconds
are of the wall; CPU seconds of the server stand beside them, for a machine that does other things.
"""

import argparse
import json
import os
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata
import numpy as np
import psutil
import requests

from canal.annotation.records import make_record
from canal.app.project import Project
from canal.core.digests import canonical_json, file_digest
from canal.core.files import read_json, write_json
from canal.registry.ledger.ledger import Draft, Ledger
from canal.registry.store.database import Version

TOKEN = "0123456789abcdef" * 2
_DOCUMENTS = ("metrics", "split", "validation", "model/labels.json")
PAGES = ("/", "/versions/{newest}", "/compare?a=1&b={newest}", "/ledger", "/gate", "/data", "/data/{source}",
         "/files", "/files?q=cells-77", "/withdrawn", "/naming", "/drop")  # fmt: skip


def grown(root: Path, versions: int, records: int) -> None:
    """Register the newest version again until there are so many, and log records of labelled files."""
    project = Project.open(root)
    store = project.store
    known = [one for one in store.versions() if one.ready]
    pattern, parent = known[-1], known[-1]
    folder = store.artifacts(pattern)
    ledger = Ledger(project.layout.ledger)
    drafts = []
    with sqlite3.connect(root / "mlflow.db") as database:
        for number in range(max(one.number for one in store.versions()) + 1, versions + 1):
            parent = _again(database, project, folder, pattern, parent, number)
            drafts.append(
                Draft("register", parent.model, number, parent.key, parent.record, "benchmark", aliases={})
            )
    database.close()
    for draft in drafts:
        ledger.append(ledger.next(draft))
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with project.layout.annotations.open("a", encoding="utf-8") as log:
        for number in range(records):
            facts = {
                "time": (begun + timedelta(minutes=number)).isoformat(timespec="milliseconds"),
                "input": {"name": f"cells-{number}.h5ad", "bytes": 1, "sha256": f"{number:064x}"},
                "model": {"model": pattern.model, "version": pattern.number, "key": pattern.key},
                "options": {},
                "cell_types": {f"type {place}": 100 for place in range(12)} | {"Unassigned": 7},
                "n_cells": 1207,
            }
            log.write(canonical_json(make_record(facts)) + "\n")


def _again(
    database: sqlite3.Connection,
    project: Project,
    folder: Path,
    pattern: Version,
    parent: Version,
    number: int,
) -> Version:
    """Register the documents of a version once more, learned on ``parent``, and return it."""
    target = project.layout.artifacts / f"board-{number}"
    for name in _DOCUMENTS:
        source = folder / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.is_file():
            shutil.copyfile(source, target / name)
    write_json(target / "key.json", {**read_json(folder / "key.json"), "parent": parent.key, "seed": number})
    key = file_digest(target / "key.json")
    write_json(target / "record.json", {**read_json(folder / "record.json"), "key": key})
    made = Version.unregistered(pattern.model, number, key, file_digest(target / "record.json"))
    columns = [row[1] for row in database.execute("PRAGMA table_info(model_versions)")]
    values = dict(
        zip(
            columns,
            database.execute(
                "SELECT * FROM model_versions WHERE name = ? AND version = ?", (pattern.model, pattern.number)
            ).fetchone(),
            strict=True,
        )
    )
    model = f"m-{number:032x}"
    values |= {"version": number, "source": f"models:/{model}", "creation_time": 1_767_225_600_000 + number}
    _insert(database, "model_versions", values)
    logged = [row[1] for row in database.execute("PRAGMA table_info(logged_models)")]
    of = database.execute(
        "SELECT * FROM logged_models WHERE model_id = ?", (pattern.source.removeprefix("models:/"),)
    ).fetchone()
    _insert(
        database,
        "logged_models",
        dict(zip(logged, of, strict=True)) | {"model_id": model, "artifact_location": target.as_uri()},
    )
    tags = database.execute(
        "SELECT workspace, key, value FROM model_version_tags WHERE name = ? AND version = ?",
        (pattern.model, pattern.number),
    ).fetchall()
    new = {"canal.key": key, "canal.record": made.record, "canal.parent": str(parent.number)}
    for workspace, name, value in tags:
        row = {"workspace": workspace, "name": pattern.model, "version": number, "key": name}
        _insert(database, "model_version_tags", row | {"value": new.get(name, value)})
    return made


def _insert(database: sqlite3.Connection, table: str, values: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


class Served:
    """A board in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        (root.parent / "token").write_text(TOKEN)

    @contextmanager
    def running(self) -> Iterator[float]:
        """Start it; give the seconds until its first page."""
        command = [sys.executable, "-m", "canal.cli", "ui", "--port", str(self.port)]
        log = (self.root.parent / "board.log").open("w")
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--token-file", str(self.root.parent / "token")], cwd=self.root, stdout=log, stderr=log
        )
        self.process = psutil.Process(process.pid)
        try:
            while True:
                try:
                    requests.get(f"{self.address}/", timeout=60).raise_for_status()
                    break
                except requests.ConnectionError:
                    if process.poll() is not None:
                        raise SystemExit((self.root.parent / "board.log").read_text()) from None
                    time.sleep(0.02)
            yield time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(60)
            log.close()

    @property
    def cpu(self) -> float:
        """CPU seconds of the server so far."""
        spent = self.process.cpu_times()
        return spent.user + spent.system

    def session(self, name: str = "") -> requests.Session:
        """Return a browser, logged in under a name."""
        one = requests.Session()
        if name:
            one.post(f"{self.address}/login", {"csrf": self.csrf(one), "token": TOKEN, "name": name})
        return one

    def csrf(self, session: requests.Session) -> str:
        """Return the secret of a browser's forms."""
        found = re.search(r'data-csrf="(\w+)"', session.get(f"{self.address}/drop").text)
        assert found is not None
        return found[1]

    def finished(self, session: requests.Session, answer: requests.Response) -> str:
        """Wait until a job has ended, and return its page."""
        address = answer.headers["location"] if answer.status_code == 201 else answer.url
        while "data-reload" in (page := session.get(requests.compat.urljoin(self.address, address)).text):
            time.sleep(0.1)
        return page


def pages(board: Served, newest: int, source: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median and the longest seconds of each page."""
    session, found = board.session(), {}
    for address in PAGES:
        path, took = address.format(newest=newest, source=source), []
        for _ in range(rounds):
            began = time.perf_counter()
            session.get(f"{board.address}{path}").raise_for_status()
            took.append(time.perf_counter() - began)
        found[path] = {"first": took[0], "median": statistics.median(took[1:]), "max": max(took[1:])}
    return found


def crowd(board: Served, paths: list[str], clients: int, number: int) -> dict[str, Any]:
    """Let clients read while somebody judges a version; return how long they waited, and for how long."""
    stop, waited, wrong = threading.Event(), [], []

    def read(place: int) -> None:
        session = board.session()
        while not stop.is_set():
            began = time.perf_counter()
            answer = session.get(f"{board.address}{paths[place % len(paths)]}")
            waited.append(time.perf_counter() - began)
            if answer.status_code != 200:
                wrong.append(answer.status_code)
            place += 1

    person = board.session("A. Person")
    began, threads = time.perf_counter(), [threading.Thread(target=read, args=(n,)) for n in range(clients)]
    for one in threads:
        one.start()
    fields = {"csrf": board.csrf(person), "why": "a benchmark", "do": "promote", "too_few": "a benchmark"}
    page = board.finished(
        person,
        person.post(f"{board.address}/versions/{number}/promote", fields | {"override": "*"}),
    )
    seconds = time.perf_counter() - began
    stop.set()
    for one in threads:
        one.join()
    return {
        "decision_s": seconds,
        "served": " serves" in re.sub(r"<[^>]+>", "", page),
        "requests": len(waited),
        "median": statistics.median(waited),
        "p95": float(np.quantile(waited, 0.95)),
        "max": max(waited),
        "wrong": len(wrong),
    }


def dropped(board: Served, file: Path) -> dict[str, Any]:
    """Drop a file twice, with the model not loaded yet and loaded; return the seconds until its map."""
    session, found = board.session(), {}
    for which in ("first", "again"):
        headers = {"X-CSRF": board.csrf(session), "X-File-Name": file.name, "X-Model": ""}
        headers["Content-Type"] = "application/octet-stream"
        began, cpu = time.perf_counter(), board.cpu
        page = board.finished(
            session, session.post(f"{board.address}/drop", file.read_bytes(), headers=headers)
        )
        assert "cells labelled" in page, re.sub(r"<[^>]+>", " ", page)
        found[which] = {"s": time.perf_counter() - began, "cpu_s": board.cpu - cpu}
    return found


def cells_of(project: Project, n: int, target: Path) -> Path:
    """Write a file of n cells of the project's newest source, drawn with replacement."""
    for stage in reversed(project.config.stages):
        path = project.layout.source(project.config.stages[stage].source) / "cells.h5ad"
        if path.is_file():
            break
    adata = anndata.read_h5ad(path)
    drawn = adata[np.sort(np.random.default_rng(0).integers(adata.n_obs, size=n))].copy()
    drawn.obs_names = [f"cell-{place}" for place in range(n)]
    drawn.obsm.clear()
    drawn.write_h5ad(target)
    return target


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with TemporaryDirectory(prefix="canal-board-") as scratch:
        root = Path(scratch) / "project"
        subprocess.run(["cp", "-R", arguments.root.resolve(), root], check=True)
        Project.open(root).store.update_paths()
        real = [one for one in Project.open(root).store.versions() if one.ready]
        number = next(one.number for one in reversed(real) if "champion" not in one.aliases)
        grown(root, arguments.versions, arguments.records)
        project = Project.open(root)
        source = next(iter(project.config.sources))
        file = cells_of(project, arguments.cells, Path(scratch) / "cells.h5ad")
        board = Served(root)
        with board.running() as start:
            found: dict[str, Any] = {"start": {"s": start, "cpu_s": board.cpu}}
            found["pages"] = pages(board, arguments.versions, source, arguments.rounds)
            found["alone"] = {"max": max(one["max"] for one in found["pages"].values())}
            found["crowd"] = crowd(board, list(found["pages"]), arguments.clients, number)
            found["drop"] = dropped(board, file)
            found["memory_mb"] = board.process.memory_info().rss / 1e6
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    print(f"start to the first page: {start:.2f} s ({found['start']['cpu_s']:.2f} s of CPU)")
    print(f"{'page':<32} {'first':>7} {'median':>7} {'max':>7}  seconds")
    for path, one in found["pages"].items():
        print(f"{path:<32} {one['first']:>7.3f} {one['median']:>7.3f} {one['max']:>7.3f}")
    one = found["crowd"]
    print(
        f"{arguments.clients} readers beside a decision of {one['decision_s']:.1f} s "
        f"(served: {one['served']}): {one['requests']} pages, median {one['median']:.3f}, "
        f"95 % within {one['p95']:.3f}, longest {one['max']:.3f} s, {one['wrong']} wrong"
    )
    for which, of in found["drop"].items():
        print(f"{arguments.cells:,} cells, {which}: {of['s']:.1f} s ({of['cpu_s']:.1f} s of CPU)")
    print(f"memory of the server: {found['memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
