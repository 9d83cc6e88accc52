"""Where the cells of a map lie: obsm["X_umap"], or a layout computed from the embedding of the cells."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from scipy.sparse.linalg import svds

from canal.annotation.columns import LATENT, named
from canal.annotation.query import check_adata
from canal.core.errors import DataError
from canal.core.packages import named_packages
from canal.data.expression import to_expression
from canal.io.arrays import EXAMPLES, listed

if TYPE_CHECKING:
    from anndata import AnnData

UMAP, PCA = "X_umap", "X_pca"

_MOST_CELLS = 30_000
"""More cells take t-SNE minutes."""

_DIMENSIONS = 50
_FEWEST = 5
_PERPLEXITY = 30.0


@named_packages("canal.pl.layout")
def layout(adata: AnnData, *, key: str = "canal") -> np.ndarray:
    """Return places of the cells in a plane in which cells with a like embedding are near each other.

    The embedding is ``obsm["X_canal"]``, else ``obsm["X_pca"]``, else the first 50 principal components of X
    (counts as logarithms of counts per 10,000). The places are umap-learn's where it is installed, else those
    of scikit-learn's t-SNE; the same cells have the same places again. Keep them by
    ``adata.obsm["X_umap"] = canal.pl.layout(adata)``.

    Parameters
    ----------
    adata : AnnData
    key : str
        What canal's names begin with.

    Returns
    -------
    numpy.ndarray
        float32 ``(n_cells, 2)``.

    Raises
    ------
    DataError
        If there are more than 30,000 cells and no umap-learn, or the embedding is not finite.
    """
    check_adata(adata)
    own = named(LATENT, key)
    name = own if own in adata.obsm else PCA if PCA in adata.obsm else "X"
    embedding = _finite(
        np.asarray(adata.obsm[name]) if name != "X" else _components(adata), name, adata.n_obs
    )
    if len(embedding) < _FEWEST:
        return np.pad(embedding[:, :2], ((0, 0), (0, max(0, 2 - embedding.shape[1])))).astype(np.float32)
    if find_spec("umap") is not None:
        model = import_module("umap").UMAP(random_state=0, n_jobs=1)
        return np.asarray(model.fit_transform(embedding), dtype=np.float32)
    if len(embedding) > _MOST_CELLS:
        raise DataError(
            f"obsm has no {UMAP}, and laying out {len(embedding):,} cells by t-SNE would take minutes (at "
            f"most {_MOST_CELLS:,}): compute it once (scanpy: sc.pp.neighbors(adata, use_rep={own!r}); "
            "sc.tl.umap(adata)), install umap-learn, or draw a part of the cells"
        )
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(embedding) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(tsne.fit_transform(embedding), dtype=np.float32)


def place_cells(adata: AnnData, key: str) -> tuple[np.ndarray, str]:
    """Return the cells' places ``(n_cells, 2)`` and how the axes are called."""
    if UMAP in adata.obsm:
        return _finite(np.asarray(adata.obsm[UMAP]), UMAP, adata.n_obs)[:, :2], "UMAP"
    return layout(adata, key=key), "UMAP" if find_spec("umap") is not None else "t-SNE"


def _finite(values: np.ndarray, name: str, n_cells: int) -> np.ndarray:
    least = 2 if name == UMAP else 1
    if values.ndim != 2 or values.shape[1] < least or values.dtype.kind not in "fiu":
        raise DataError(
            f"obsm {name}: expected numbers, ({n_cells:,}, {least} or more), found {values.shape} of type "
            f"{values.dtype}"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise DataError(
            f"obsm {name}: expected finite numbers, found others for {bad.size:,} cells, such as those at "
            f"{listed(bad[:EXAMPLES].tolist())}: compute it again"
        )
    return values


def _components(adata: AnnData) -> np.ndarray:
    """Return principal components of X, of counts as canal reads them."""
    kind = getattr(adata.X, "dtype", None)
    if kind is None or kind.kind not in "fiub":
        raise DataError(
            "expected obsm['X_umap'], an embedding in obsm, or X to lay the cells out by, and X holds "
            f"{'nothing' if kind is None else f'values of type {kind}'}: compute a layout (scanpy: "
            "sc.tl.umap(adata))"
        )
    x: Any = adata.X[:]
    x = csr_matrix(x if issparse(x) else np.asarray(x), dtype=np.float32)
    if not x.nnz or not np.isfinite(x.data).all():
        raise DataError(
            "expected obsm['X_umap'] or an embedding in obsm to lay the cells out by, and X holds none but "
            "zeros or values that are not finite: compute one (scanpy: sc.tl.umap(adata))"
        )
    if (np.rint(x.data) == x.data).all():
        totals = np.asarray(x.sum(axis=1)).ravel()
        x = to_expression(x, "counts", np.maximum(totals, 1))
    n = min(_DIMENSIONS, min(x.shape) - 1)
    if n < 1:
        dense: np.ndarray = x.toarray()
        return dense
    left, values, _ = svds(x, k=n, random_state=0)
    components: np.ndarray = (left * values)[:, ::-1]
    return components
