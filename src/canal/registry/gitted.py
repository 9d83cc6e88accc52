"""What git has of a file: its states along HEAD's history, read without what would show another one."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from canal.core.errors import RegistryError

_PATIENCE_S = 60
_PLAIN = {
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
"""Objects as they were committed: no replace refs, no grafts."""
_NO_GRAPH = ("git", "--no-pager", "-c", "core.commitGraph=false", "-c", "core.fsmonitor=false")
"""Nor the commit graph: a file beside the objects, which nothing compares with them."""
_READING = (*_NO_GRAPH, "-c", "safe.directory=*")
"""Another user's repository is read, too: what is asked of it runs no program that its settings name."""
_RUNS_PROGRAMS = ("verify-tag", "tag")


@dataclass(frozen=True)
class Commit:
    """A commit that touches the file or joins histories, with those before it that do."""

    sha: str
    parents: Sequence[str]

    @property
    def short(self) -> str:
        """The name that people use."""
        return self.sha[:12]


class GitFile:
    """One file of a git working tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, *arguments: str) -> bytes | None:
        """Return what git prints; None where it says no, or is not there."""
        try:
            done = self._run(arguments)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*(_NO_GRAPH if arguments[0] in _RUNS_PROGRAMS else _READING), *arguments],
            cwd=self.path.parent,
            env={**os.environ, **_PLAIN},
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )

    def line(self, *arguments: str) -> str:
        """Return the one line that git prints, or nothing."""
        return (self.ask(*arguments) or b"").decode("utf-8", "replace").strip()

    @property
    def refusal(self) -> str | None:
        """Why git says nothing of a repository, such as that of another owner; None where it does."""
        try:
            done = self._run(("rev-parse", "--git-dir"))
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return said[0] if done.returncode and said and "not a git repository" not in said[0] else None

    def at(self, revision: str) -> bytes | None:
        """Return the file as a revision has it; None where that lacks it, or is not there."""
        return self.ask("cat-file", "blob", f"{revision}:./{self.path.name}")

    def commits(self) -> tuple[list[Commit], bool]:
        """Return the commits up to HEAD that touch the file, and all merges, each after its parents.

        And whether the history is cut off: a shallow clone lacks what was before. Where nothing is lacking, a
        list of cuts hides nothing.
        """
        order = ("--full-history", "--topo-order", "--reverse", "--parents", "HEAD", "--", self.path.name)
        said = self.ask("--shallow-file", "", "rev-list", *order)
        cut = said is None
        if said is None:
            said = self.ask("rev-list", *order)
        rows = (line.split() for line in (said or b"").decode("ascii", "replace").splitlines())
        return [Commit(sha, tuple(parents)) for sha, *parents in rows], cut

    @property
    def disguises(self) -> list[str]:
        """What makes git show another history than was committed."""
        refs = self.line("for-each-ref", "--count=1", "--format=%(refname)", "refs/replace/")
        grafts = self.path.parent / (self.line("rev-parse", "--git-path", "info/grafts") or ".")
        return [*(["replace refs"] if refs else []), *(["grafts"] if grafts.is_file() else [])]

    @contextmanager
    def reading(self) -> Iterator["Reader"]:
        """Give a reader of the file at many commits: one process, one state in memory at a time."""
        with subprocess.Popen(
            [*_READING, "cat-file", "--batch"],
            cwd=self.path.parent,
            env={**os.environ, **_PLAIN},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None  # noqa: S101 - what mypy cannot know of PIPE
            assert process.stdout is not None  # noqa: S101
            yield Reader(self, process.stdin, process.stdout)
            process.stdin.close()


class Reader:
    """Reads a file at one commit after the other."""

    def __init__(self, git: GitFile, ask: IO[bytes], said: IO[bytes]) -> None:
        self._git = git
        self._ask = ask
        self._said = said

    def at(self, sha: str) -> bytes | None:
        """Return the file as a commit has it, or None.

        Raises
        ------
        RegistryError
            If the commit has it, but git cannot read it.
        """
        name = f"{sha}:./{self._git.path.name}"
        self._ask.write(f"{name}\n".encode())
        self._ask.flush()
        head = self._said.readline().split()
        if len(head) == 3 and head[1] == b"blob":
            content = self._said.read(int(head[2]))
            self._said.read(1)
            return content
        if len(head) == 3 or not head or self._git.line("rev-parse", "--verify", "--quiet", name):
            raise RegistryError(f"git cannot read {self._git.path.name} of commit {sha[:12]}: git fsck")
        return None
