"""Kill every command that writes, at random moments: what is left is whole, and the command runs again.

    python -m tests.faults.kills --kills 100

Each kill (SIGKILL) hits a command in a copy of a small learned project. After it nothing may lie half
written under a final name, and nothing that was there may be lost. Then the command runs again, or says that
it is done; then sync finds nothing amiss, an audit passes, and no temporary file is left.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.data.split import read_split
from tests.faults.chaos import check
from tests.faults.commands import command
from tests.faults.forked import REFUSED, Worker, done, import_everything
from tests.faults.whole import whole_file
from tests.pipeline.conftest import Line, make_project, move_database
from tests.support.cells import LENIENT
from tests.support.published import write_published

BY = ("--by", "A. Person", "--why", "kills")
PROMOTE = ("promote", "2", *BY, "--override", "*")
STORE = ("mlflow.db", "mlartifacts")
REGISTRY = (*STORE, "ledger.jsonl")
SOMEBODY = "A. Person ed25519 w2sWWjG7nSz6n4JpYI8WqQyF0VjqvUQ8lM0rj5nQ9bA="
THIRD = "raw/third.h5ad"
OLD = b"what lay here before"
"""Content of an output that a command is told to replace."""

ERASE = ("erase", "second", "--cells", "gone.txt", *BY, "--confirm", "TOKEN")
"""The token is that of the project's token.txt."""

Prepare = Callable[[Line], None]
Report = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A command that writes.

    Attributes
    ----------
    name : str
    arguments : sequence of str
        The command, in the project's folder.
    prepare : callable
        Makes of a learned project the one in which the command runs.
    outputs : sequence of str
        Files that it makes; before it lies what it is told to replace in those that it may.
    changes : sequence of str
        Files and folders of the project that it may change.
    done_already : str
        What it may say where it runs again though it was done.
    again : sequence of str
        The command that is run after the kill; by default the same.
    shared : bool
        Whether the project is one of two folders that share a store.
    """

    name: str
    arguments: Sequence[str]
    prepare: Prepare = lambda line: None
    outputs: Sequence[str] = ()
    changes: Sequence[str] = ()
    done_already: str = ""
    again: Sequence[str] = ()
    shared: bool = False


def lose_store(line: Line) -> None:
    """Lose MLflow's database and files; the ledger stays."""
    (line.root / "mlflow.db").unlink()
    shutil.rmtree(line.root / "mlartifacts")


def begin_anew(line: Line) -> None:
    """Be a project that learned its stages and has never registered anything."""
    lose_store(line)
    (line.root / "ledger.jsonl").unlink()
    # Nor has its git history a ledger: one that is gone from there would be a finding.
    shutil.rmtree(line.root / ".git")
    line.run("git", "init", "--quiet")


def unlearned(line: Line) -> None:
    """Be a project that has learned nothing yet, beside a version that another one exported."""
    canal(line, "export", "2", "-o", "x.zip")
    begin_anew(line)
    for name in ("models", "metrics"):
        shutil.rmtree(line.root / name)
    (line.root / "dvc.lock").unlink()


def with_checkpoint(line: Line) -> None:
    """Be such a project, beside published weights."""
    unlearned(line)
    write_published(line.root)


def promoted(*numbers: str) -> Prepare:
    """Return what promotes versions, one after the other."""

    def prepare(line: Line) -> None:
        for number in numbers:
            canal(line, "promote", number, *BY, "--override", "*")

    return prepare


def labelled(line: Line) -> None:
    """Label the cells of a file."""
    canal(line, "annotate", "raw/third.h5ad", "-o", "labelled.h5ad")


def with_key(line: Line) -> None:
    """Have a key, whose line is to be added to a keyring."""
    canal(line, "keys", "new", "--name", "B. Person", "-o", "other.pem")
    canal(line, "keys", "add", "keyring.txt", public_line(line))


def public_line(line: Line) -> str:
    """Return the line of the key that `with_key` made."""
    return str(done(command("keys", "show", "other.pem"), line.root)["said"]).strip()


def one_of_two(line: Line) -> None:
    """Have a second folder promote a version in the store that both share."""
    other = line.root.parent / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(line.root, other, symlinks=True)
    canal(Line(other), "promote", "2", *BY, "--override", "*", env=_store(line))


def name_cells(line: Line) -> None:
    """Have sums, and name three cells of the second stage whose consent is withdrawn."""
    canal(line, "sums", "backfill", "second")
    split = read_split(line.root / "splits" / "second.csv")
    named = split[split["set"] == "train"]["cell_id"][:3]
    (line.root / "gone.txt").write_text("\n".join(named) + "\n")


def unlearn_cells(line: Line) -> None:
    """Have unlearned three cells, let the new version serve, and know the token of what still holds them."""
    name_cells(line)
    canal(line, "unlearn", "second", "--cells", "gone.txt", *BY)
    canal(line, "promote", "candidate", *BY, "--override", "*")
    said = done(command(*ERASE[:-2], "--dry-run", "--json"), line.root)["said"]
    (line.root / "token.txt").write_text(json.loads(said)["token"])


def with_cells_to_take_back(line: Line) -> None:
    """Have a version without three cells, and a bundle of the sums with them, whose cells nobody knows."""
    name_cells(line)
    canal(line, "share", "candidate", "-o", "shared.canal", "--min-cells", "1")
    canal(line, "unlearn", "second", "--cells", "gone.txt", *BY)


def with_other_ledger(line: Line) -> None:
    """Have a clone that promoted another version than this one did."""
    other = Line(line.root.parent / "clone")
    shutil.copytree(line.root, other.root, symlinks=True)
    move_database(other.root, line.root)
    canal(other, "promote", "2", *BY, "--override", "*")
    shutil.copyfile(other.root / "ledger.jsonl", line.root / "other.jsonl")
    shutil.rmtree(other.root)
    canal(line, "promote", "1", *BY, "--override", "*")


CASES = (
    Case("first command", ("registry", "sync"), begin_anew, changes=REGISTRY),
    Case(
        "registry rebuild",
        ("registry", "rebuild", *BY),
        lose_store,
        again=("registry", "sync"),
        changes=STORE,
    ),
    Case("promote", PROMOTE, promoted("1"), done_already="is the champion already"),
    Case("rollback", ("rollback", *BY), promoted("1", "2")),
    Case("retire", ("retire", "1", *BY), done_already="was retired before"),
    Case("import", ("import", "x.zip"), unlearned, changes=REGISTRY),
    Case("export", ("export", "2", "-o", "x.zip", "--overwrite"), outputs=("x.zip",)),
    Case("annotate h5ad", ("annotate", THIRD, "-o", "o.h5ad", "--overwrite"), outputs=("o.h5ad",)),
    Case("annotate csv", ("annotate", THIRD, "-o", "o.csv", "--overwrite"), outputs=("o.csv",)),
    Case(
        "novel",
        ("novel", "labelled.h5ad", "-o", "novel.csv", "--overwrite", "--min-cells", "1"),
        labelled,
        outputs=("novel.csv",),
    ),
    Case(
        "explain",
        ("explain", "labelled.h5ad", "-o", "genes.csv", "--overwrite"),
        labelled,
        outputs=("genes.csv",),
    ),
    Case(
        "stage add",
        ("stage", "add", "third", "--file", THIRD, "--values", "counts", "--min-genes", "1", "--commit"),
        changes=("params.yaml",),
        done_already="exists already",
    ),
    Case("stage relearn", ("stage", "relearn", "second"), changes=("params.yaml",)),
    Case(
        "keys new",
        ("keys", "new", "--name", "A. Person", "-o", "key.pem"),
        outputs=("key.pem",),
        done_already="is there already",
    ),
    Case(
        "keys add",
        ("keys", "add", "keyring.txt", SOMEBODY),
        with_key,
        outputs=("keyring.txt",),
        done_already="holds this key already",
    ),
    Case("report", ("report", "-o", "report"), outputs=("report/index.html",)),
    Case("lineage page", ("lineage", "2", "--html", "lineage.html"), outputs=("lineage.html",)),
    Case("diff", ("diff", "1", "2", THIRD, "--cells", "changed.csv"), outputs=("changed.csv",)),
    Case(
        "sums backfill",
        ("sums", "backfill", "second"),
        done_already="already has sums",
        changes=("models/second", "metrics/second", "scores/second", "dvc.lock"),
    ),
    Case(
        "backbone import",
        ("backbone", "import", "Panglao pretrain.pth", "--genes", "genes.txt"),
        with_checkpoint,
        changes=("params.yaml", "backbones", *REGISTRY),
    ),
    Case(
        "unlearn",
        ("unlearn", "second", "--cells", "gone.txt", *BY),
        name_cells,
        changes=("params.yaml", "models", "metrics", "scores", "splits", "dvc.lock", *REGISTRY),
        done_already="has no 3 of the 3 named cells",
    ),
    Case(
        "erase",
        ERASE,
        unlearn_cells,
        changes=("params.yaml", "data", "incoming", "prepared", "dvc.lock", "data.dvc", "erased", *REGISTRY),
    ),
    Case(
        "merge",
        ("merge", "candidate", "shared.canal", "--overlap", "once", *BY),
        with_cells_to_take_back,
        changes=("params.yaml", "models", "metrics", "scores", "splits", "dvc.lock", *REGISTRY),
        done_already="has the sums of both already",
    ),
    Case(
        "share",
        ("share", "candidate", "-o", "again.canal", "--min-cells", "1"),
        name_cells,
        outputs=("again.canal",),
        done_already="exists already",
    ),
    Case(
        "ledger merge",
        ("ledger", "merge", "other.jsonl", *BY),
        with_other_ledger,
        done_already="nothing to merge",
    ),
    Case("catch up", ("ledger", "--catch-up"), one_of_two, shared=True),
)


def main() -> None:
    """Run the long form and print a report; exit code 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of commands; by default all")
    parser.add_argument("--base", type=Path, help="a learned project; by default the tests' is learned first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canal-kills-") as scratch:
        base = Line(arguments.base) if arguments.base else make_project(Path(scratch) / "base")
        if not arguments.base:
            base.run("dvc", "repro", "--quiet")
            base.run("canal", "registry", "sync")
        import_everything()
        report = kill_commands(base, Path(scratch), arguments.kills, arguments.seed, arguments.only)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["wrong"]))


def kill_commands(
    base: Line, scratch: Path, kills: int, seed: int, only: Sequence[str] | None = None
) -> Report:
    """Kill each command ``kills`` times in copies of a learned project, and report what was found."""
    cases = [case for case in CASES if only is None or case.name in only]
    found = {case.name: _kill(case, base, scratch / f"killed {case.name}", kills, seed) for case in cases}
    wrong = [what for one in found.values() for what in one.pop("wrong")]
    return {"tried": sum(one["killed"] for one in found.values()), "wrong": wrong, "commands": found}


def canal(line: Line, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run a command in a worker; it must end well."""
    ended = done(command(*arguments, env=env), line.root)
    assert ended["code"] == 0, ended["said"]


_WAS_DONE, _RAN_AGAIN = "was done", "ran again"


def _kill(case: Case, base: Line, scratch: Path, kills: int, seed: int) -> Report:
    scratch.mkdir(parents=True)
    ready = _copied(base, scratch / "ready")
    ready.edit(lambda document: document.update(policy=LENIENT))
    if case.shared:
        (ready.root / "mlflow.db").rename(scratch / "shared.db")
    case.prepare(ready)
    for words in (("add", "--all"), ("commit", "--quiet", "--message", "prepared")):
        ready.run("git", *words)
    found, wrong, draw = Counter[str](killed=0), list[str](), random.Random(f"{case.name} {seed}")
    lasts = _whole(case, _copied(ready, scratch / "whole"))
    while found["killed"] < kills:
        line = _copied(ready, scratch / "work")
        moment = draw.uniform(0, 1.05 * lasts)
        try:
            found[_killed(case, line, moment)] += 1
            found["killed"] = found[_WAS_DONE] + found[_RAN_AGAIN]
        except AssertionError as error:
            found["killed"] += 1
            wrong.append(f"{case.name}, killed after {moment:.3f} s of {lasts:.3f}: {str(error)[-1500:]}")
        shutil.rmtree(line.root)
        sys.stderr.write(f"{case.name}: {found['killed']} of {kills} killed, {len(wrong)} wrong\n")
    shutil.rmtree(scratch)
    return {"seconds of one": round(lasts, 2), **found, "wrong": wrong}


def _whole(case: Case, line: Line) -> float:
    """Run the command once, whole, and return the seconds that it took."""
    began = time.monotonic()
    canal(line, *_arguments(case.arguments, line), env=_environment(case, line))
    lasts = time.monotonic() - began
    for name in case.outputs:
        assert whole_file(line.root / name), f"{name} is not seen to be whole"
    shutil.rmtree(line.root)
    return lasts


def _killed(case: Case, line: Line, moment: float) -> str:
    """Kill the command once, and check what is left; return whether it had been done, or ended first."""
    env = _environment(case, line)
    for name in case.outputs:
        if "--overwrite" in case.arguments:
            (line.root / name).write_bytes(OLD)
    before = _files(line)
    killed = Worker(command(*_arguments(case.arguments, line), env=env), line.root).kill_after(moment)
    for name in case.outputs:
        path = line.root / name
        assert not path.exists() or path.read_bytes() == OLD or whole_file(path), f"{name} is half written"
    _require_kept(case, line, before)
    was_done = _again(case, line, env)
    for name in case.outputs:
        assert whole_file(line.root / name), f"{name} is not whole after the command ran again"
    _require_kept(case, line, before)
    if case.shared:
        canal(line, "audit", env=env)
    else:
        check(line.root)
    left = [str(path.relative_to(line.root)) for path in line.root.rglob(".*.canal-*")]
    done(
        _use_scratch(Path(env["TMPDIR"])), line.root
    )  # who next has temporary files there takes away the rest
    left += [path.name for path in Path(env["TMPDIR"]).iterdir() if ".canal-" in path.name]
    assert not left, f"left behind: {left}"
    return "ended first" if not killed else _WAS_DONE if was_done else _RAN_AGAIN


def _use_scratch(place: Path) -> Callable[[], None]:
    def work() -> None:
        from canal.core.files import scratch_folder

        with scratch_folder("kills", place):
            pass

    return work


def _again(case: Case, line: Line, env: dict[str, str]) -> bool:
    """Run the command again; return whether it says that it was done."""
    worker = Worker(command(*_arguments(case.again or case.arguments, line), env=env), line.root)
    code = worker.wait()
    said = worker.said
    worker.answer.unlink()
    if code == REFUSED and case.done_already and case.done_already in said:
        return True
    assert code == 0, f"it does not run again: {said}"
    assert json.loads(said)["code"] == 0, json.loads(said)["said"]
    return False


def _arguments(arguments: Sequence[str], line: Line) -> list[str]:
    """Return the arguments of a command in this project."""
    return [(line.root / "token.txt").read_text() if one == "TOKEN" else one for one in arguments]


def _files(line: Line) -> dict[str, bytes]:
    """Return what lies in a project, but for git, caches and the database, by path."""
    paths = (path for path in line.root.rglob("*") if path.is_file() and not path.is_symlink())
    names = ((path, path.relative_to(line.root)) for path in paths)
    return {
        name.as_posix(): path.read_bytes()
        for path, name in names
        if name.parts[0] not in (".git", ".canal", ".dvc", "mlflow.db")
    }


def _require_kept(case: Case, line: Line, before: dict[str, bytes]) -> None:
    """Assert that all is there as it was, but for what the command may change; books only grow."""
    for name, content in before.items():
        if name in case.outputs or any(name == one or name.startswith(f"{one}/") for one in case.changes):
            continue
        path = line.root / name
        assert path.is_file(), f"{name} is lost"
        now = path.read_bytes()
        grows = name in ("ledger.jsonl", "annotations.jsonl")
        assert now.startswith(content) if grows else now == content, f"{name} was changed"


def _environment(case: Case, line: Line) -> dict[str, str]:
    temporary = line.root.parent / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return {"TMPDIR": str(temporary), **(_store(line) if case.shared else {})}


def _store(line: Line) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{line.root.parent / 'shared.db'}"}


def _copied(line: Line, target: Path) -> Line:
    """Return a copy of a project that lies elsewhere, with all that its database says of paths."""
    shutil.copytree(line.root, target, symlinks=True)
    if (target / "mlflow.db").is_file():
        move_database(target, line.root)
    return Line(target)


if __name__ == "__main__":
    main()
