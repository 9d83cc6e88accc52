"""The obs and var tables of an h5ad file or zarr store, in every layout anndata has written since 0.6."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from canal.core.errors import DataError
from canal.data.arrays import ROW, check_announced, check_dataset, whole

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 5
_OLD_CATEGORIES = "__categories"


@contextmanager
def reading(path: Path, key: str) -> Iterator[None]:
    """Turn whatever h5py or zarr raises on damaged bytes into a `DataError` that names file and key."""
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
    """Return ``names`` for a message: at most ``limit`` of them, and how many more there are."""
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
    """Return byte strings as str, all at once, which takes a fifth of the time; nothing where that fails."""
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


class Table:
    """One table of an h5ad file: a group of columns, or before anndata 0.7 a compound dataset."""

    def __init__(self, file: Any, path: Path, key: str) -> None:
        if key not in file:
            raise DataError(f"{path}: no {key!r}, so this is no h5ad file; it holds {listed(sorted(file))}")
        self._file, self._path, self._key, self._node = file, path, key, file[key]
        with reading(path, key):
            self._index = self._index_name()
            self.columns: list[str] = [name for name in self._names() if name != self._index]
            """Names of the columns, the index left out, in the file's order."""
            self.size: int = self._n_rows()
            """Number of rows."""

    def names(self) -> list[str]:
        """Return the index: cell names of obs, gene names of var."""
        with reading(self._path, f"{self._key}/{self._index}"):
            return list(self._read(self._index))

    def column(self, name: str) -> pd.Series:
        """Return a column as str, categories decoded and nulls as ``""``, indexed 0..n-1.

        Raises
        ------
        DataError
            If there is no such column (the message lists those there are), or it cannot be read.
        """
        import pandas as pd

        if name not in self.columns:
            raise DataError(
                f"{self._path}: {self._key} has no column {name!r}; it has {listed(self.columns)}"
            )
        with reading(self._path, f"{self._key}/{name}"):
            values = self._read(name)
        if len(values) != self.size:
            raise DataError(
                f"{self._path}: {self._key}/{name} has {len(values)} values for {self.size} rows; "
                "the file is damaged: fetch it again"
            )
        return pd.Series(values, name=name, dtype=object)

    def _names(self) -> list[str]:
        if is_array(self._node):
            return list(self._node.dtype.names or ())
        order = [text(name) for name in self._node.attrs.get("column-order", [])]
        stored = [name for name in self._node if name != _OLD_CATEGORIES]
        return [name for name in order if name in stored] + sorted(set(stored) - set(order))

    def _index_name(self) -> str:
        if is_array(self._node):
            if not self._node.dtype.names:
                raise ValueError("expected a table, found a plain array")
            return str(self._node.dtype.names[0])  # anndata < 0.7 put the index first
        return text(self._node.attrs.get("_index", "_index"))

    def _stored(self, name: str) -> Any:
        """Return the dataset that has one entry a row for column ``name``."""
        if is_array(self._node):
            return self._node
        node = self._node[name]
        if is_array(node):
            return node
        return node["codes"] if "codes" in node else node["values"]

    def _n_rows(self) -> int:
        """Return the number of rows; raises where the file is far too small to hold so many."""
        node = self._stored(self._index)
        if len(node.shape or ()) != 1:
            raise ValueError(f"expected one name a row, found the shape {node.shape}")
        check_announced(node, self._path, f"the index of {self._key}", node.shape[0] * ROW)
        return int(node.shape[0])

    def _whole(self, node: Any, name: str, length: int | None) -> np.ndarray:
        return whole(node, self._path, f"{self._key}/{name}", length)

    def _read(self, name: str) -> np.ndarray:
        if is_array(self._node):
            return self._read_field(name)
        node = self._node[name]
        if is_array(node):
            return self._read_dataset(node, name)
        if "categories" in node:
            codes = self._whole(node["codes"], name, self.size)
            return decoded(codes, self._whole(node["categories"], f"{name}/categories", None))
        values = strings(self._whole(node["values"], name, self.size))
        if "mask" not in node:
            return values
        return np.where(self._whole(node["mask"], f"{name}/mask", self.size).astype(bool), "", values)

    def _read_field(self, name: str) -> np.ndarray:
        """Read a field of a compound dataset; its categories, if any, are in uns."""
        node, categories = self._node, f"uns/{name}_categories"
        check_announced(node, self._path, self._key, self.size * node.dtype.itemsize)
        values: np.ndarray = node.fields(name)[:]
        if name != self._index and categories in self._file and np.issubdtype(values.dtype, np.integer):
            stored = self._file[categories]
            check_announced(stored, self._path, categories, math.prod(stored.shape) * stored.dtype.itemsize)
            return decoded(values, np.atleast_1d(stored[()]))
        return strings(values)

    def _read_dataset(self, node: h5py.Dataset, name: str) -> np.ndarray:
        """Read a plain column; anndata 0.7 kept the categories behind a reference."""
        reference = node.attrs.get("categories")
        values = self._whole(node, name, self.size)
        if reference is None:
            return strings(values)
        categories = self._file[reference] if isinstance(reference, h5py.Reference) else None
        if categories is None:
            raise ValueError("expected a reference to the categories")
        check_dataset(categories.id, f"the categories of {name}", self._path)
        return decoded(values, self._whole(categories, f"{name}/categories", None))
