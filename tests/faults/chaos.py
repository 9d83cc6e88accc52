"""Kill, race and starve a small real registry, and report what was left: `make chaos`; tests do it in short.

    python -m tests.faults.chaos --kills 100

Learns the small project of the tests once (real git, DVC, MLflow), then works on copies of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from tests.faults.forked import CRASHED, REFUSED, Worker, done, import_everything
from tests.pipeline.conftest import Line, make_project, move_database
from tests.support.cells import LENIENT

NOBODY = 65534
Report = dict[str, Any]


def main() -> None:
    """Run the long form and print a report; exit code 1 if anything did not hold."""
    from tests.faults.crowd import crowds
    from tests.faults.kills import kill_commands

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--locked", type=float, default=30.0, help="seconds that the database is locked")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of each crowd")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canal-chaos-") as scratch:
        base = make_project(Path(scratch) / "base")
        base.run("dvc", "repro", "--quiet")
        base.run("canal", "registry", "sync")  # not here: an open store names itself in the environment
        kills = (arguments.kills, arguments.kills)
        report = run(base, Path(scratch), kills, arguments.seed, arguments.locked)
        report |= {
            "commands": kill_commands(base, Path(scratch), arguments.kills, arguments.seed),
            "crowds": crowds(base, Path(scratch) / "crowds", arguments.rounds, arguments.seed),
        }
    assert not report["commands"]["wrong"], "\n".join(report["commands"]["wrong"])
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def run(base: Line, scratch: Path, kills: tuple[int, int], seed: int, locked: float) -> Report:
    """Do everything to copies of a learned project; an `AssertionError` says what did not hold.

    ``kills`` are those of promoting, and those of learning and registering.
    """
    import_everything()
    return {
        "promote": kill_promotions(copy(base, scratch / "promote"), kills[0], seed),
        "learn": kill_learning(copy(base, scratch / "learn"), scratch, kills[1], seed),
        "race": race(copy(base, scratch / "race"), 8),
        "full disk": full_disk(copy(base, scratch / "full")),
        "read-only": read_only(base),
        "locked": locked_database(copy(base, scratch / "locked"), locked),
    }


def copy(line: Line, target: Path) -> Line:
    """Return a copy of a project that a promotion may be tried on."""
    shutil.copytree(line.root, target, symlinks=True)
    move_database(target, line.root)
    found = Line(target)
    found.edit(lambda document: document.update(policy=LENIENT))
    return found


# What workers do -----------------------------------------------------------------------------------------


def promote_other() -> dict[str, Any]:
    """Promote version 1 where 2 serves, and 2 where 1 does or none."""
    from canal.app.project import Project
    from canal.app.promoting import Decision, judge_version, promote
    from canal.registry.ledger.ledger_rules import CHAMPION
    from canal.registry.promotion.promotion import holder

    project = Project.open()
    champion = holder(project.store, CHAMPION)
    wanted = "2" if champion is None or champion.number == 1 else "1"
    return promote(project, judge_version(project, wanted), Decision("chaos", "because")).document


def learn_second() -> dict[str, Any]:
    """Learn, measure and register the second stage, as its steps do when MLflow starts them."""
    from canal.app.project import Project
    from canal.app.versions import registry_sync
    from canal.registry.store.tracking import stage_run, step_run

    project = Project.open()
    sys.argv = ["step", "--stage", "second"]
    for step, function in (("finetune", "learn"), ("evaluate", "measure")):
        parent = stage_run(project.store, project.config, "second")
        tags = {"mlflow.parentRunId": parent}
        run = project.store.client.create_run(project.store.experiment_id, tags=tags)
        with step_run(project.store, project.config, "second", step, run.info.run_id) as logged:
            getattr(_script(step), function)(project, logged)
    registry_sync(project)
    return {str(version.number): version.key for version in project.store.versions() if version.ready}


def sync() -> dict[str, Any]:
    """Register what there is, which also finishes what a kill left."""
    from canal.app.project import Project
    from canal.app.versions import registry_sync

    return {"made": len(registry_sync(Project.open()).made)}


def promoted() -> dict[str, Any]:
    """Promote the other version, and return what is there then."""
    return _timed(promote_other)


def learned() -> dict[str, Any]:
    """Learn and register the second stage, and return what is there then."""
    return _timed(learn_second)


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    began = time.monotonic()
    work()
    return {"seconds": time.monotonic() - began, **whole()}


def settled() -> dict[str, Any]:
    """Register what there is, and return what is there then."""
    sync()
    return whole()


def whole() -> dict[str, Any]:
    """Audit everything; return the findings, the aliases, the ledger's last word on them, its kinds."""
    from canal.app.project import Project
    from canal.registry.audit.full_audit import audit
    from canal.registry.ledger.ledger import ledger_aliases
    from canal.registry.promotion.moves import ledger_of

    project = Project.open()
    report = audit(project.store, project.layout, project.config)
    entries = ledger_of(project.store).entries()
    versions = project.store.versions()
    return {
        "findings": [str(finding) for finding in report.findings],
        "aliases": {alias: version.number for version in versions for alias in version.aliases},
        "said": ledger_aliases(entries, project.store.names.model),
        "kinds": [entry.kind for entry in entries],
        "ready": {version.stage: version.key for version in versions if version.ready},
        "pending": project.layout.pending.exists(),
    }


def _script(name: str) -> Any:
    path = Path.cwd() / "pipelines" / f"{name}.py"
    spec = spec_from_file_location(f"step_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is done to them ------------------------------------------------------------------------------------


def kill_promotions(line: Line, kills: int, seed: int) -> Report:
    """Kill promotions at random moments: the next command finishes or forgets them, never half."""
    state, found = check(line.root, promoted), Counter[str]()
    moments = random.Random(seed)
    while found["killed"] < kills:
        before = state["kinds"]
        killed = Worker(promote_other, line.root).kill_after(moments.uniform(0, 1.1 * state["seconds"]))
        after = check(line.root)["kinds"]
        assert after[: len(before)] == before
        assert after[len(before) :] in ([], ["promote"]), after
        made = len(after) > len(before)
        found["killed" if killed else "ended first"] += 1
        if killed:
            found["moved" if made else "not moved"] += 1
        state = check(line.root, promoted)
        tell("promote", kills, found)
    return {"seconds of one": round(state["seconds"], 2), **found}


def kill_learning(line: Line, scratch: Path, kills: int, seed: int) -> Report:
    """Kill learning, measuring and registering a stage at random moments; run again, get the same key."""
    wanted = done(whole, line.root)["ready"]
    unlearn_second(line)
    lasts, found = 0.0, Counter[str]()
    moments = random.Random(seed)
    while found["killed"] < kills:
        work = copy_of(line, scratch / "work")
        if lasts:
            killed = Worker(learn_second, work.root).kill_after(moments.uniform(0, 1.1 * lasts))
            found["killed" if killed else "ended first"] += 1
            seen = check(work.root)["ready"]
            assert seen.items() <= wanted.items(), "a half-made version can be seen"
            if killed:
                found["version was whole" if "second" in seen else "no version yet"] += 1
        state = check(work.root, learned)
        assert state["ready"] == wanted
        lasts = lasts or state["seconds"]
        shutil.rmtree(work.root)
        tell("learn", kills, found)
    return {"seconds of one": round(lasts, 2), **found}


def race(line: Line, n: int) -> Report:
    """Let processes promote and register at once: no lost entry, no traceback, one consistent ledger."""
    work: list[Callable[[], Any]] = [promote_other, sync]
    workers = [Worker(work[i % 2], line.root) for i in range(n)]
    codes = [worker.wait() for worker in workers]
    crashed = [worker.said for worker, code in zip(workers, codes, strict=True) if code == CRASHED]
    assert not crashed, crashed[0]
    state = check(line.root)
    promoted = sum(code == 0 and i % 2 == 0 for i, code in enumerate(codes))
    assert state["kinds"].count("promote") == promoted
    return {"processes": n, "moved": promoted, "refused": codes.count(REFUSED)}


def full_disk(line: Line) -> Report:
    """Forbid files to grow while a version is promoted: refused, nothing lost, works afterwards."""
    before = kinds(line.root)

    def starved() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = (line.root / "ledger.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return promote_other()

    worker = Worker(starved, line.root)
    code = worker.wait()
    assert code == REFUSED, worker.said
    said = worker.said
    assert check(line.root)["kinds"][: len(before)] == before
    check(line.root, promoted)
    return {"said": said.splitlines()[0][:200]}


def read_only(base: Line) -> Report:
    """Promote in a folder where nothing may be written: refused, nothing lost."""
    with tempfile.TemporaryDirectory(prefix="canal-read-only-") as place:
        Path(place).chmod(0o755)
        line = copy(base, Path(place) / "project")
        for path in (line.root, *line.root.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222 | 0o444 | (0o111 if path.is_dir() else 0))

        def helpless() -> Any:
            if os.geteuid() == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)  # nothing is read-only for root
            os.environ["HOME"] = place
            return promote_other()

        worker = Worker(helpless, line.root)
        Path(worker.answer).chmod(0o666)
        code = worker.wait()
        assert code == REFUSED, worker.said
        for path in (line.root, *line.root.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
        check(line.root, promoted)
        return {"said": worker.said.splitlines()[0][:200]}


def locked_database(line: Line, seconds: float) -> Report:
    """Lock the database while a version is promoted: it waits or is refused, and works afterwards."""
    before = kinds(line.root)
    with locked(line.root / "mlflow.db", seconds):
        began = time.monotonic()
        worker = Worker(promote_other, line.root)
        code = worker.wait()
        took = time.monotonic() - began
    assert code in (0, REFUSED), worker.said
    assert check(line.root)["kinds"][: len(before)] == before
    check(line.root, promoted)
    said = "it waited" if code == 0 else worker.said.splitlines()[0][:200]
    return {"locked for": seconds, "answered after": round(took, 1), "said": said}


@contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Hold the database's exclusive lock for ``seconds``, from another process."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        os.write(told, b"1")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        os._exit(0)
    os.read(ready, 1)
    yield
    os.waitpid(child, 0)


def check(root: Path, work: Callable[[], dict[str, Any]] = settled) -> dict[str, Any]:
    """Finish what a kill left, or do something whole, and return the state, in which everything must hold."""
    state: dict[str, Any] = done(work, root)
    assert state["findings"] == [], state["findings"][:5]
    assert state["aliases"] == state["said"]
    assert not state["pending"]
    return state


def kinds(root: Path) -> list[str]:
    """Return the kinds of the ledger's entries."""
    return [json.loads(line)["kind"] for line in (root / "ledger.jsonl").read_text().splitlines()]


def tell(what: str, of: int, found: Counter[str]) -> None:
    """Say how far it is, on stderr: the long form takes long, and what it found so far counts."""
    counts = ", ".join(f"{name} {count}" for name, count in sorted(found.items()) if name != "killed")
    sys.stderr.write(f"{what}: {found['killed']} of {of} killed; {counts}\n")
    sys.stderr.flush()


def unlearn_second(line: Line) -> None:
    """Take the second stage out of registry, ledger and folder, as if it had never been learned."""

    def forget() -> None:
        from canal.app.project import Project

        store = Project.open().store
        store.client.delete_model_version(store.names.model, "2")
        store.client.delete_registered_model_alias(store.names.model, "candidate")

    done(forget, line.root)
    with sqlite3.connect(line.root / "mlflow.db") as database:
        for table in ("model_versions", "model_version_tags"):
            database.execute(f"DELETE FROM {table} WHERE version = 2")  # noqa: S608 - so that 2 is free again
    database.close()
    ledger = line.root / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:2]))
    for folder in ("models/second", "metrics/second"):
        shutil.rmtree(line.root / folder)
    line.run("git", "add", "--all")
    # amended: a commit on top that cuts the ledger is what audit names
    line.run("git", "commit", "--quiet", "--amend", "--message", "before the second stage")


def copy_of(line: Line, target: Path) -> Line:
    """Return an exact copy of a project; its commit stays clean."""
    shutil.copytree(line.root, target, symlinks=True)
    move_database(target, line.root)
    return Line(target)


if __name__ == "__main__":
    main()
