"""The one place where zarr stores are opened: folders, in which nothing leads out of the folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from canal.core.errors import DataError
from canal.core.files import copy_file, kind_of
from canal.io.addresses import Address, Stored

MARKS = (".zgroup", ".zattrs", "zarr.json")
"""Files that a zarr store has one of."""
_ARRAYS = (".zarray", "zarr.json")
"""Files that describe an array."""
_LARGEST_METADATA = 1 << 26
_PICKLE = "pickle"


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return any((path / mark).is_file() for mark in MARKS)


def open_zarr(path: Path) -> Any:
    """Open a zarr store for reading.

    Raises
    ------
    DataError
        As `check_folder`; or if an array is stored as pickled objects, or the store is damaged.
    """
    check_folder(path)
    root = path.resolve()
    for file in (Path(entry.path) for entry in _entries(root) if entry.name in _ARRAYS):
        name = file.relative_to(root)
        _check_size(path, name, file.stat().st_size)
        _check_metadata(path, name, file.read_bytes())
    return _opened(str(root), path)


def open_zarr_objects(address: Address, objects: Sequence[Stored]) -> Any:
    """Open a zarr store in an object store for reading in place, chunk by chunk.

    Raises
    ------
    DataError
        As `open_zarr`.
    """
    path = address.as_path()
    found = [one for one in objects if PurePosixPath(one.name).name in _ARRAYS]
    for one in found:
        _check_size(path, one.name, one.size)
    texts = address.read_below([one.name for one in found])
    for one, text in zip(found, texts, strict=True):
        _check_metadata(path, PurePosixPath(one.name), text)
    return _opened(address.zarr(), path)


def _opened(store: Any, path: Path) -> Any:
    import zarr

    # Of several members that cannot be read zarr raises one; the others' tracebacks would be printed.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return zarr.open_group(store, mode="r", use_consolidated=False)
    except Exception as error:  # damaged bytes raise nearly anything
        raise _damaged(path, "/", error) from error


def edit_zarr(path: Path) -> Any:
    """Open the copy of a store for writing."""
    import zarr

    return zarr.open_group(str(path), mode="r+", use_consolidated=False)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder into another that is empty; who may read stays so, links are files.

    Raises
    ------
    DataError
        As `check_folder`.
    """
    check_folder(source)
    root = source.resolve()
    for entry in _entries(root):
        place = target / Path(entry.path).relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        copy_file(Path(entry.path), place)


def check_folder(path: Path) -> None:
    """Look at every file below a folder; the folder itself may be a link to one.

    Raises
    ------
    DataError
        If a link in it leads out of it or to a folder, or a named pipe, socket or device lies in it.
    """
    try:
        root = path.resolve()
        for entry in _entries(root):
            if entry.is_symlink():
                check_link(path, root, Path(entry.path))
            elif not entry.is_file():
                name, kind = Path(entry.path).relative_to(root), kind_of(entry.stat().st_mode)
                raise DataError(f"{path}: {name} is {kind}: expected files and folders alone")
    except OSError as error:
        raise DataError(f"{path}: cannot be looked at ({error})") from error


def stored_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    return sum(entry.stat().st_size for entry in _entries(path)) if path.is_dir() else path.stat().st_size


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all below a folder that is no folder: links to folders, too, which are not followed."""
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def check_link(path: Path, root: Path, link: Path) -> None:
    """Raise `DataError` unless a link below the folder ``path``, resolved ``root``, is to a file in it."""
    aim = str(link.readlink())
    resolved = Path(os.path.realpath(link))
    name = link.relative_to(root)
    if not resolved.is_relative_to(root):
        raise DataError(
            f"{path}: {name} is a link to {aim!r}, which lies outside of this folder. canal reads and writes "
            f"nothing outside of what it was given: put the files themselves there (cp -rL {path} COPY)"
        )
    if not resolved.is_file():
        raise DataError(
            f"{path}: {name} is a link to {aim!r}, which is no file: put the files themselves there "
            f"(cp -rL {path} COPY)"
        )


def _check_size(path: Path, name: PurePath | str, size: int) -> None:
    if size > _LARGEST_METADATA:
        raise DataError(f"{path}: {name} has {size:,} bytes: a description is far smaller")


def _check_metadata(path: Path, name: PurePath, text: bytes) -> None:
    """Raise where an array is stored as pickled objects, which run code when they are read."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"expected a mapping, found {type(found).__name__}")
        steps = [found.get("compressor"), *_list(found.get("filters")), *_list(found.get("codecs"))]
        pickled = _PICKLE in json.dumps(steps)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(name), error) from error
    if pickled:
        raise DataError(
            f"{path}: {name.parent} is stored as pickled Python objects, which canal never opens: write "
            "it anew as text or numbers"
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _damaged(path: Path, name: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot read {name!r} ({type(error).__name__}: {error}); "
        "the store is damaged or was cut short: fetch it again"
    )
