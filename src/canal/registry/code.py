"""Which code made a version: the git commit, whether it was clean, and digests of code and lock.

And on which machine: what has to be the same for a training to give the same bits again.
"""

import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from canal.core.digests import file_digest, json_digest

CODE = ("src", "pipelines", "MLproject", "dvc.yaml", "params.yaml", "constraints.txt")
"""What counts for *dirty*: results such as dvc.lock, data.dvc and the ledger do not."""

_CPUINFO = Path("/proc/cpuinfo")
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
_AVX2 = {"avx2", "fma"}


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


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def cpu_capability() -> str:
    """Return architecture and vector instructions, such as ``x86_64 AVX2``, as torch tells them apart."""
    flags = _flags()
    known = "AVX512" if flags >= _AVX512 else "AVX2" if flags >= _AVX2 else ""
    return f"{platform.machine()} {known}".strip()


def _flags() -> set[str]:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
