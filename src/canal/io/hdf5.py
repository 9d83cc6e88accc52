"""Open HDF5 files safely: the only module that does; regular files alone, without links to other files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import h5py

from canal.core.errors import DataError
from canal.core.files import regular_file
from canal.io.arrays import EXAMPLES, check_dataset, listed, outside, reading
from canal.io.heaps import WatchedBytes, check_heaps

if TYPE_CHECKING:
    from anndata import AnnData

_DEEPEST = 256
"""Deepest nesting of groups that is accepted."""
_GZIP = b"\x1f\x8b"
_MATRIX_MARKET = b"%%MatrixMarket"
_HEAD_BYTES = 1 << 16
_CACHE = 1 << 24
"""HDF5's chunk cache in bytes for an array that is read in pieces."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises
    ------
    DataError
        If it is missing, no regular file, no HDF5 file, cut short, or compressed by a filter that cannot be
        had; or if a link, a virtual dataset or external storage leads out of it, or links form a cycle.
    """
    check_heaps(regular_file(path))
    with _opened(path, "r") as file:
        check_open(file, path)
        yield file


@contextmanager
def open_hdf5_stream(stream: BinaryIO, path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file of which the bytes are fetched as they are needed, such as an object of a store.

    Damaged heaps are looked for in what is fetched: there is no file to search before.

    Parameters
    ----------
    stream
        The bytes; what it raises is raised here, too, whatever HDF5 makes of it.
    path
        What messages call the file.

    Raises
    ------
    DataError
        As `open_hdf5`.
    """
    _refuse_other_formats(path, BytesIO(stream.read(_HEAD_BYTES)))
    watched = WatchedBytes(stream, path)
    try:
        with _opened(path, "r", watched) as file:
            check_open(file, path)
            yield file
    except Exception as error:
        if watched.error is not None and watched.error is not error:
            raise watched.error from error
        raise


def compression_of(path: Path) -> Literal["gzip", "lzf"] | None:
    """Return how to compress what takes the place of an h5ad file: as its matrix is, with gzip or lzf."""
    with open_hdf5(path) as file:
        node = file.get("X")
        node = node.get("data") if isinstance(node, h5py.Group) else node
        if not isinstance(node, h5py.Dataset) or not node.id.get_create_plist().get_nfilters():
            return None
        return "lzf" if node.compression == "lzf" else "gzip"


def read_whole(path: Path) -> AnnData:
    """Return a whole h5ad file as anndata reads it, in memory.

    Raises
    ------
    DataError
        As `open_hdf5`, whose checks come first: anndata follows what leads out of a file.
    """
    import anndata

    with open_hdf5(path), reading(path, "the whole file"):
        return anndata.read_h5ad(path)


@contextmanager
def edit_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open the copy of a file for writing; soft links are replaced by hard links to their targets.

    Raises
    ------
    DataError
        As `open_hdf5`.
    """
    with _opened(path, "r+") as file:
        for group, name, target in check_open(file, path):
            node = file[group]
            found = node[target]
            del node[name]
            node[name] = found
        yield file


@contextmanager
def _opened(path: Path, mode: str, stream: WatchedBytes | None = None) -> Iterator[h5py.File]:
    if stream is None:
        _refuse_other_formats(regular_file(path))
    try:
        file = h5py.File(path if stream is None else stream, mode, rdcc_nbytes=_CACHE)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: no readable h5ad file ({error}); it is damaged, was cut short, or is of another format"
        ) from error
    with file:
        yield file


_HDF5 = b"\x89HDF"
_TABLE = (
    "a table of text: scanpy.read_csv(FILE) reads one of cells x genes (.T turns genes x cells around), "
    "write_h5ad writes the h5ad file; types of cells go into its obs"
)
_CONVERTED = {
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".txt": _TABLE,
    ".rds": "an object of R: there, zellkonverter::writeH5AD writes h5ad of a SingleCellExperiment "
    "(Seurat: as.SingleCellExperiment first)",
}
"""What files of other formats are, and how they become h5ad."""


def _refuse_other_formats(path: Path, opened: BinaryIO | None = None) -> None:
    """Raise `DataError` that names the format, where the first bytes show a common other format."""
    try:
        with path.open("rb") if opened is None else opened as stream:
            head = stream.read(len(_MATRIX_MARKET))
            compressed = head.startswith(_GZIP)
            if compressed:
                stream.seek(0)
                with gzip.open(stream, "rb") as unzipped:
                    head = unzipped.read(len(_MATRIX_MARKET))
    except PermissionError as error:
        raise DataError(f"{path}: may not be read ({error.strerror})") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it is damaged or was cut short") from error
    if head.startswith(_MATRIX_MARKET):
        raise DataError(
            f"{path} is the matrix of a 10x folder alone: give the folder in which it lies, with "
            "features.tsv (or genes.tsv) and barcodes.tsv beside it, as matrix.mtx or matrix.mtx.gz"
        )
    kind = path.suffix.lower()
    if kind in _CONVERTED and not head.startswith(_HDF5):
        raise DataError(f"{path} is no h5ad file but {_CONVERTED[kind]}")
    if compressed:
        raise DataError(f"{path} is compressed by gzip as a whole: unpack it first, with gunzip")


_Soft = tuple[str, str, str]
"""A soft link: its group, its name in there, and the object it stands for."""


def check_open(file: h5py.File, path: Path) -> list[_Soft]:
    """Check every link and dataset of an open file, without following links.

    Returns
    -------
    list of tuple
        The soft links, all of which lead to objects of the file.

    Raises
    ------
    DataError
        As `open_hdf5`.
    """
    with reading(path, "/"):
        walk = _Walk(file, path)
        walk.run()
        return walk.soft


class _Walk:
    """A walk through all groups of a file, each visited once."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path
        self.soft: list[_Soft] = []
        self._names: dict[int, str] = {}
        """Address of each group -> the first name it was met by."""
        self._within: dict[int, set[int]] = {}
        """Address of each group -> addresses of the groups that are in it."""
        self._aims: list[tuple[str, int, str, str]] = []

    def run(self) -> None:
        root = self._address(h5py.h5o.open(self._file.id, b"/"))
        self._names[root] = "/"
        waiting = [(root, "/", 0)]
        while waiting:
            address, name, depth = waiting.pop()
            if depth > _DEEPEST:
                raise DataError(f"{self._path}: groups lie more than {_DEEPEST} deep, such as {name[:80]}...")
            waiting += [(found, member, depth + 1) for found, member in self._group(address, name)]
        for name, address, member, aim in self._aims:
            self._follow(name, address, member, aim)
        self._refuse_cycles()

    def _group(self, address: int, name: str) -> Iterator[tuple[int, str]]:
        """Yield (address, name) of groups in a group that were not visited yet; check all other members."""
        node = self._file[name].id
        found: list[tuple[bytes, int]] = []
        node.links.iterate(lambda member, info: found.append((member, info.type)), info=True)
        inner = self._within.setdefault(address, set())
        for raw, kind in found:
            member = name.rstrip("/") + "/" + raw.decode("utf-8", "surrogateescape")
            if kind == h5py.h5l.TYPE_SOFT:
                aim = node.links.get_val(raw).decode("utf-8", "surrogateescape")
                self._aims.append((name, address, member, aim))
                continue
            if kind != h5py.h5l.TYPE_HARD:
                what = f"a link of a kind of its own ({kind})"
                if kind == h5py.h5l.TYPE_EXTERNAL:
                    other, within = (part.decode("utf-8", "replace") for part in node.links.get_val(raw))
                    what = f"an external link to {within!r} in the file {other!r}"
                raise outside(self._path, member, what)
            item = h5py.h5o.open(node, raw)
            if isinstance(item, h5py.h5d.DatasetID):
                check_dataset(item, member, self._path)
            elif isinstance(item, h5py.h5g.GroupID):
                below = self._address(item)
                inner.add(below)
                if below not in self._names:
                    self._names[below] = member
                    yield below, member

    def _follow(self, group: str, address: int, member: str, aim: str) -> None:
        """Record a soft link; all other links of the file are known by now."""
        where = self._file[group]
        try:
            item = h5py.h5o.open(where.id, aim.encode("utf-8", "surrogateescape"))
        except (KeyError, RuntimeError, OSError, ValueError) as error:
            raise DataError(
                f"{self._path}: the soft link {member!r} points to {aim!r}, which does not exist or points "
                "back to the link: write the file again without it"
            ) from error
        self.soft.append((group, member.rsplit("/", 1)[1], aim))
        if isinstance(item, h5py.h5g.GroupID):
            self._within[address].add(self._address(item))

    def _refuse_cycles(self) -> None:
        """Raise where a group contains itself by links: a walk through it would never end."""
        inner = {address: set(below) for address, below in self._within.items()}
        outer: dict[int, list[int]] = {}
        for address, below in inner.items():
            for one in below:
                outer.setdefault(one, []).append(address)
        done = [address for address, below in inner.items() if not below]
        while done:
            below_all = done.pop()
            inner.pop(below_all)
            for address in outer.get(below_all, ()):
                inner[address].discard(below_all)
                if not inner[address]:
                    done.append(address)
        if inner:
            names = sorted(self._names[address] for address in inner)
            raise DataError(
                f"{self._path}: {len(names)} groups contain themselves by links, such as "
                f"{listed(names, EXAMPLES)}: write the file again without these links"
            )

    @staticmethod
    def _address(item: h5py.h5g.GroupID) -> int:
        return int(h5py.h5o.get_info(item).addr)
