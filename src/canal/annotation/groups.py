"""Groups of like cells: Leiden on the graph of nearest neighbours of their representations."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 15
MOST_IN_GRAPH = 50_000
"""Cells of the graph; of more, a drawn sample makes the graph and the others join their neighbours in it."""
_AT_A_TIME = 1000


def find_groups(points: np.ndarray, resolution: float, seed: int, most: int = MOST_IN_GRAPH) -> np.ndarray:
    """Return the group of each cell, int64 ``(n_cells,)``: 0 is the largest.

    Two cells are joined where one is among the other's 15 nearest by Euclidean distance; the edge weighs as
    much as the share of neighbours that they have in common (PhenoGraph, Levine et al. 2015). Groups are
    those of the Leiden algorithm (Traag et al. 2019) by modularity, until nothing improves. The same points,
    the same seed: the same groups.

    Parameters
    ----------
    points
        Representations, ``(n_cells, n_dimensions)``.
    resolution
        Higher: more and smaller groups.
    seed
        Of the algorithm's turns and of the sample.
    most
        Cells of the graph. Of more cells a sample of this size is grouped, and each of the others joins the
        group of most of its neighbours in the sample.
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
    groups[drawn] = _leiden(_shared(index.kneighbors_graph()), resolution, seed)
    for start in range(0, n, _AT_A_TIME):
        others = start + np.flatnonzero(groups[start : start + _AT_A_TIME] < 0)
        if others.size:
            groups[others] = _joined(index, points[others], groups[drawn])
    return _by_size(groups)


def _shared(near: csr_matrix) -> csr_matrix:
    """Return the upper half of the graph; an edge weighs the share of neighbours in common (Jaccard)."""
    from scipy.sparse import csr_matrix, identity, triu

    own = csr_matrix(near + identity(near.shape[0], format="csr"))
    own.data[:] = 1.0
    either = csr_matrix(triu(own + own.T, k=1))
    either.data[:] = 1.0
    common = csr_matrix((own @ own.T).multiply(either))
    size = int(own[0].nnz)
    common.data = common.data / (2 * size - common.data)
    return common


def _leiden(graph: csr_matrix, resolution: float, seed: int) -> np.ndarray:
    import igraph

    edges = graph.tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))  # noqa: S311 - not for secrets
    try:
        found = network.community_leiden(
            objective_function="modularity",
            weights=edges.data.tolist(),
            resolution=resolution,
            n_iterations=-1,
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.array(found.membership, dtype=np.int64)


def _joined(index: NearestNeighbors, points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return for cells outside the graph the group of most of their neighbours in it."""
    around = groups[index.kneighbors(points, return_distance=False)]
    return np.array([np.bincount(row).argmax() for row in around], dtype=np.int64)


def _by_size(groups: np.ndarray) -> np.ndarray:
    """Return the groups numbered by size, the largest first; of equal ones that of the earliest cell."""
    _, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    result: np.ndarray = rank[inverse]
    return result
