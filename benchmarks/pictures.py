"""The pictures of docs/annotate.md: the stream's test cells by type, by confidence and by novelty.

    python benchmarks/pictures.py --root . -o docs/images/annotate.png

Needs a finished `make run` and changes nothing in it. The cells of every stage are labelled as `canal
annotate` does it, by the first version and by the one that serves (the champion, else the newest). A UMAP of
the latter's representation places them, the same for both; scanpy brings UMAP along.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from canal.annotation.annotate import label_h5ad
from canal.annotation.columns import CELL_TYPE, CONFIDENCE, NOVELTY, UNASSIGNED
from canal.annotation.options import Options
from canal.app.models import load_annotator, serving_version
from canal.app.project import Project
from canal.report.canvas import HEAT, INK, MUTED, new_figure, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from canal.model.load import CellAnnotator

NEIGHBOURS = 15
COLUMNS = ("cell type", "confidence", "novelty")
_GREY = "#9aa5b0"


@dataclass(frozen=True, eq=False)
class Row:
    """What one version says of the cells."""

    title: str
    labels: pd.DataFrame


def labelled(project: Project, annotator: CellAnnotator) -> pd.DataFrame:
    """Return what `canal annotate` says of the test cells of all stages."""
    found = []
    for stage in project.config.stages:
        chosen = project.split(stage).query("set == 'test'")["cell_id"]
        file = project.layout.prepared(project.config.stages[stage].source) / "cells.h5ad"
        found.append(label_h5ad(annotator, file, Options(force=True)).loc[chosen])
    return pd.concat([table.astype({CELL_TYPE: str}) for table in found])


def placed(project: Project, annotator: CellAnnotator) -> np.ndarray:
    """Return two coordinates of each test cell: UMAP (McInnes et al. 2018) of the representation."""
    import umap

    cells = [project.cells(stage, "test", annotator.genes).expression for stage in project.config.stages]
    representation = annotator.represented(np.concatenate(cells))[0]
    found: np.ndarray = umap.UMAP(
        n_neighbors=NEIGHBOURS, metric="cosine", random_state=project.config.seed, n_jobs=1
    ).fit_transform(representation)
    return found


def rows(project: Project) -> tuple[np.ndarray, list[Row]]:
    """Return where the cells lie, and what the first version and the serving one say of them."""
    serving = serving_version(project, None)
    first = next(version for version in project.store.versions() if version.ready)
    found, places = [], None
    for version in (first, serving):
        annotator = load_annotator(project, version)
        title = f"version {version.number}, learned up to {version.stage}"
        found.append(Row(title, labelled(project, annotator)))
        places = placed(project, annotator) if version is serving else places
    assert places is not None
    return places, found


@styled
def draw(places: np.ndarray, found: list[Row], path: Path) -> None:
    """Draw a row of three pictures a version."""
    from matplotlib import colormaps

    types = sorted({name for row in found for name in row.labels[CELL_TYPE]} - {UNASSIGNED})
    tab20 = colormaps["tab20"].colors
    dark, pale = ([tab20[i] for i in range(start, 20, 2) if i // 2 != 7] for start in (0, 1))  # 7: greys
    colours = dict(zip(types, [*dark, *pale], strict=False))
    figure = new_figure(9.6, 3.0 * len(found) + 0.7)
    grid = figure.subplots(len(found), len(COLUMNS), squeeze=False)
    for row, axes in zip(found, grid, strict=True):
        by_type(axes[0], places, row, colours)
        for name, column, each in zip(COLUMNS[1:], (CONFIDENCE, NOVELTY), axes[1:], strict=True):
            by_number(each, places, row, column, name)
    handles = [grid[0][0].scatter([], [], s=30, color=colours[name], label=name) for name in types]
    handles.append(grid[0][0].scatter([], [], s=30, color=_GREY, marker="x", label=UNASSIGNED))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False)
    save(figure, path)


def by_type(axes: Axes, places: np.ndarray, row: Row, colours: dict[str, tuple[float, ...]]) -> None:
    """Draw each cell in its type's colour, and those of none as grey crosses."""
    types = row.labels[CELL_TYPE].to_numpy()
    known = types != UNASSIGNED
    axes.scatter(*places[known].T, s=9, c=[colours[name] for name in types[known]], linewidths=0)
    axes.scatter(*places[~known].T, s=11, c=_GREY, marker="x", linewidths=0.8)
    frame(axes, f"{row.title}\n{(~known).mean():.0%} of {len(types)} cells {UNASSIGNED}")


def by_number(axes: Axes, places: np.ndarray, row: Row, column: str, name: str) -> None:
    """Draw each cell by a number in 0...1."""
    from matplotlib.colors import LinearSegmentedColormap

    values = row.labels[column].to_numpy()
    order = np.argsort(values)
    scale = LinearSegmentedColormap.from_list("canal", HEAT[1:])
    drawn = axes.scatter(*places[order].T, s=9, c=values[order], cmap=scale, vmin=0, vmax=1, linewidths=0)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7).outline.set_visible(False)  # type: ignore[attr-defined]
    frame(axes, name)


def frame(axes: Axes, title: str) -> None:
    """Give a picture its title and no ticks: UMAP's distances mean nothing."""
    axes.set_title(title, color=INK)
    axes.set_xlabel("UMAP 1", color=MUTED)
    axes.set_ylabel("UMAP 2", color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    """Read the arguments, label, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="project folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/annotate.png"))
    wishes = parser.parse_args()
    draw(*rows(Project.open(wishes.root)), wishes.output)


if __name__ == "__main__":
    main()
