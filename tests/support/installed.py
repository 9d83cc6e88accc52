"""canal installed from its wheel, alone or with extras, into virtual environments outside of the source tree.

No network is asked: the wheel is built here, and what it needs is linked from this environment, package
by package as the wheel's own metadata name them. What the metadata do not name is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "setup.py", "src", "pipelines")


@dataclass(frozen=True)
class Installed:
    """An environment that holds canal's wheel, the packages of its core, and those of some extras."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(
        self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `canal` with these words in a folder; neither the source tree nor this environment is found."""
        return self._run([str(self.folder / "bin" / "canal"), *map(str, words)], cwd, env)

    def evaluate(self, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of Python in a folder."""
        return self._run([str(self.python), "-c", code], cwd, None)

    def script(
        self, path: Path, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a file of Python in a folder."""
        return self._run([str(self.python), str(path), *map(str, words)], cwd, env)

    def _run(
        self, command: list[str], cwd: Path, env: Mapping[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        kept["MPLCONFIGDIR"] = str(self.folder / "matplotlib")  # finding fonts takes seconds: once is enough
        kept["PATH"] = os.pathsep.join([str(self.folder / "bin"), "/usr/bin", "/bin"])
        return subprocess.run(
            command, cwd=cwd, env={**kept, **(env or {})}, capture_output=True, text=True, check=False
        )


def install(wheel: Path, folder: Path, extras: Collection[str] = ()) -> Installed:
    """Install the wheel into a new environment in ``folder``, with what its core and ``extras`` need."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True
    )
    installed = Installed(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(installed.python), "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    own = Distribution.at(next(installed.packages.glob("canal_cells-*.dist-info")))
    _link(own, installed.packages, set(), extras)
    return installed


def build_wheel(folder: Path) -> Path:
    """Build canal's wheel from a copy of the sources, so that nothing is written into the tree."""
    included = (REPOSITORY / "MANIFEST.in").read_text().splitlines()[0].split()[1:]
    for name in {*_SOURCES, *included}:
        source, target = REPOSITORY / name, folder / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
            shutil.copytree(source, target, ignore=ignored)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def _link(of: Distribution, packages: Path, seen: set[str], extras: Collection[str] = ()) -> None:
    """Link what a distribution requires into ``packages``, and what that requires in turn."""
    own = of.metadata["Name"]
    for text in of.requires or ():
        requirement = Requirement(text)
        if requirement.name in seen or not _wanted(requirement, extras):
            continue
        if requirement.name == own:  # an extra made of extras, which are named one by one
            continue
        seen.add(requirement.name)
        needed = distribution(requirement.name)
        assert needed.files is not None, f"{requirement.name} does not say which files it has"
        for top in {file.parts[0] for file in needed.files} - {"..", "__pycache__"}:
            target = packages / top
            if not target.exists():
                target.symlink_to(Path(str(needed.locate_file(top))))
        _link(needed, packages, seen)


def _wanted(requirement: Requirement, extras: Collection[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def messages(stderr: str) -> list[str]:
    """Return what a command told, without the lines that a slow machine adds while it loads libraries."""
    return [line for line in stderr.splitlines() if not line.endswith((" ...", " so far)"))]
