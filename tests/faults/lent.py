"""Commands that only read, where nothing may be written: a folder that is only lent.

    python -m tests.faults.lent PROJECT

Each runs as a user who may write nothing there, in a folder without the right to, in another user's own
folder, and in one on a file system that is mounted to be read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.chaos import NOBODY, copy
from tests.faults.commands import command
from tests.faults.forked import Worker, done, import_everything
from tests.pipeline.conftest import Line

READING = (
    ("audit",),
    ("versions",),
    ("show", "2"),
    ("lineage", "2"),
    ("lineage", "--data", "first"),
    ("diff", "1", "2"),
    ("who", "labelled.h5ad"),
    ("ledger", "--verify"),
    ("ledger",),
    ("impact", "first"),
    ("compare", "2", "--with", "1"),
)
Answers = dict[str, dict[str, int]]


def read_where_nothing_may_be_written(base: Line) -> Answers:
    """Run each command in each kind of folder; return the exit codes, by kind and command.

    Nothing in a folder changes. File systems are mounted by root alone; others leave that kind out.
    """
    answers: Answers = {}
    with tempfile.TemporaryDirectory(prefix="canal-lent-") as place:
        Path(place).chmod(0o755)
        line = copy(base, Path(place) / "project")
        done(command("annotate", "raw/first.h5ad", "-o", "labelled.h5ad"), line.root)
        warm = Path(place) / "warm"
        shutil.copytree(line.root, warm, symlinks=True)
        shutil.rmtree(line.root / ".canal" / "locks")  # the next who comes has to make them
        for path in (line.root, *line.root.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o022 | 0o444 | (0o111 if path.is_dir() else 0))
        if os.geteuid() == 0:
            answers["another user's folder"] = _answers(line, warm, _as_nobody)
            with _mounted(line.root, Path(place) / "mounted") as mounted:
                if mounted is not None:
                    answers["file system"] = _answers(Line(mounted), warm, lambda: None)
        _close(line)
        answers["folder"] = _answers(line, warm, _as_nobody)
        _open(line)
    return answers


def read_from_server(clone: Path, env: dict[str, str]) -> dict[str, int]:
    """Run each command in a copy of a clone that nobody may write into, with a server that ``env`` names."""
    with tempfile.TemporaryDirectory(prefix="canal-lent-") as place:
        Path(place).chmod(0o755)
        line = Line(Path(place) / "project")
        shutil.copytree(clone, line.root, symlinks=True)
        done(command("annotate", "raw/first.h5ad", "-o", "labelled.h5ad", env=env), line.root)
        shutil.copyfile(line.root / "labelled.h5ad", clone / "labelled.h5ad")
        shutil.rmtree(line.root / ".canal" / "versions")  # so that versions have to be brought
        _close(line)
        try:
            return _answers(line, clone, _as_nobody, env)
        finally:
            _open(line)


def _close(line: Line) -> None:
    for path in (line.root, *line.root.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222 | 0o444 | (0o111 if path.is_dir() else 0))


def _open(line: Line) -> None:
    for path in (line.root, *line.root.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def _answers(
    line: Line, warm: Path, become: Callable[[], None], env: dict[str, str] | None = None
) -> dict[str, int]:
    before = _state(line)
    codes = {" ".join(arguments): _code(line, arguments, warm, become, env) for arguments in READING}
    assert _state(line) == before
    return codes


def _code(
    line: Line,
    arguments: tuple[str, ...],
    warm: Path,
    become: Callable[[], None],
    env: dict[str, str] | None,
) -> int:
    def work() -> Any:
        os.chdir(warm)
        asked = command(*arguments, env=env)
        asked()  # Python and canal may lie where nobody else may look: what they import comes first
        os.chdir(line.root)
        become()
        os.environ["HOME"] = "/nonexistent"
        return asked()

    worker = Worker(work, line.root)
    worker.answer.chmod(0o666)
    code, said = worker.wait(), worker.said
    worker.answer.unlink()
    assert code == 0, f"{arguments}: {said}"
    answer = json.loads(said)
    assert answer["code"] == 0, f"{arguments}: {answer['said']}"
    if arguments == ("audit",):
        assert "is not committed" not in answer["said"], "git is asked in another user's folder, too"
    return int(answer["code"])


def _as_nobody() -> None:
    if os.geteuid() == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)  # nothing is read-only for root


def _state(line: Line) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in line.root.rglob("*"))
    return {str(path): (entry.st_mtime_ns, entry.st_size) for path, entry in found}


@contextmanager
def _mounted(folder: Path, place: Path) -> Iterator[Path | None]:
    """Give a folder as a file system that may only be read; None where mounting is not allowed."""
    place.mkdir()
    commands = (["mount", "--bind", folder, place], ["mount", "-o", "remount,ro,bind", place])
    try:
        for words in commands:
            if subprocess.run(words, capture_output=True, check=False).returncode:
                yield None
                return
        yield place
    finally:
        subprocess.run(["umount", place], capture_output=True, check=False)


if __name__ == "__main__":
    import_everything()
    sys.stdout.write(json.dumps(read_where_nothing_may_be_written(Line(Path(sys.argv[1]))), indent=1) + "\n")
