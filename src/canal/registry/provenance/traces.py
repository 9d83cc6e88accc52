"""Which files of a project hold some cells: by their bytes, or by the cells that they name.

A file holds them where it is a raw file or a file of a version that saw them, byte for byte, or where it
names one of them by id or by the digest of its content. What only follows from cells and names none, such as
cached features, is known by its place.
"""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from canal.config.layout import Layout
from canal.core.digests import file_digest
from canal.core.errors import CanalError
from canal.core.files import parse_json, read_json
from canal.io.h5ad import open_h5ad
from canal.registry.ledger.tombstones import Doomed
from canal.registry.manifest.version_folder import KEY_FILE, RECORD_FILE
from canal.registry.provenance.registered import RegisteredVersion

OUTS = ("models", "metrics", "scores", "verdicts", "prepared")
"""Folders whose subfolders are outputs of DVC: one that lost a file is no output any more."""
_PLACES = (
    *OUTS,
    *("data", "incoming", "splits", "corpus", "labels", "tuned", "novel", "cells", "report"),
    *("mlartifacts", ".canal"),
)
_COMPUTED = ("features", "training", "layouts")
"""What `.canal` holds of cells without naming any: features, checkpoints of trainings, layouts of maps."""
_KEPT = (".canal/locks/", ".canal/erasing/")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
_CELLS = (".h5ad", ".csv", ".safetensors")
_HEAD = 4096


@dataclass(frozen=True)
class Traces:
    """What cells may be known by.

    Attributes
    ----------
    ids : frozenset of str
        ``SOURCE:NAME``, as versions know the cells.
    digests : frozenset of str
        Of the cells' contents.
    files : dict
        SHA-256 of files that hold them -> what they are.
    keys : frozenset of str
        Keys and records of the versions that hold them.
    stays : frozenset of str
        SHA-256 of the files of versions that stay, which never saw the cells.
    """

    ids: frozenset[str]
    digests: frozenset[str]
    files: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    stays: frozenset[str] = frozenset()

    def why(self, path: Path, sha256: str) -> str | None:
        """Return why a file is said to hold the cells; None where nothing says so."""
        if sha256 in self.stays:
            return None
        return self.files.get(sha256) or self.named(path)

    def named(self, path: Path) -> str | None:
        """Return how a file names some of the cells; None where it names none."""
        if not self.ids and not self.digests:
            return None
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if not head:
            return None
        found = self._in_h5ad(path) if head.startswith(_HDF5) else None
        found = self._in_bytes(path, binary=b"\0" in head) if found is None else found
        return f"names {found} of the cells" if found else None

    def _in_h5ad(self, path: Path) -> int | None:
        """Return how many cells an h5ad file names; None where it is no h5ad file that can be read."""
        try:
            with open_h5ad(path) as file:
                names = set(file.obs_names())
                for column in ("cell_id", "cell_digest"):
                    if column in file.obs_columns:
                        names |= set(file.obs_column(column))
        except CanalError:
            return None
        return max(len(names & self.ids), len(names & self.digests))

    def _in_bytes(self, path: Path, binary: bool) -> int:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            ids = (
                {match.decode("utf-8", "replace") for match in self._id.findall(content)}
                if self.ids
                else set()
            )
            digests = set() if binary else {match.decode() for match in _DIGEST.findall(content)}
        return max(len(ids & self.ids), len(digests & self.digests))

    @cached_property
    def _id(self) -> re.Pattern[bytes]:
        sources = sorted({one.partition(":")[0] for one in self.ids if ":" in one})
        return re.compile(
            b"(?:" + b"|".join(re.escape(one.encode()) for one in sources) + rb"""):[^"',\n\r\t<>\\]+"""
        )


def files_of(one: RegisteredVersion) -> Iterator[Doomed]:
    """Yield the files of a version's folder but for its two manifests, as they lie there."""
    for path in sorted(one.folder.rglob("*")):
        if path.is_file() and path.relative_to(one.folder).as_posix() not in (KEY_FILE, RECORD_FILE):
            yield Doomed(
                str(path), file_digest(path), path.stat().st_size, f"of {one.name}, which saw the cells"
            )


def of_cells(path: str) -> bool:
    """Whether a file of a version, or an object of DVC, may hold more of cells than names of types."""
    return Path(path).suffix in _CELLS or object_name(Path(path)) is not None


def recorded_files(one: RegisteredVersion) -> dict[str, str]:
    """Return the digests of all files that a version's manifests name, also of files that are gone."""
    record = read_json(one.folder / RECORD_FILE)
    return {**record["files"], **one.files}


def find_files(
    layout: Layout, caches: Sequence[Path], traces: Traces, passed: frozenset[Path]
) -> Iterator[Doomed]:
    """Yield the files of a project's own folders and of DVC's caches that hold the cells.

    Files below the folders ``passed`` are left out: those of registered versions.
    """
    places = [*(layout.root / name for name in _PLACES), *caches]
    doomed: dict[Path, Doomed] = {}
    for path in _files(places, passed):
        if layout.root in path.parents and str(path.relative_to(layout.root)).startswith(_KEPT):
            continue
        sha256, size = file_digest(path), path.stat().st_size
        why = _by_place(layout, path, traces) or traces.why(path, sha256)
        if why is not None:
            doomed[path] = Doomed(str(path), sha256, size, why)
    for path in _listings(caches, doomed):
        doomed[path] = Doomed(
            str(path), file_digest(path), path.stat().st_size, "lists a file of DVC that goes"
        )
    below = [path.relative_to(layout.root).parts for path in doomed if layout.root in path.parents]
    outs = {layout.root / parts[0] / parts[1] for parts in below if parts[0] in OUTS and len(parts) > 2}
    for folder in outs:
        for path in _files([folder], passed):
            if path not in doomed:
                why = f"an output of DVC that lost a file: {folder.relative_to(layout.root)}"
                doomed[path] = Doomed(str(path), file_digest(path), path.stat().st_size, why)
    yield from (doomed[path] for path in sorted(doomed))


def _listings(caches: Sequence[Path], doomed: Collection[Path]) -> Iterator[Path]:
    """Yield DVC's listings of folders, and entries of its run cache, that name an object that goes."""
    gone = {one for path in doomed if (one := object_name(path))}
    for path in _files([cache for cache in caches if gone], frozenset()):
        above = next(cache for cache in caches if cache in path.parents)
        listing = path.name.endswith(".dir") or "runs" in path.relative_to(above).parts
        if (
            listing
            and path not in doomed
            and gone & {one.decode() for one in _DIGEST.findall(path.read_bytes())}
        ):
            yield path


def object_name(path: Path) -> str | None:
    """Return the MD5 of an object in a cache of DVC, as its path says it; None for any other file."""
    name = "".join(path.parts[-2:])
    return name if path.parts[-4:-2] == ("files", "md5") and _OBJECT.fullmatch(name) else None


def own_files(root: Path) -> Iterator[Path]:
    """Yield the files below a project that are the user's own, not canal's, DVC's or git's."""
    apart = {*_PLACES, ".dvc", ".git", ".venv", "src", "tests", "erased"}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in apart]
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield path


def bundle_key(path: Path) -> str | None:
    """Return the key of the version in a bundle that `canal export` wrote; None for any other file."""
    try:
        with zipfile.ZipFile(path) as bundle, bundle.open("manifest.json") as stream:
            key = parse_json(stream.read(1 << 24))["key"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return None
    return key if isinstance(key, str) else None


def _files(places: Sequence[Path], passed: frozenset[Path]) -> Iterator[Path]:
    for place in places:
        for folder, _, names in os.walk(place):
            here = Path(folder)
            if passed & {here, *here.parents}:
                continue
            for name in sorted(names):
                path = here / name
                if path.is_file():  # also a link, as DVC makes them into its cache
                    yield path


def _by_place(layout: Layout, path: Path, traces: Traces) -> str | None:
    """Return why a file of ``.canal`` holds something of the cells without naming them."""
    if layout.private not in path.parents:
        return None
    parts = path.relative_to(layout.private).parts
    if parts[0] in _COMPUTED:
        return f"computed from cells: .canal/{parts[0]}"
    return "made of a version that saw the cells" if traces.keys & set(parts) else None
