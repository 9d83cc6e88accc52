"""Many commands at once in two clones on one MLflow store: nobody takes anything from anybody.

    python -m tests.faults.crowd --rounds 50
    python -m tests.faults.crowd --store postgres

Each round starts eight commands in each clone at the same moment: audits, labels, promotions, exports ...
Right is an answer, or a refusal that says that somebody else moved something. A traceback is wrong, and so
is an audit that finds anything but that this clone is behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.commands import command
from tests.faults.forked import CRASHED, REFUSED, Work, Worker, done, import_everything
from tests.faults.lent import read_from_server
from tests.pipeline.conftest import Line, make_project
from tests.support.cells import LENIENT
from tests.support.servers import shared, why_not

BUSY = (
    "catch-up",
    "another folder",
    "is the champion already",
    "there is no previous",
    "there is no champion",
)
"""What a refusal says whose reason is that others moved something."""

BEHIND = "canal ledger --catch-up"
STORES = ("server", "postgres", "sqlite")
"""An MLflow server, PostgreSQL without a server, one file of sqlite that both clones name."""

Report = dict[str, Any]


def main() -> None:
    """Run the long form and print a report; exit code 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=STORES, default="server")
    parser.add_argument("--base", type=Path, help="a learned project; by default the tests' is learned first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canal-crowd-") as scratch:
        base = Line(arguments.base) if arguments.base else make_project(Path(scratch) / "base")
        if not arguments.base:
            base.run("dvc", "repro", "--quiet")
            base.run("canal", "registry", "sync")
        import_everything()
        report = crowd(base, Path(scratch) / "crowd", arguments.rounds, arguments.seed, store=arguments.store)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def crowd(base: Line, scratch: Path, rounds: int, seed: int, each: int = 8, store: str = "server") -> Report:
    """Let ``each`` commands run at once in each of two clones on one store, ``rounds`` times."""
    scratch.mkdir(parents=True)
    env = _store(store, scratch)
    clones = _clones(base, scratch, env)
    draw, found, wrong = random.Random(seed), Counter[str](), []
    for number in range(rounds):
        works = [(clone, *_drawn(draw, clone, number, i, env)) for clone in clones for i in range(each)]
        workers = [(name, Worker(work, clone)) for clone, name, work in works]
        for name, worker in workers:
            ended, what = _judged(worker)
            found[ended] += 1
            if ended == "wrong":
                wrong.append(f"{name}: {what}")
            worker.answer.unlink()
        for clone in clones:
            done(command("ledger", "--catch-up", env=env), clone)
        sys.stderr.write(f"round {number + 1} of {rounds}: {dict(found)}\n")
    assert not wrong, f"{len(wrong)} of {sum(found.values())} commands:\n" + "\n".join(wrong[:10])
    _require_one_history(clones, env)
    report = {"store": store, "clones": len(clones), "processes": 2 * each, "rounds": rounds, **found}
    return report | ({"where lent": read_from_server(clones[0], env)} if store == "server" else {})


def crowds(base: Line, scratch: Path, rounds: int, seed: int) -> dict[str, Report]:
    """Let a crowd work on each kind of store; one that cannot be started here says why."""
    found: dict[str, Report] = {}
    for store in STORES:
        why = why_not(store) if store == "postgres" else None
        place = scratch / store
        found[store] = {"not run": why} if why else crowd(base, place, rounds, seed, store=store)
    return found


def _store(kind: str, scratch: Path) -> dict[str, str]:
    """Return the variables by which commands find a new, empty store."""
    if kind == "sqlite":
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{_empty(scratch / 'shared.db')}"}
    server = shared(kind, scratch, _empty(scratch / "empty.db"))
    server.wait()
    artifacts = (scratch / "artifacts").as_uri()
    own = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts} if kind == "postgres" else {}
    return {"MLFLOW_TRACKING_URI": server.uri} | server.env | own


def _drawn(draw: random.Random, clone: Path, number: int, i: int, env: dict[str, str]) -> tuple[str, Work]:
    """Return one of the commands, and its name."""
    output = str(clone / ".canal" / f"{number}-{i}")
    by = ("--by", f"{clone.name} {i}", "--why", "crowd")
    commands: dict[str, tuple[str, ...]] = {
        "audit": ("audit", "--json"),
        "audit one": ("audit", "2", "--json"),
        "show": ("show", "candidate"),
        "versions": ("versions",),
        "annotate": ("annotate", "raw/first.h5ad", "-o", f"{output}.csv"),
        "promote 1": ("promote", "1", *by, "--override", "*"),
        "promote 2": ("promote", "2", *by, "--override", "*"),
        "rollback": ("rollback", *by),
        "export": ("export", "2", "-o", f"{output}.zip"),
        "sync": ("registry", "sync"),
        "diff": ("diff", "1", "2"),
        "catch up": ("ledger", "--catch-up"),
    }
    names = (
        "audit",
        "audit one",
        "annotate",
        "show",
        *commands,
    )  # what reads whole versions comes more often
    name = draw.choice(names)
    return name, command(*commands[name], env=env)


def _judged(worker: Worker) -> tuple[str, str]:
    """Return how a command ended, and what it said."""
    code = worker.wait()
    if code == REFUSED:
        said = worker.said
        return ("refused, others were quicker", said) if any(one in said for one in BUSY) else ("wrong", said)
    if code:
        return "wrong", f"exit code {code}, {'traceback' if code == CRASHED else ''}: {worker.said[-3000:]}"
    result = json.loads(worker.said)
    if result["code"] == 0:
        return "answered", ""
    try:
        findings = json.loads(result["said"])["findings"]
    except (ValueError, KeyError):
        return "wrong", result["said"][-3000:]
    others = [one for one in findings if BEHIND not in one["what"]]
    return ("wrong", json.dumps(others)) if others else ("audited behind the other clone", "")


def _clones(base: Line, scratch: Path, env: dict[str, str]) -> list[Path]:
    """Return two copies of a learned project whose registry is in the store."""
    one, other = scratch / "one", scratch / "other"
    shutil.copytree(base.root, one, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    line = Line(one)
    line.edit(lambda document: document.update(policy=LENIENT))
    line.run("git", "commit", "--quiet", "--all", "--message", "policy")
    done(command("registry", "sync", env=env), one)
    shutil.rmtree(one / ".canal" / "versions", ignore_errors=True)
    shutil.copytree(one, other, symlinks=True)
    (other / ".canal" / "claim").unlink(missing_ok=True)
    return [one, other]


def _require_one_history(clones: list[Path], env: dict[str, str]) -> None:
    """Assert that both clones hold the same ledger, each audit passes, and nothing is left behind."""
    for clone in clones:
        done(command("ledger", "--catch-up", env=env), clone)
    ledgers = [(clone / "ledger.jsonl").read_bytes() for clone in clones]
    assert ledgers[0] == ledgers[1]
    for clone in clones:
        audited = done(command("audit", "--json", env=env), clone)
        assert audited["code"] == 0, audited["said"][-3000:]
        assert [one.name for one in (clone / ".canal").glob("versions/.*")] == []


def _empty(path: Path) -> Path:
    from canal.registry.store.new_database import ensure_database

    if pid := os.fork():  # the parent of workers opens no store
        assert os.waitpid(pid, 0)[1] == 0
        return path
    ensure_database(path)
    os._exit(0)


if __name__ == "__main__":
    main()
