"""Cluster cells by a model's representation and add each cluster's majority vote to the labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse import csr_matrix, identity, triu

from canal.annotation.columns import CELL_TYPE, MIXED, SHARE, VOTE
from canal.annotation.query import IN_MEMORY
from canal.annotation.reading import reading_for
from canal.core.errors import DataError, did_you_mean
from canal.core.packages import require
from canal.core.progress import OnCells, by_cells, doing
from canal.io.arrays import listed, strings
from canal.io.formats import CellFile
from canal.io.h5ad import H5adFile
from canal.memory.answer import ExactAnnotator

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from sklearn.neighbors import NearestNeighbors

    from canal.annotation.options import Options
    from canal.annotation.query import Query
    from canal.annotation.reading import Reading
    from canal.io.formats import TabledFile
    from canal.model import Precision
    from canal.model.load import CellAnnotator

LOUVAIN = "louvain"
LEIDEN = "leiden"
METHODS = {LOUVAIN: "sknetwork", LEIDEN: "igraph"}
"""Clusters that are computed from the model's representation -> the module that does: BSD, and GPL."""

COLUMN = "obs:"
"""Optional prefix of a column of obs in ``--vote``; required for a column called as a method is."""

MOST_CELLS = 200_000
"""Most cells for which clusters are computed."""

_RESOLUTIONS = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (MOST_CELLS, 25.0))
"""Resolution by number of cells: many small clusters, as CellTypist's majority voting uses."""


def with_vote(table: pd.DataFrame, clusters: np.ndarray, min_share: float = 0.0) -> pd.DataFrame:
    """Return a table of labels with two more columns: the vote of each cell's cluster, and its share.

    ``canal_vote`` is the label that most cells of the cluster have, "Unassigned" included; of two with as
    many, the first by name. ``canal_vote_share`` is the share of the cluster's cells that have it. A cell of
    no cluster (``""``) keeps its own label, and its share is missing. No other column changes.

    A cluster in which no label has the least share votes "Mixed": it is not "Unassigned", which would say
    that its cells are of no known type, where they are of several.

    Parameters
    ----------
    table
        A row a cell, with ``canal_cell_type``.
    clusters
        The cluster of each cell, str ``(n_cells,)``.
    min_share
        Share of a cluster's cells that its label must have at least, 0...1.
    """
    import pandas as pd

    labels = table[CELL_TYPE].astype(str).to_numpy(dtype=object)
    votes, shares = labels.copy(), np.full(len(labels), np.nan, dtype=np.float32)
    for cluster, rows in pd.Series(clusters).groupby(clusters).indices.items():
        if cluster == "":
            continue
        names, counts = np.unique(labels[rows].astype(str), return_counts=True)
        share = counts.max() / len(rows)
        votes[rows] = names[counts.argmax()] if share >= min_share else MIXED
        shares[rows] = share
    result = table.copy(deep=False)
    result[VOTE], result[SHARE] = pd.Categorical(votes), shares
    return result


def clusters_of_file(file: CellFile, vote: str | None) -> np.ndarray | None:
    """Return the clusters in a column of obs, str ``(n_cells,)``; None without a vote, or for a method.

    Raises
    ------
    DataError
        If obs has no such column, has one called ``louvain`` that may be meant, or there are too many cells
        to compute clusters.
    MissingPackageError
        If the package that computes the clusters is not installed.
    """
    if vote is None:
        return None
    if isinstance(file, H5adFile):
        columns: Mapping[str, Any] = {name: partial(file.obs_column, name) for name in file.obs_columns}
    else:
        obs = cast("TabledFile", file).tables()[0]
        columns = {str(name): partial(obs.get, name) for name in obs}
    return _column(str(file.path), vote, columns, file.n_cells)


def clusters_of_adata(adata: AnnData, vote: str | None) -> np.ndarray | None:
    """Return the clusters of an AnnData, as `clusters_of_file` does for a file."""
    if vote is None:
        return None
    columns = {str(name): partial(adata.obs.get, name) for name in adata.obs}
    return _column(IN_MEMORY, vote, columns, adata.n_obs)


def add_vote(
    table: pd.DataFrame,
    clusters: np.ndarray | None,
    annotator: CellAnnotator,
    query: Query,
    options: Options,
    notice: Callable[[str], None],
) -> pd.DataFrame:
    """Return the table `with_vote` where ``options.vote`` is set, over ``clusters`` or computed ones."""
    if options.vote is None:
        return table
    if clusters is None:
        clusters = _make_clusters(annotator, query, options, notice)
    return with_vote(table, clusters, options.min_share or 0.0)


def _make_clusters(
    annotator: CellAnnotator, query: Query, options: Options, notice: Callable[[str], None]
) -> np.ndarray:
    """Return clusters of the model's representation, str ``(n_cells,)``; computes it for all cells.

    Clusters are many and small, so that each holds one type. Memory: 512 bytes a cell.
    """
    reading, restricted = reading_for(annotator, query, options)
    compute = ComputeOptions(options.chunk_cells, options.device, options.dtype)
    every, on_cells = np.ones(query.n_cells, dtype=bool), by_cells(notice, what="clustering: looked at")
    cells = represent(restricted, reading, every, compute, on_cells)
    resolution = next(value for most, value in _RESOLUTIONS if query.n_cells <= most)
    return find_groups(cells.manifold, resolution, seed=0, method=str(options.vote)).astype(str)


def _column(name: str, vote: str, columns: Mapping[str, Any], n_cells: int) -> np.ndarray | None:
    if vote in METHODS:
        _check_method(name, vote, columns, n_cells)
        return None
    column = vote.removeprefix(COLUMN)
    if column not in columns:
        raise DataError(
            f"{name}: obs has no column {column!r} (--vote); it has {listed(list(columns))}; --vote "
            f"{LOUVAIN} computes clusters from the model's representation{did_you_mean(column, columns)}"
        )
    return strings(columns[column]().to_numpy(dtype=object))


def _check_method(name: str, method: str, columns: Mapping[str, Any], n_cells: int) -> None:
    if method == LOUVAIN and method in columns:  # before there was such a method, the column was taken
        raise DataError(
            f"{name}: --vote {method} computes clusters, but obs has a column {method!r}: name the column as "
            f"--vote {COLUMN}{method}, or rename it"
        )
    if n_cells > MOST_CELLS:
        raise DataError(
            f"{name}: --vote {method} clusters at most {MOST_CELLS:,} cells, found {n_cells:,}: cluster "
            "them with another program (scanpy, rapids), and name the column of obs with --vote COLUMN"
        )
    for module in ("sklearn", METHODS[method]):
        require(module, f"--vote {method}")


# The model's representation of selected cells, for clusters and groups of novel cells.


@dataclass(frozen=True)
class Representation:
    """A model's representation of some cells, one row each.

    ``rows`` are their positions in the query, ascending; ``manifold`` is ``(n, 128)`` of a network, or one
    column a centroid of sums alone; ``logits`` is ``(n, n_types)``.
    """

    rows: np.ndarray
    manifold: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class ComputeOptions:
    """How a model computes: cells at a time, device and precision."""

    chunk_cells: int = 2000
    device: str = "auto"
    dtype: Precision = "float32"


def computing(annotator: CellAnnotator, compute: ComputeOptions) -> AbstractContextManager[object]:
    """Move a network to its device and return the context of its precision; sums need neither, nor torch."""
    if isinstance(annotator, ExactAnnotator):
        return nullcontext()
    from canal.model.compute import find_device, precision

    device = find_device(compute.device)
    annotator.on(device)
    return precision(compute.dtype, device)


def represent(
    annotator: CellAnnotator, reading: Reading, wanted: np.ndarray, compute: ComputeOptions, on_cells: OnCells
) -> Representation:
    """Return the representation of the ``wanted`` cells, bool ``(n_cells,)``, computed block by block.

    Memory: a block of cells, and some 600 bytes for each wanted cell.

    Parameters
    ----------
    annotator, reading
        The model, and the cells in the model's genes.
    wanted
        Which cells to represent.
    compute
        Block size, device and precision.
    on_cells
        Called with (wanted cells done, wanted cells in all) after every block.

    Raises
    ------
    DataError
        If a value is wrong; see `canal.annotation.reading.Reading.blocks`.
    """
    total, done = int(wanted.sum()), 0
    manifolds, logits = (
        [part] for part in annotator.represented(np.zeros((0, len(annotator.genes)), np.float32))
    )
    with doing("representing the cells"), computing(annotator, compute):
        on_cells(0, total)
        for block in reading.blocks(compute.chunk_cells):
            chosen = wanted[block.start : block.start + len(block.expression)]
            if not chosen.any():
                continue
            manifold, block_logits = annotator.represented(block.expression[chosen])
            manifolds.append(manifold)
            logits.append(block_logits)
            done += int(chosen.sum())
            on_cells(done, total)
    return Representation(np.flatnonzero(wanted), np.concatenate(manifolds), np.concatenate(logits))


# Groups of similar cells: communities of the nearest-neighbour graph of their representations.

NEIGHBOURS = 15
MOST_IN_GRAPH = 50_000
"""Most cells of the graph; of more, a sample is clustered and the others join their neighbours' groups."""
_AT_A_TIME = 1000
_IMPROVES = 1e-5
"""Gain of modularity below which Louvain's passes end; the library's own 1e-3 ends them early."""


@doing("grouping the cells")
def find_groups(
    points: np.ndarray, resolution: float, seed: int, most: int = MOST_IN_GRAPH, method: str = LOUVAIN
) -> np.ndarray:
    """Return the group of each cell, int64 ``(n_cells,)``: 0 is the largest.

    Two cells are joined where one is among the other's 15 nearest by Euclidean distance; the edge weighs as
    much as the share of neighbours that they have in common (PhenoGraph, Levine et al. 2015). Groups are
    communities by modularity: those of the Louvain algorithm (Blondel et al. 2008), or of the Leiden
    algorithm (Traag et al. 2019) until nothing improves. The same points, the same seed: the same groups.

    Parameters
    ----------
    points
        Representations, ``(n_cells, n_dimensions)``.
    resolution
        Higher: more and smaller groups.
    seed
        Seed of the algorithm and of the sample.
    most
        Most cells of the graph. Of more cells a sample of this size is clustered, and each of the others
        joins the group of most of its neighbours in the sample.
    method
        `LOUVAIN` or `LEIDEN`.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(points)
    if n < 3:
        return np.zeros(n, dtype=np.int64)
    drawn = np.arange(n)
    if n > most:
        drawn = np.sort(np.random.default_rng([seed, *b"groups"]).choice(n, size=most, replace=False))
    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(drawn) - 1), algorithm="brute").fit(
        points[drawn]
    )
    groups = np.full(n, -1, dtype=np.int64)
    communities = _leiden if method == LEIDEN else _louvain
    groups[drawn] = communities(_shared(index.kneighbors_graph()), resolution, seed)
    for start in range(0, n, _AT_A_TIME):
        others = start + np.flatnonzero(groups[start : start + _AT_A_TIME] < 0)
        if others.size:
            groups[others] = _joined(index, points[others], groups[drawn])
    # Numbered by size, the largest first; ties go to the group of the earliest cell.
    _, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    result: np.ndarray = rank[inverse]
    return result


def _shared(near: csr_matrix) -> csr_matrix:
    """Return the upper half of the graph; an edge weighs the share of neighbours in common (Jaccard)."""
    own = csr_matrix(near + identity(near.shape[0], format="csr"))
    own.data[:] = 1.0
    either = csr_matrix(triu(own + own.T, k=1))
    either.data[:] = 1.0
    common = csr_matrix((own @ own.T).multiply(either))
    size = int(own[0].nnz)
    common.data = common.data / (2 * size - common.data)
    return common


def _louvain(graph: csr_matrix, resolution: float, seed: int) -> np.ndarray:
    from sknetwork.clustering import Louvain

    louvain = Louvain(
        resolution=resolution,
        tol_optimization=_IMPROVES,
        tol_aggregation=_IMPROVES,
        shuffle_nodes=True,
        random_state=seed,
    )
    return np.asarray(louvain.fit_predict(csr_matrix(graph + graph.T)), dtype=np.int64)


def _leiden(graph: csr_matrix, resolution: float, seed: int) -> np.ndarray:
    import igraph

    edges = graph.tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))  # noqa: S311 - not for secrets
    try:
        clustering = network.community_leiden(
            objective_function="modularity",
            weights=edges.data.tolist(),
            resolution=resolution,
            n_iterations=-1,
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.array(clustering.membership, dtype=np.int64)


def _joined(index: NearestNeighbors, points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for cells outside the graph the group of most of their neighbours in it."""
    neighbours = groups[index.kneighbors(points, return_distance=False)]
    return np.array([np.bincount(row).argmax() for row in neighbours], dtype=np.int64)
