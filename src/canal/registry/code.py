"""Which code made a version: the git commit, whether it was clean, and digests of code and lock."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from canal.digests import file_digest, json_digest

CODE = ("src", "pipelines", "MLproject", "dvc.yaml", "params.yaml", "constraints.txt")
"""What counts for *dirty*: results such as dvc.lock, data.dvc and the ledger do not."""


@dataclass(frozen=True)
class Commit:
    """A git commit, and whether code had changes that it does not hold."""

    sha: str | None
    dirty: bool


def current_commit(root: Path) -> Commit:
    """Return the commit of the project folder; without git there is none, and everything is dirty."""
    sha = _git(root, "rev-parse", "HEAD")
    if not sha:
        return Commit(None, dirty=True)
    return Commit(sha, dirty=bool(_git(root, "status", "--porcelain", "--", *CODE)))


def committed(path: Path, at: str = "HEAD") -> bytes | None:
    """Return a file as a commit has it; None without git, or where the commit has no such file.

    The repository may be another user's. Then git by itself answers nothing, since settings of a repository
    can name programs that it runs; the one command that is run here reads an object and runs none of them.
    """
    command = [*_READING, "cat-file", "blob", f"{at}:./{path.name}"]
    try:
        done = subprocess.run(
            command,
            cwd=path.parent,
            env={**os.environ, "GIT_NO_LAZY_FETCH": "1"},
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


_READING = ("git", "--no-pager", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")


def code_digest(root: Path, package: Path | None = None) -> str:
    """Return one digest of canal's own source and the project's pipelines, independent of where they lie.

    ``package`` is the folder of canal's source: by default that of the running one.
    """
    package = package or Path(__file__).resolve().parents[1]
    files = {f"canal/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    files |= {f"pipelines/{path.name}": path for path in (root / "pipelines").glob("*.py")}
    return json_digest({name: file_digest(path) for name, path in sorted(files.items())})


def lock_digest(root: Path) -> str | None:
    """Return the digest of the pinned environment, constraints.txt, where the project has one."""
    path = root / "constraints.txt"
    return file_digest(path) if path.is_file() else None


def in_git(root: Path) -> bool:
    """Whether a folder lies in a git repository."""
    return _git(root, *_READING[1:], "rev-parse", "--is-inside-work-tree") == "true"


def changes(root: Path, name: str) -> bool:
    """Whether a file is not in git's last commit as it lies there.

    Asked without `git status`, which runs filters that the settings of a repository name.
    """
    path = root / name
    return committed(path) != (path.read_bytes() if path.is_file() else None)


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
