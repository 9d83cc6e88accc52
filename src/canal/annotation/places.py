"""Where labels lie in an AnnData or file (obs, obsm, uns), and what an earlier annotation left there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from canal.annotation.columns import (
    BEST_TYPE,
    CELL_TYPE,
    KEY,
    MATRICES,
    MIXED,
    UNASSIGNED,
    VOTE,
    named,
    own_columns,
    split_obsm,
    stale_columns,
    stale_columns_message,
)
from canal.annotation.query import IN_MEMORY
from canal.annotation.records import key_of, record_keys
from canal.core.errors import DataError
from canal.io.arrays import listed
from canal.io.h5ad import H5adFile

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.io.formats import CellFile, TabledFile

_COLOURED = (CELL_TYPE, BEST_TYPE, VOTE)
"""The columns that are plotted, for which scanpy finds colours in uns."""


@dataclass(frozen=True, eq=False)
class Places:
    """What an annotation writes, by its place.

    Attributes
    ----------
    key : str
        What all names begin with.
    obs : pandas.DataFrame
        New columns, a row a cell.
    obsm : dict
        Matrices, float32 ``(n_cells, any)``.
    uns : dict
        The record as a JSON text, and a colour for each category of a column, in the categories' order, as
        scanpy keeps them: ``canal_cell_type_colors`` ...
    """

    key: str
    obs: pd.DataFrame
    obsm: dict[str, np.ndarray]
    uns: dict[str, Any]

    @classmethod
    def of(cls, table: pd.DataFrame, record: str) -> Places:
        """Return the places of a table of labels, whose columns are named under the record's key.

        Parameters
        ----------
        table, record
            The labels, and their record as a JSON text, which also names the model's types.
        """
        facts = json.loads(record)
        key = key_of(facts)
        columns, matrices = split_obsm(table, key)
        shown = [name for name in (named(one, key) for one in _COLOURED) if name in columns]
        categories = {name: columns[name].astype("category").cat.categories.tolist() for name in shown}
        colours = type_colours(
            [*facts.get("labels", ()), *(one for types in categories.values() for one in types)]
        )
        palettes = {_colours_of(name): [colours[one] for one in categories[name]] for name in shown}
        return cls(key, columns, matrices, {key: record, **palettes})

    def stale_columns(self, obs: Iterable[object]) -> list[str]:
        """Return the columns that an earlier annotation under this key wrote and this one does not."""
        return stale_columns(obs, self.obs, self.key)

    def stale_matrices(self, obsm: Collection[str]) -> list[str]:
        """Return the matrices of an earlier annotation that this one does not write."""
        own = [named(name, self.key) for name in MATRICES]
        return [name for name in own if name in obsm and name not in self.obsm]

    def stale_notes(self, uns: Collection[str]) -> list[str]:
        """Return the colours of an earlier annotation that this one does not write."""
        own = [_colours_of(named(name, self.key)) for name in _COLOURED]
        return [name for name in own if name in uns and name not in self.uns]

    def write_into(self, adata: AnnData) -> None:
        """Write everything into an AnnData; a warning names what is removed, as of an earlier one."""
        stale = self.stale_columns(adata.obs)
        adata.obs = adata.obs.drop(columns=stale) if stale else adata.obs
        for name in self.stale_matrices(adata.obsm.keys()):
            del adata.obsm[name]
            stale.append(f"obsm {name}")
        for name in self.stale_notes(adata.uns.keys()):
            del adata.uns[name]
        if stale:
            warnings.warn(stale_columns_message(stale), stacklevel=3)
        for column in self.obs:
            adata.obs[column] = self.obs[column].array
        for name, matrix in self.obsm.items():
            adata.obsm[name] = matrix
        adata.uns.update(self.uns)


def check_free_file(file: CellFile, key: str) -> None:
    """Raise where labels under a key would replace something in a file that is not canal's.

    canal's own key is never refused, and neither is one under which an annotation record stands.

    Raises
    ------
    DataError
        With the names that are taken.
    """
    if key == KEY:
        return
    if not isinstance(file, H5adFile):
        obs = cast("TabledFile", file).tables()[0]
        _check_free(str(file.path), key, {"obs": obs, "obsm": (), "uns": ()})
    elif not record_keys([key], file.text_in_uns):
        names = {"obs": file.obs_columns, "obsm": file.members("obsm"), "uns": file.members("uns")}
        _check_free(str(file.path), key, names)


def check_free_adata(adata: AnnData, key: str) -> None:
    """Raise as `check_free_file` where labels under a key would replace something in an AnnData."""
    if key != KEY and not record_keys([key], partial(text_in_uns, adata)):
        names = {"obs": adata.obs, "obsm": adata.obsm.keys(), "uns": adata.uns.keys()}
        _check_free(IN_MEMORY, key, names)


def text_in_uns(adata: AnnData, name: str) -> str | None:
    """Return the text under a name in uns; None where anything else, or nothing, is there."""
    value = adata.uns.get(name)
    return str(value) if isinstance(value, str) else None


def _check_free(name: str, key: str, names: Mapping[str, Iterable[object]]) -> None:
    """Raise where one of the ``names``, those of obs, obsm and uns, would be replaced."""
    own = {
        "obsm": [named(matrix, key) for matrix in MATRICES],
        "uns": [key, *(_colours_of(named(one, key)) for one in _COLOURED)],
    }
    taken = [f"obs {one}" for one in own_columns(names["obs"], key)]
    taken += [
        f"{place} {one}" for place, all_own in own.items() for one in all_own if one in set(names[place])
    ]
    if taken:
        raise DataError(
            f"{name}: labels under the key {key!r} would replace {listed(taken, 5)}, which canal did not "
            f"write (uns[{key!r}] holds no annotation record): choose another --key-added"
        )


def _colours_of(column: str) -> str:
    return f"{column}_colors"


# A fixed colour for each cell type: the same for the same name in every file and project.

PALETTE = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#1010fe", "#1e2caa"),
    *("#80101e", "#10f080", "#b848fe", "#562c64", "#64f0f0", "#f01e56", "#3af0b8", "#8e4810", "#c69c48"),
    *("#1e56b8", "#8e2c56", "#9c80f0", "#641080", "#2c10c6", "#8ef064", "#647248", "#fe728e", "#aa1e8e"),
    *("#48b8c6", "#64c6aa", "#b8aa72", "#10562c", "#1048f0", "#c62c80", "#8e80b8", "#aad4fe", "#10d41e"),
    *("#723ad4", "#109c10", "#107272", "#9ce29c", "#b81e3a", "#e210d4", "#9ce2d4", "#642c3a", "#b8c664"),
    *("#b87264", "#f0c648", "#80aafe", "#483a9c", "#fe80c6", "#8e722c", "#b8569c", "#e27256", "#802c10"),
    *("#9c48aa", "#3a80d4", "#8e3a48", "#72aa8e", "#b88ed4", "#aa72fe", "#d4568e", "#48568e", "#fec680"),
    "#c6802c",
)
"""64 colours, none of them grey: the seven of Okabe and Ito, then each time the colour that lies farthest
from all before it, to people who see all colours and to those without red or green (Machado et al. 2009), in
CIELAB. Any two differ by at least 14, and by 8 without red or green."""

OF_NO_TYPE = {UNASSIGNED: "#bdbdbd", MIXED: "#595959"}
"""The greys of what is no type."""


def type_colours(types: Sequence[str]) -> dict[str, str]:
    """Return a colour for each type of a model, and the greys of what is no type.

    A type's colour is drawn by a digest of its name, so it does not depend on the file, the project, or which
    types a file holds. Where two types of one model would have the same colour, the later of them has the
    next that its digest draws; types that a model learns later therefore never change the colours of earlier
    ones. Beyond 64 types colours repeat.

    Parameters
    ----------
    types
        The model's cell types, in its own order.
    """
    colours: dict[str, str] = {}
    free = set(PALETTE)
    for name in (name for name in dict.fromkeys(types) if name not in OF_NO_TYPE):
        free = free or set(PALETTE)
        # Every colour in an order of the name's own.
        drawn = sorted(PALETTE, key=lambda colour: sha256(f"{name}\0{colour}".encode()).digest())
        colours[name] = next(colour for colour in drawn if colour in free)
        free.discard(colours[name])
    return {**colours, **OF_NO_TYPE}
