"""Majority vote: what most cells of a cluster are, beside each cell's own label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from canal.annotation.columns import SHARE, TYPE, VOTE
from canal.annotation.groups import find_groups
from canal.annotation.naming import rename
from canal.annotation.query import IN_MEMORY, CellFile
from canal.annotation.reading import begin
from canal.annotation.represent import Machine, represent
from canal.annotation.telling import in_tenths
from canal.core.errors import DataError
from canal.data.h5ad import H5adFile
from canal.data.h5ad_tables import listed, strings

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from canal.annotation.options import Options
    from canal.annotation.query import Query, TabledFile
    from canal.model.load import CellAnnotator

LEIDEN = "leiden"
"""The vote is over clusters that canal makes of the model's representation."""

COLUMN = "obs:"
"""What may stand before the name of a column of obs, and has to before one called ``leiden``."""

MOST_CELLS = 200_000
"""Cells that canal clusters by itself."""

_RESOLUTIONS = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (MOST_CELLS, 25.0))
"""By number of cells: many small clusters, as CellTypist makes them for its vote."""


def with_vote(table: pd.DataFrame, clusters: np.ndarray) -> pd.DataFrame:
    """Return a table of labels with two more columns: the vote of each cell's cluster, and its share.

    ``canal_vote`` is the label that most cells of the cluster have, "Unassigned" included; of two with as
    many, the first by name. ``canal_vote_share`` is the share of the cluster's cells that have it. A cell of
    no cluster (``""``) keeps its own label, and its share is missing. No other column changes.

    Parameters
    ----------
    table
        A row a cell, with ``canal_cell_type``.
    clusters
        The cluster of each cell, str ``(n_cells,)``.
    """
    import pandas as pd

    labels = table[TYPE].astype(str).to_numpy(dtype=object)
    votes, shares = labels.copy(), np.full(len(labels), np.nan, dtype=np.float32)
    for cluster, rows in pd.Series(clusters).groupby(clusters).indices.items():
        if cluster == "":
            continue
        names, counts = np.unique(labels[rows].astype(str), return_counts=True)
        votes[rows] = names[counts.argmax()]
        shares[rows] = counts.max() / len(rows)
    result = table.copy(deep=False)
    result[VOTE], result[SHARE] = pd.Categorical(votes), shares
    return result


def clusters_of_file(file: CellFile, wish: str | None) -> np.ndarray | None:
    """Return the clusters that stand in a file, str ``(n_cells,)``; None without a wish, or for `LEIDEN`.

    Raises
    ------
    DataError
        If obs has no such column, or there are too many cells for canal's own clusters.
    """
    if wish is None or _is_own(wish, str(file.path), file.n_cells):
        return None
    if isinstance(file, H5adFile):
        columns: Mapping[str, Any] = {name: partial(file.obs_column, name) for name in file.obs_columns}
    else:
        obs = cast("TabledFile", file).tables()[0]
        columns = {str(name): partial(obs.get, name) for name in obs}
    return _column(str(file.path), wish, columns)


def clusters_of_adata(adata: AnnData, wish: str | None) -> np.ndarray | None:
    """Return as `clusters_of_file`, for an AnnData."""
    if wish is None or _is_own(wish, IN_MEMORY, adata.n_obs):
        return None
    return _column(IN_MEMORY, wish, {str(name): partial(adata.obs.get, name) for name in adata.obs})


def voted(
    table: pd.DataFrame,
    clusters: np.ndarray | None,
    annotator: CellAnnotator,
    query: Query,
    options: Options,
    notice: Callable[[str], None],
) -> pd.DataFrame:
    """Return the table `with_vote` where ``options.vote`` asks for one, over ``clusters`` or canal's own."""
    if options.vote is None:
        return table
    if clusters is None:
        clusters = _make_clusters(annotator, query, options, notice)
    return with_vote(table, clusters)


def _make_clusters(
    annotator: CellAnnotator, query: Query, options: Options, notice: Callable[[str], None]
) -> np.ndarray:
    """Return clusters of the model's representation, str ``(n_cells,)``: the cells go through it once more.

    Clusters are many and small, so that each is of one type. In memory are 512 bytes a cell.
    """
    renamed, _ = rename(query, annotator.genes, options.naming, options.gene_column is not None)
    reading = begin(renamed, annotator.genes, options.values, options.min_coverage, options.force)
    machine = Machine(options.chunk_cells, options.device, options.dtype)
    every, tell = np.ones(query.n_cells, dtype=bool), in_tenths(notice, what="clustering: looked at")
    found = represent(annotator, reading, every, machine, tell)
    resolution = next(value for most, value in _RESOLUTIONS if query.n_cells <= most)
    return find_groups(found.manifold, resolution, seed=0).astype(str)


def _is_own(wish: str, name: str, n_cells: int) -> bool:
    if wish == LEIDEN and n_cells > MOST_CELLS:
        raise DataError(
            f"{name}: canal clusters at most {MOST_CELLS:,} cells by itself for --vote {LEIDEN}, found "
            f"{n_cells:,}: cluster them with a program for that, and give --vote COLUMN of obs"
        )
    return wish == LEIDEN


def _column(name: str, wish: str, columns: Mapping[str, Any]) -> np.ndarray:
    column = wish.removeprefix(COLUMN)
    if column not in columns:
        raise DataError(
            f"{name}: obs has no column {column!r} (--vote); it has {listed(list(columns))}; --vote {LEIDEN} "
            "makes clusters of the model's representation"
        )
    return strings(columns[column]().to_numpy(dtype=object))
