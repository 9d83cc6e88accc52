"""canal.pl: figures of labelled cells: your own labels against canal's, and maps of type and confidence."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from canal.annotation.columns import CELL_TYPE, CONFIDENCE, LATENT, NOVELTY
from canal.annotation.columns import named as under_key
from canal.annotation.query import check_adata
from canal.core.errors import DataError
from canal.core.packages import named_packages
from canal.data.expression import to_expression
from canal.io.arrays import EXAMPLES, listed
from canal.io.writer import writing
from canal.report.canvas import INK, MUTED, named, new_figure, pyplot, styled
from canal.report.canvas import save as save_figure
from canal.report.cell_maps import Agreement, Panel, count_bars, draw_dots, draw_legend, name_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

_PANEL = 3.8
"""Inches of a map, without its legend."""


@named_packages("canal.pl.dotplot")
@styled
def dotplot(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "canal",
    save: str | Path | bool | None = None,
    show: bool | None = None,
) -> Figure | None:
    """Draw your own labels against the types that canal gave, one dot for each pair.

    A dot's area is the share of the own label's cells that have the type, its colour their median confidence.
    Rows are own labels, columns types, ordered so that most cells lie along a diagonal, "Unassigned" last. A
    ring is around each row's largest dot, bars count cells, the title says which label fares worst.

    Parameters
    ----------
    adata : AnnData
        Labelled by ``canal.annotate(adata, write=True)`` or read from a file of `canal annotate`.
    groupby : str
        The column of obs with your own labels. Cells without one are left out, and counted below the plot.
    key : str
        What canal's columns begin with.
    save : str, Path or bool, optional
        A file to write (.png, .svg or .pdf); True writes ``figures/dotplot.png``.
    show : bool, optional
        Whether to show the figure in a window or notebook by pyplot.

    Returns
    -------
    matplotlib.figure.Figure or None
        None if it was shown.

    Raises
    ------
    DataError
        If obs lacks canal's columns or ``groupby``, which has no labels or over 200, or nothing is written.
    """
    target = _target(save, "dotplot")
    columns = _columns(adata, key)
    found = Agreement.of(adata.obs, groupby, columns)
    n_rows, n_columns = found.shares.shape
    cell = 0.42 if max(n_rows, n_columns) <= 12 else 0.3 if max(n_rows, n_columns) <= 25 else 0.235
    names = [named(name) for name in found.own], [named(name) for name in found.types]
    tall = 0.075 * max(map(len, names[1])) * (0.75 if n_columns <= 12 else 1.0)
    width = max(0.075 * max(map(len, names[0])) + cell * n_columns + 2.6, 5.0)
    height = max(cell * n_rows, 2.4)
    figure = new_figure(width, tall + height + 1.6, by_pyplot=bool(show))
    grid = figure.add_gridspec(2, 3, width_ratios=[cell * n_columns, 0.85, 1.25], height_ratios=[0.6, height])
    axis = figure.add_subplot(grid[1, 0])
    dots = draw_dots(axis, found, cell)
    name_axes(axis, names, groupby)
    count_bars(figure.add_subplot(grid[0, 0], sharex=axis), found.counts.sum(axis=0), upwards=True)
    count_bars(figure.add_subplot(grid[1, 1], sharey=axis), found.counts.sum(axis=1), upwards=False)
    draw_legend(figure.add_subplot(grid[:, 2]), dots, cell, height + 0.6)
    left: dict[str, Any] = {"x": 0.01, "ha": "left"}
    figure.suptitle(found.title(int(width * 11)), fontsize=10, fontweight="bold", color=INK, **left)
    if found.n_without:
        note = f"{found.n_without:,} cells without a label in {named(groupby)} are left out"
        figure.supxlabel(note, fontsize=8, color=MUTED, **left)
    return _finished(figure, target, show)


@named_packages("canal.pl.umap")
@styled
def umap(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    *,
    key: str = "canal",
    save: str | Path | bool | None = None,
    show: bool | None = None,
) -> Figure | None:
    """Draw a map of the cells, coloured by predicted type, confidence, novelty or any column of obs.

    Places are ``adata.obsm["X_umap"]``; where it is missing, those of `layout`, computed for this figure
    alone: keep them by ``adata.obsm["X_umap"] = canal.pl.layout(adata)``. "Unassigned" is grey. A type has
    the colour of ``uns["canal_cell_type_colors"]``. Names, or numbers that the legend explains, stand at the
    middle of a type's cells, so that no colour has to be told from another.

    Parameters
    ----------
    adata : AnnData
        Labelled by ``canal.annotate(adata, write=True)`` or read from a file of `canal annotate`.
    color : str or sequence of str, optional
        ``cell_type``, ``confidence``, ``novelty`` or columns of obs, one panel each; by default these three.
    key : str
        What canal's columns begin with.
    save : str, Path or bool, optional
        A file to write (.png, .svg or .pdf); True writes ``figures/umap.png``.
    show : bool, optional
        Whether to show the figure in a window or notebook by pyplot.

    Returns
    -------
    matplotlib.figure.Figure or None
        None if it was shown.

    Raises
    ------
    DataError
        If obs lacks canal's columns or one that was named, there is nothing to lay the cells out by, or the
        figure cannot be written.
    """
    target = _target(save, "umap")
    canals = _columns(adata, key)
    columns = [_column(adata, name, canals) for name in _chosen(color, canals)]
    places, name = place_cells(adata, key)
    panels = [Panel.of(adata, column, canals) for column in columns]
    below = sum(panel.is_long for panel in panels) == 1
    beside, lines = zip(*(panel.legend_size(below) for panel in panels), strict=True)
    figure = new_figure(_PANEL * len(panels) + sum(beside), 4.2 + 0.17 * max(lines), by_pyplot=bool(show))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        panel.draw(axis, places, below)
        axis.set_title(panel.title)
        axis.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
    return _finished(figure, target, show)


def _columns(adata: Any, key: str) -> dict[str, str]:
    """Return canal's columns of obs by what they are; raises `DataError` in words if they are not there."""
    if isinstance(adata, str | Path):
        raise DataError(f"expected an AnnData, found the path {str(adata)!r}: read it with anndata.read_h5ad")
    check_adata(adata)
    columns = {
        name: under_key(column, key)
        for name, column in (("cell_type", CELL_TYPE), ("confidence", CONFIDENCE), ("novelty", NOVELTY))
    }
    obs = [str(name) for name in adata.obs]
    if missing := [name for name in columns.values() if name not in obs]:
        keys = [name.removesuffix("_cell_type") for name in obs if name.endswith("_cell_type")]
        keys = [one for one in keys if {f"{one}_confidence", f"{one}_novelty"} <= set(obs)]
        hint = f"it has those of another key: give key={keys[0]!r}" if keys else (
            "label them with canal.annotate(adata, write=True), or read a file that `canal annotate` wrote"
        )  # fmt: skip
        raise DataError(
            f"expected the columns {listed(list(columns.values()))} in obs, found {len(obs)} others, such as "
            f"{listed(obs[:EXAMPLES])} ({len(missing)} are missing): {hint}"
        )
    if not adata.n_obs:
        raise DataError("the AnnData has no cells, so there is nothing to draw")
    if several := sorted({name for name in obs if obs.count(name) > 1}):
        raise DataError(
            f"expected obs columns with names of their own, found several called {listed(several)}"
        )
    for name in (columns["confidence"], columns["novelty"]):
        _check_numbers(adata.obs[name], name)
    return columns


def _check_numbers(values: pd.Series[Any], name: str) -> None:
    """Raise `DataError` unless a column that canal writes as numbers still holds numbers, or none."""
    try:
        values.dropna().astype(float)
    except (ValueError, TypeError) as error:
        wrong = [str(one) for one in values.dropna() if not isinstance(one, Real)]
        raise DataError(
            f"obs column {name!r}: expected numbers from 0 to 1, as canal writes them, found other values in "
            f"{len(wrong):,} of {len(values):,} cells, such as {listed(sorted(set(wrong))[:EXAMPLES])}: "
            "label the cells again"
        ) from error


def _chosen(color: Any, canals: dict[str, str]) -> tuple[Any, ...]:
    """Return what ``color`` names, a panel each; by default canal's own three."""
    if color is None:
        return tuple(canals.values())
    if isinstance(color, str):
        return (color,)
    if not isinstance(color, Collection) or not color:
        found = "an empty one" if isinstance(color, Collection) else repr(color)
        raise DataError(
            f"color: expected {listed(list(canals))}, a column of obs, or a list of these, found {found}"
        )
    return tuple(color)


def _column(adata: AnnData, name: Any, canals: dict[str, str]) -> str:
    """Return the column of obs that ``color`` names; canal's own go by what they are, too."""
    if isinstance(name, str) and name in adata.obs:
        return name
    if isinstance(name, str) and name in canals:
        return canals[name]
    raise DataError(
        f"color: expected {listed(list(canals))} or a column of obs, found {name!r}; obs has the columns "
        f"{listed([str(one) for one in adata.obs][:20])}"
    )


# Files and windows.


def _target(given: str | Path | bool | None, name: str) -> Path | None:
    """Return the file to write; raises `DataError` before anything is drawn if it cannot be one."""
    if given is None or given is False:
        return None
    if given is not True and not isinstance(given, str | PathLike):
        raise DataError(f"save: expected a file that ends in .png, .svg or .pdf, or True, found {given!r}")
    path = Path("figures", f"{name}.png") if given is True else Path(given)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"save: expected a file that ends in .png, .svg or .pdf, found {str(path)!r}")
    return path


def _finished(figure: Figure, target: Path | None, show: bool | None) -> Figure | None:
    if target is not None:
        with writing(target):
            save_figure(figure, target)
    if not show:
        return figure
    pyplot().show()
    return None


# Where the cells of a map lie.

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
    own = under_key(LATENT, key)
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
    warnings.warn(
        f"obsm has no {UMAP} and umap-learn is not installed, so t-SNE places the cells: pip install "
        "umap-learn, or compute it once (scanpy: sc.tl.umap)",
        stacklevel=2,
    )
    return tsne_places(embedding)


def tsne_places(embedding: np.ndarray, iterations: int = 1000) -> np.ndarray:
    """Return places of at least five cells by t-SNE, float32 ``(n_cells, 2)``: the same cells, the same."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(embedding) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=iterations)
    with threadpool_limits(
        1
    ):  # threads wait for each other in every step: beside other work four times as long
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
