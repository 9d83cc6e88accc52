"""Read an h5ad file or zarr store as a stream: tables, matrices, and which features are genes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from canal.core.errors import DataError, there_are
from canal.io.arrays import (
    ROW,
    check_announced,
    check_dataset,
    decoded,
    is_array,
    listed,
    reading,
    strings,
    text,
    whole,
)
from canal.io.blocks import Matrix
from canal.io.hdf5 import open_hdf5
from canal.io.matrices import open_matrix

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def open_h5ad(path: Path) -> Iterator[H5adFile]:
    """Open an h5ad file for reading; matrices and columns are read on demand.

    Raises
    ------
    DataError
        As `canal.io.hdf5.open_hdf5`; or if the file holds no obs and var.
    """
    with open_hdf5(path) as file:
        with reading(path, "/"):
            cells = H5adFile(file, path)
        yield cells


class H5adFile:
    """An open h5ad file, or zarr store. ``layer`` is ``"X"``, ``"raw"`` or the name of a layer everywhere."""

    assumed = ""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self.path = file, path
        self._obs = Table(file, path, "obs")
        self._tables = {"var": Table(file, path, "var")}
        self._not_genes: dict[str, NotGenes] = {}

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._obs.size

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns that describe cells."""
        return list(self._obs.columns)

    @property
    def layers(self) -> list[str]:
        """The names that `matrix` accepts."""
        with reading(self.path, "layers"):
            found = ["X"] if "X" in self._file else []
            found += ["raw"] if self._raw_prefix() else []
            if "layers" not in self._file:
                return found
            if is_array(self._file["layers"]):
                raise ValueError("expected a group of matrices, found an array")
            return found + sorted(self._file["layers"])

    def matrix(self, layer: str) -> Matrix:
        """Return the matrix ``layer``, of shape (n_cells, n_genes).

        Raises
        ------
        DataError
            If there is none of that name (the message lists those there are) or its shape does not fit
            obs and var.
        """
        key = self._matrix_key(layer)
        return open_matrix(self._file, self.path, key, (self.n_cells, self._var(layer).size))

    def obs_names(self) -> list[str]:
        """Return the cells' names as the file has them."""
        return self._obs.names()

    def obs_column(self, name: str, otherwise: str = "") -> pd.Series:
        """Return a column of obs as str, nulls as ``""``; a missing one is refused with ``otherwise``."""
        return self._obs.column(name, otherwise)

    def typed_obs_column(self, name: str) -> pd.Series:
        """Return a column of obs with numbers as numbers, truth values as bool, nulls as NaN or None."""
        return self._obs.typed_column(name)

    def var_names(self, layer: str) -> list[str]:
        """Return the names of the genes of ``layer``; ``""`` for a feature that is no gene."""
        return self.not_genes(layer).blanked(self._var(layer).names())

    def var_columns(self, layer: str) -> list[str]:
        """Return the names of the columns that describe the genes of ``layer``."""
        return list(self._var(layer).columns)

    def var_column(self, layer: str, name: str) -> pd.Series:
        """Return a column of the genes of ``layer`` as str, ``""`` for a feature that is no gene.

        Raises
        ------
        DataError
            If there is no such column.
        """
        column = self._var(layer).column(name)
        none = self.not_genes(layer)
        return column.where(none.is_gene, "") if none.kinds else column

    def not_genes(self, layer: str) -> NotGenes:
        """Return which features of ``layer`` are no genes."""
        if layer not in self._not_genes:
            table = self._var(layer)
            columns = {name: partial(table.column, name) for name in table.columns}
            self._not_genes[layer] = not_genes(table.size, columns)
        return self._not_genes[layer]

    def note(self, name: str) -> str:
        """Return the text stored as ``uns[name]``; raises `DataError` if there is none."""
        with reading(self.path, f"uns/{name}"):
            node = self._file[f"uns/{name}"]
            if node.shape != ():
                raise ValueError(f"expected one text, found an array of shape {node.shape}")
            return text(node[()])

    def text_in_uns(self, name: str) -> str | None:
        """Return the text stored as ``uns[name]``; None where anything else, or nothing, is stored there."""
        with reading(self.path, f"uns/{name}"):
            node = self._file.get(f"uns/{name}")
            single = node is not None and is_array(node) and node.shape == () and node.dtype.kind in "OSUT"
            return text(node[()]) if single else None

    def members(self, group: str) -> list[str]:
        """Return the names in ``uns`` or ``obsm``, sorted; none where the file has no such group."""
        with reading(self.path, group):
            node = self._file.get(group)
            return [] if node is None or is_array(node) else sorted(node)

    def _raw_prefix(self) -> str:
        """Return how raw's members begin: ``raw/`` today, ``raw.`` before 0.7, ``""`` without raw."""
        return next((prefix for prefix in ("raw/", "raw.") if f"{prefix}X" in self._file), "")

    def _muon(self) -> str:
        """Return advice for a MuData file on how to extract a modality; ``""`` for other files."""
        if "mod" not in self._file:
            return ""
        with reading(self.path, "mod"):
            kinds = [] if is_array(self._file["mod"]) else sorted(self._file["mod"])
        chosen = "rna" if "rna" in kinds or not kinds else kinds[0]
        return (
            f". This is MuData, with the modalities {listed(kinds)}: write the one with expression to its "
            f"own file, with mudata.read({str(self.path)!r})[{chosen!r}].write_h5ad('{chosen}.h5ad')"
        )

    def _matrix_key(self, layer: str) -> str:
        if layer not in self.layers:
            muon = self._muon()
            there = f"; there are {listed(self.layers)}{muon}" if muon else ""
            there = there or there_are(layer, self.layers, show=listed)
            raise DataError(f"{self.path}: no matrix {layer!r}{there}")
        if layer == "raw":
            return f"{self._raw_prefix()}X"
        return "X" if layer == "X" else f"layers/{layer}"

    def _var(self, layer: str) -> Table:
        self._matrix_key(layer)
        key = f"{self._raw_prefix()}var" if layer == "raw" else "var"
        if key not in self._tables:
            self._tables[key] = Table(self._file, self.path, key)
        return self._tables[key]


# The obs and var tables, in every layout anndata has written since 0.6.

_OLD_CATEGORIES = "__categories"


class Table:
    """One table of an h5ad file: a group of columns, or before anndata 0.7 a compound dataset."""

    def __init__(self, file: Any, path: Path, key: str) -> None:
        if key not in file:
            raise DataError(f"{path}: no {key!r}, so this is no h5ad file; it holds {listed(sorted(file))}")
        self._file, self._path, self._key, self._node = file, path, key, file[key]
        with reading(path, key):
            if not is_array(self._node):
                self._index = text(self._node.attrs.get("_index", "_index"))
            elif self._node.dtype.names:
                self._index = str(self._node.dtype.names[0])  # anndata < 0.7 put the index first
            else:
                raise ValueError("expected a table, found a plain array")
            self.columns: list[str] = [name for name in self._names() if name != self._index]
            """Names of the columns, the index left out, in the file's order."""
            node = self._stored(self._index)
            if len(node.shape or ()) != 1:
                raise ValueError(f"expected one name a row, found the shape {node.shape}")
            check_announced(node, path, f"the index of {key}", node.shape[0] * ROW)
            self.size: int = int(node.shape[0])
            """Number of rows."""

    def names(self) -> list[str]:
        """Return the index: cell names of obs, gene names of var."""
        with reading(self._path, f"{self._key}/{self._index}"):
            return list(self._read(self._index))

    def column(self, name: str, otherwise: str = "") -> pd.Series:
        """Return a column as str, categories decoded and nulls as ``""``, indexed 0..n-1.

        Raises
        ------
        DataError
            If there is no such column (the message lists those there are), or it cannot be read.
        """
        import pandas as pd

        if name not in self.columns:
            has = there_are(name, self.columns, "it has", listed)
            raise DataError(f"{self._path}: {self._key} has no column {name!r}{has}{otherwise}")
        with reading(self._path, f"{self._key}/{name}"):
            values = self._read(name)
        if len(values) != self.size:
            raise DataError(
                f"{self._path}: {self._key}/{name} has {len(values)} values for {self.size} rows; "
                "the file is damaged: fetch it again"
            )
        return pd.Series(values, name=name, dtype=object)

    def typed_column(self, name: str) -> pd.Series:
        """Return a column as `column` does, but numbers as numbers, truth values as bool, nulls missing."""
        column = self.column(name)
        column = column.where(column != "", None)
        node = None if is_array(self._node) else self._node[name]
        if node is None or "categories" in (node.attrs if is_array(node) else node):
            return column
        stored = self._stored(name).dtype
        if stored.kind == "b":
            return column.map({"True": True, "False": False})
        return column.astype(np.float64 if column.hasnans else stored) if stored.kind in "iuf" else column

    def _names(self) -> list[str]:
        if is_array(self._node):
            return list(self._node.dtype.names or ())
        order = [text(name) for name in self._node.attrs.get("column-order", [])]
        stored = [name for name in self._node if name != _OLD_CATEGORIES]
        return [name for name in order if name in stored] + sorted(set(stored) - set(order))

    def _stored(self, name: str) -> Any:
        """Return the dataset that has one entry a row for column ``name``."""
        if is_array(self._node):
            return self._node
        node = self._node[name]
        if is_array(node):
            return node
        return node["codes"] if "codes" in node else node["values"]

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


# Which rows of var are genes: antibodies, hashtags, guides and spike-ins are none, and count nowhere.

COLUMNS = ("feature_types", "feature_type", "feature_biotype")
"""Columns of var that hold the type of a feature."""

_EXPRESSION = frozenset({"gene expression", "gex", "rna"})
"""Values that mark genes; where one occurs, features with other values are not genes."""

_NO_GENES = frozenset(
    {
        *("antibody capture", "antibody", "antibodies", "antibody derived tag", "adt", "protein"),
        *("multiplexing capture", "hashtag", "hashtag oligo", "hto", "cell hashing"),
        *("crispr guide capture", "crispr", "guide", "grna", "sgrna"),
        *("custom", "antigen capture", "peaks", "peak", "chromatin accessibility"),
        *("spike in", "spikein", "ercc", "synthetic"),
    }
)
"""Values that mark features that are not genes, even where no value marks genes."""


@dataclass(frozen=True, eq=False)
class NotGenes:
    """The features of a matrix that are not genes.

    Attributes
    ----------
    is_gene : numpy.ndarray
        bool, one a feature.
    kinds : dict
        What the others are called in the file -> how many there are.
    """

    is_gene: np.ndarray
    kinds: Mapping[str, int]

    @property
    def n(self) -> int:
        """How many features are no genes."""
        return sum(self.kinds.values())

    def blanked(self, values: Iterable[str]) -> list[str]:
        """Return ``values``, one a feature, with ``""`` where the feature is no gene."""
        if not self.kinds:
            return list(values)
        return [value if gene else "" for value, gene in zip(values, self.is_gene.tolist(), strict=True)]

    @property
    def warning(self) -> str:
        """A warning about them; empty where all features are genes."""
        if not self.kinds:
            return ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        return f"{self.n:,} of {len(self.is_gene):,} features are no genes and count nowhere: {kinds}"


def not_genes(n: int, columns: Mapping[str, Callable[[], Iterable[str]]]) -> NotGenes:
    """Return which of ``n`` features are not genes, by the `COLUMNS` that exist.

    Where a column calls some features ``Gene Expression``, those called otherwise are none, as CellRanger
    means it. Else it may hold biotypes of genes (protein_coding, lncRNA), and only what is known to be none
    is left out. A feature without a stated type is a gene.
    """
    is_gene = np.ones(n, dtype=bool)
    stated: dict[int, str] = {}
    for name in COLUMNS:
        if name not in columns:
            continue
        values = list(columns[name]())
        plain = {value: _plain(value) for value in set(values)}
        expression = any(kind in _EXPRESSION for kind in plain.values())
        none = {
            value
            for value, kind in plain.items()
            if kind and (kind not in _EXPRESSION if expression else kind in _NO_GENES)
        }
        for place, value in enumerate(values) if none else ():
            if value in none:
                is_gene[place] = False
                stated.setdefault(place, value)
    return NotGenes(is_gene, dict(sorted(Counter(stated.values()).items())))


def _plain(value: str) -> str:
    return " ".join(value.casefold().replace("-", " ").replace("_", " ").split())
