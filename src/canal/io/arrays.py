"""Read arrays of HDF5 and zarr safely: no external data, no implausible sizes, texts decoded to str."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from canal.core.errors import DataError
from canal.core.packages import install_hint
from canal.io.heaps import FILE_OBJECT, stored_at
from canal.io.zarr_store import stored_bytes

if TYPE_CHECKING:
    pass


_ALWAYS = 1 << 28
"""Bytes that any file may announce."""
_TIMES = 64
"""Further bytes that may be announced for each stored byte: no valid table is compressed more."""
ROW = 100
"""Least bytes in memory of a cell or gene: those of its name."""
_SMALL = 1 << 26
"""Files below this size get stricter checks of text lengths."""
_POINTER = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
"""Type of HDF5's variable-length strings: pointers into a heap."""
_PIECES = 100_000
"""Most chunks of any array, and most missing chunks of a small file."""


def whole(node: Any, path: Path, name: str, length: int | None = None) -> np.ndarray:
    """Return all values of a one-dimensional array.

    Parameters
    ----------
    node
        An array of an HDF5 file or a zarr store.
    path, name
        What a message calls the file and the array.
    length
        How many values there must be.

    Raises
    ------
    DataError
        If the array is of another shape, or far larger than what is stored.
    """
    shape = tuple(node.shape or ())
    if len(shape) != 1 or (length is not None and shape[0] != length):
        wanted = "a list of values" if length is None else f"{length:,} values"
        raise DataError(
            f"{path}: {name} has the shape {shape}, expected {wanted}; the file is damaged: fetch it again"
        )
    text = node.dtype.kind in "OT"
    check_announced(node, path, name, shape[0] * (ROW if text else max(1, node.dtype.itemsize)))
    check_chunks(node, path, name)
    if text and isinstance(node, h5py.Dataset):
        return _texts(node, path, name)
    values: np.ndarray = node[:]
    return values


def check_announced(node: Any, path: Path, name: str, size: int) -> None:
    """Raise `DataError` if ``size`` bytes are implausible for the size of the file."""
    if size > _ALWAYS and size > (most := _ALWAYS + _TIMES * _weight(node, path)):
        raise DataError(
            f"{path}: {name} has the shape {tuple(node.shape)}, which takes {size:,} bytes; expected at most "
            f"{most:,} for a file that stores {_weight(node, path):,} bytes: the file is damaged, or made to "
            "fill the memory; fetch it again"
        )


def check_chunks(node: Any, path: Path, name: str) -> None:
    """Raise `DataError` if an array's chunks are much larger, or many more, than the stored data."""
    chunks = getattr(node, "shards", None) or node.chunks
    if not chunks:
        return
    itemsize = 16 if node.dtype.kind in "OT" else max(1, node.dtype.itemsize)
    check_announced(node, path, f"{name} (chunks of {tuple(chunks)})", math.prod(chunks) * itemsize)
    pieces = math.prod(-(-size // chunk) for size, chunk in zip(node.shape, chunks, strict=True))
    if pieces <= _PIECES:
        return
    stored = int(node.id.get_num_chunks() if isinstance(node, h5py.Dataset) else node.nchunks_initialized)
    if pieces > _PIECES + _TIMES * stored:
        raise DataError(
            f"{path}: {name} has the shape {tuple(node.shape)} in {pieces:,} chunks, of which {stored:,} are "
            "stored: the file is damaged, or made to be read for ever; fetch it again"
        )


def check_dataset(item: h5py.h5d.DatasetID, name: str, path: Path) -> None:
    """Raise unless a dataset's values are in its own file, compressed by available filters.

    Raises
    ------
    DataError
        If it is virtual or stored in another file, or a filter cannot be had.
    """
    made = item.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL:
        count = made.get_virtual_count()
        source = (made.get_virtual_filename(0), made.get_virtual_dsetname(0)) if count else ("", "")
        raise outside(path, name, f"a virtual dataset made of {source[1]!r} in the file {source[0]!r}")
    if made.get_external_count():
        other = os.fsdecode(made.get_external(0)[0])
        raise outside(path, name, f"a dataset whose values are stored in the file {other!r}")
    for place in range(made.get_nfilters()):
        number, _, _, label = made.get_filter(place)
        if not (h5py.h5z.filter_avail(number) or _more_filters(number)):
            called = label.decode("utf-8", "replace") or "without a name"
            raise DataError(
                f"{path}: {name!r} is compressed by HDF5 filter {number} ({called}), which neither HDF5 nor "
                f"hdf5plugin has here: install hdf5plugin ({install_hint('compression')}) or the filter's "
                "own package, or write the file anew compressed by gzip"
            )


def _more_filters(number: int) -> bool:
    """Return whether a filter is available, with those of hdf5plugin (zstd, Blosc, LZ4, bitshuffle …)."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(number))


def outside(path: Path, name: str, what: str) -> DataError:
    """Return the error for a link or dataset that refers to another file."""
    return DataError(
        f"{path}: {name!r} is {what}. canal does not follow references to other files: write all cells into "
        "one file (anndata: read_h5ad and write_h5ad), then use that file"
    )


def _texts(node: h5py.Dataset, path: Path, name: str) -> np.ndarray:
    """Read variable-length texts after checking their lengths: HDF5 allocates any announced length.

    They lie in heaps, to which the array points. Several may point at one long text, which is stored once.
    """
    weight = _weight(node, path)
    most = _ALWAYS + _TIMES * weight
    lengths = _lengths(node)
    if lengths is not None:
        if lengths.max(initial=0) > weight or lengths.sum() > most:
            raise _too_long(path, name, weight)
        step = len(node)
    else:
        step = max(1024, _ALWAYS // max(1, weight)) if weight < _SMALL else len(node)
    parts, left = [], most
    for start in range(0, len(node), max(1, step)):
        part = node[start : start + step]
        if step < len(node):
            left -= sum(len(text) for text in part.tolist() if isinstance(text, str | bytes))
        if left < 0:
            raise _too_long(path, name, weight)
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, dtype=object)


def _lengths(node: h5py.Dataset) -> np.ndarray | None:
    """Return the lengths of texts from their pointers; None where texts are not contiguous."""
    offset, size = node.id.get_offset(), len(node) * _POINTER.itemsize
    if offset is None or node.file.userblock_size or node.id.get_storage_size() != size:
        return None
    if node.file.driver == FILE_OBJECT:
        stored = stored_at(node.file, offset, size)
        return None if stored is None else np.frombuffer(stored, _POINTER)["length"].astype(np.int64)
    with Path(node.file.filename).open("rb") as stream:
        stream.seek(offset)
        return np.fromfile(stream, _POINTER, len(node))["length"].astype(np.int64)


def _too_long(path: Path, name: str, weight: int) -> DataError:
    return DataError(
        f"{path}: the texts of {name} take more than {_ALWAYS + _TIMES * weight:,} bytes, or one of them "
        f"more than the {weight:,} that are stored: the file is damaged, or made to fill the memory; fetch "
        "it again"
    )


def _weight(node: Any, path: Path) -> int:
    return int(node.file.id.get_filesize()) if isinstance(node, h5py.Dataset) else stored_bytes(path)


# What was read, as text; and errors that name the file and the key.

EXAMPLES = 5


@contextmanager
def reading(path: Path, key: str) -> Iterator[None]:
    """Convert any error that h5py or zarr raises on damaged data to a `DataError` with file and key."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything, the codecs' own errors too
        raise DataError(
            f"{path}: cannot read {key!r} ({type(error).__name__}: {error}); "
            "the file is damaged or was cut short: fetch it again"
        ) from error


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return ``names`` for a message: at most ``limit`` of them, and the number of others."""
    shown = ", ".join(repr(name) for name in names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def text(value: Any) -> str:
    """Return an HDF5 string, byte string, number or truth value as str; nulls give ``""``."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if value is None or value != value:  # NaN alone differs from itself
        return ""
    return str(value)


def strings(values: np.ndarray) -> np.ndarray:
    """Return a 1-d array of any HDF5 type as an object array of str; nulls give ``""``."""
    result = np.empty(len(values), dtype=object)
    given = values.tolist()
    result[:] = _decoded(given) or [text(value) for value in given]
    return result


def _decoded(values: list[Any]) -> list[str]:
    """Decode byte strings all at once, five times as fast as one by one; an empty list where that fails."""
    if set(map(type, values)) != {bytes}:
        return []
    try:
        found = b"\0".join(values).decode("utf-8").split("\0")
    except UnicodeDecodeError:
        return []
    return found if len(found) == len(values) else []


def decoded(codes: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return the categories that ``codes`` point at; a negative code is a null and gives ``""``."""
    if codes.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers for codes, found values of type {codes.dtype}")
    lookup = np.append(strings(categories), "")
    if codes.size and codes.max() >= len(categories):
        raise ValueError(f"code {codes.max()} points behind the last of {len(categories)} categories")
    return lookup[np.where(codes < 0, len(categories), codes).astype(np.intp)]


def is_array(node: Any) -> bool:
    """Return whether a member of an HDF5 file or zarr group is an array, not a group."""
    return hasattr(node, "dtype")
