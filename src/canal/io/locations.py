"""What lies on a disk or in an object store, by path or by address: written whole or not at all, read back.

A put to an object store is atomic; several writers of one object at once are told apart by a conditional put
(``If-None-Match: *``), where the store knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canal.core.errors import CanalError
from canal.core.files import first_file, new_file, scratch_folder
from canal.io.addresses import Address, address_of

Location = Path | Address
"""A path or an address."""


def location(text: str) -> Location:
    """Return what a person or a plan names by a text; see `canal.io.addresses.address_of`."""
    return address_of(text) or Path(text)


def matching(sources: Iterable[Location]) -> list[Location]:
    """Return the locations with the patterns of addresses replaced by what they stand for.

    Patterns of paths are a shell's business.

    Raises
    ------
    StoreError
        If a pattern stands for nothing.
    """
    found: list[Location] = []
    for one in sources:
        found += one.matching() if isinstance(one, Address) else [one]
    return found


def resolved(place: Location) -> Location:
    """Return a path as it is from any folder; an address is so already."""
    return place if isinstance(place, Address) else place.resolve()


@contextmanager
def new_at(target: Location) -> Iterator[Path]:
    """Yield a temporary path, whose content stands at ``target`` once the block ends without an error.

    A path is replaced as `canal.core.files.new_file` does it, an object by one put.
    """
    if isinstance(target, Address):
        with _to_put(target) as temporary:
            yield temporary
            target.put(temporary)
    else:
        with new_file(target) as temporary:
            yield temporary


@contextmanager
def first_at(target: Location) -> Iterator[Path]:
    """Yield a temporary path that becomes ``target``, which must not exist.

    Raises
    ------
    FileExistsError
        If ``target`` exists by then; a store without conditional puts replaces it.
    """
    if isinstance(target, Address):
        with _to_put(target) as temporary:
            yield temporary
            target.put(temporary, only_first=True)
    else:
        with first_file(target) as temporary:
            yield temporary


@contextmanager
def _to_put(target: Address) -> Iterator[Path]:
    with scratch_folder("put") as folder:
        yield folder / target.name


@contextmanager
def shown_as(copy: Path, place: Location) -> Iterator[None]:
    """Have errors about a copy name what it was copied from, or is put to."""
    try:
        yield
    except CanalError as error:
        error.args = tuple(str(one).replace(str(copy), str(place)) for one in error.args)
        raise


def bytes_at(place: Location) -> bytes:
    """Return what is stored at a location.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    return place.read() if isinstance(place, Address) else place.read_bytes()


def bytes_below(folder: Location, names: Sequence[str]) -> Iterator[bytes]:
    """Yield what is stored below a folder, file by file; objects are asked for many at once."""
    if isinstance(folder, Address):
        for start in range(0, len(names), _AT_ONCE):
            yield from folder.read_below(names[start : start + _AT_ONCE])
    else:
        for name in names:
            yield (folder / name).read_bytes()


def read_footers(folder: Location, names: Sequence[str]) -> Iterator[Any]:
    """Yield what Parquet files below a folder say of themselves; None for one that is not there, or damaged.

    Of objects the last bytes are fetched, many at once.
    """
    if not isinstance(folder, Address):
        for name in names:
            path = folder / name
            yield _footer(path) if path.is_file() else None
        return
    there = set(names).intersection(folder.names() if len(names) > 1 else names)
    for start in range(0, len(names), _AT_ONCE):
        asked = names[start : start + _AT_ONCE]
        found = [name for name in asked if name in there]
        try:
            ends = dict(zip(found, folder.read_below(found, -_FOOTER), strict=True))
        except FileNotFoundError:  # one alone was asked for
            ends = {}
        for name in asked:
            yield _footer_of_object(folder / name, ends[name]) if name in ends else None


def _footer(source: Path | bytes) -> Any:
    import pyarrow.parquet

    place = pyarrow.BufferReader(source) if isinstance(source, bytes) else source
    try:
        return pyarrow.parquet.read_metadata(place)
    except (OSError, ValueError, pyarrow.ArrowException):
        return None  # cut short or damaged, as a disk may leave it


def _footer_of_object(address: Address, end: bytes) -> Any:
    found = _footer(end)
    return _footer(address.read()) if found is None and len(end) == _FOOTER else found


_AT_ONCE = 32
"""Objects that are asked for at once."""
_FOOTER = 1 << 17
"""Bytes at the end of a Parquet file that hold its footer, but for a partition of very many columns."""
