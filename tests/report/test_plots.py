"""canal.pl: what a reader of the figures learns, at 5 and at 40 types, and what is refused in words."""

import subprocess
import sys
from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest

import canal
from canal.core.errors import DataError
from canal.report import plots
from tests.report.test_figures import check_whole, texts

LONG = "CD16-positive, CD56-dim natural killer cell, human"
OWN = {
    "B cell": ("B", 418, 500),
    "T cell": ("T", 150, 160),
    "dead": ("Unassigned", 30, 40),
    LONG: ("NK", 9, 20),
}
"""Own label -> the type of most of its cells, how many, of how many; the others are T, or B."""


def labelled(key="canal"):
    """Cells with labels of their own and canal's, and three without a label."""
    rows = []
    for own, (cell_type, n, total) in OWN.items():
        rows += [(own, cell_type)] * n + [(own, "B" if cell_type == "T" else "T")] * (total - n)
    rows += [(None, "B")] * 2 + [(" ", "B")]
    obs = pd.DataFrame(rows, columns=["mine", f"{key}_cell_type"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs[f"{key}_cell_type"] = obs[f"{key}_cell_type"].astype("category")
    obs[f"{key}_confidence"] = np.where(obs["mine"] == "dead", 0.25, 0.75).astype(np.float32)
    obs[f"{key}_novelty"] = np.linspace(0, 1, len(obs), dtype=np.float32)
    adata = anndata.AnnData(np.ones((len(obs), 4), dtype=np.float32), obs=obs)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(len(obs), 2))
    return adata


def many(n_types):
    """As many types, each confused with the next one."""
    random = np.random.default_rng(n_types)
    own = random.integers(0, n_types, 40 * n_types)
    called = np.where(random.random(len(own)) < 0.8, own, (own + 1) % n_types)
    names = np.array([f"{LONG} {i}" if i % 2 else f"type {i}" for i in range(n_types)], dtype=object)
    obs = pd.DataFrame({"mine": names[own], "canal_cell_type": names[called]})
    obs["canal_confidence"], obs["canal_novelty"] = random.random(len(obs)), random.random(len(obs))
    obs.index = obs.index.astype(str)
    adata = anndata.AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs)
    adata.obsm["X_umap"] = random.normal(size=(len(obs), 2)) + own[:, None]
    return adata


def names_on(axis_of, figure):
    """Return the tick labels of the axes that hold the dots."""
    (axis,) = [one for one in figure.axes if one.get_xlabel() == "Type by canal"]
    return [label.get_text() for label in getattr(axis, f"get_{axis_of}ticklabels")()]


def test_the_title_tells_the_most_frequent_label_and_the_worst_one():
    title = canal.pl.dotplot(labelled(), "mine").get_suptitle()
    assert title.startswith("418 of 500 of your 'B cell' are B here\n")
    assert "least agreed on: 11 of 20 'CD16-positive, CD56-d…killer cell, human' are T" in title


def test_rows_and_columns_lie_along_a_diagonal_with_unassigned_last():
    figure = canal.pl.dotplot(labelled(), "mine")
    columns, rows = names_on("x", figure), names_on("y", figure)
    assert columns[-1] == "Unassigned"
    assert rows[-1] == "dead"
    best = {"B cell": "B", "T cell": "T", "dead": "Unassigned"}
    places = [columns.index(best[row]) for row in rows if row in best]
    assert places == sorted(places)


def test_dots_tell_share_and_confidence_and_bars_count_cells():
    figure = canal.pl.dotplot(labelled(), "mine")
    (dots,) = [one for axis in figure.axes for one in axis.collections if len(one.get_offsets()) == 8]
    areas, values = dots.get_sizes(), np.asarray(dots.get_array())
    assert areas.max() / areas.min() == pytest.approx((150 / 160) / (10 / 160), rel=1e-6)
    assert sorted(set(values.tolist())) == [0.25, 0.75]
    shown = texts(figure)
    assert {"500", "160", "40", "20"} <= set(shown)
    assert "3 cells without a label in mine are left out" in shown


@pytest.mark.parametrize("n_types", [1, 2, 5, 40])
def test_nothing_is_clipped_and_names_do_not_overlap(n_types):
    adata = many(n_types)
    check_whole(canal.pl.dotplot(adata, "mine"), "dotplot")
    check_whole(canal.pl.umap(adata), "umap")


def test_the_default_map_shows_type_confidence_and_novelty_side_by_side():
    adata = labelled()
    adata.obs["confidence"] = "my own"
    figure = canal.pl.umap(adata)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[:3] == [
        "693 of 723 cells are of 3 known types",
        "Median confidence 0.75; 40 cells below 0.5",
        "Median novelty 0.50; 30 cells Unassigned",
    ]
    assert "Unassigned (30)" in texts(figure)
    alone = canal.pl.umap(adata, color="confidence")
    assert [axis.get_title(loc="left") for axis in alone.axes] == ["confidence"]


def test_colours_are_those_of_the_file_and_unassigned_is_grey():
    from matplotlib.colors import to_hex

    adata = labelled()
    adata.uns["canal_cell_type_colors"] = ["#111111", "#222222", "#333333", "#bdbdbd"]  # B, NK, T, Unassigned
    points = canal.pl.umap(adata, "cell_type").axes[0].collections[0]
    found = Counter(to_hex(one) for one in points.get_facecolors())
    numbers = adata.obs["canal_cell_type"].value_counts()
    colours = dict(
        zip(adata.obs["canal_cell_type"].cat.categories, adata.uns["canal_cell_type_colors"], strict=True)
    )
    assert found == {colours[name]: n for name, n in numbers.items()}
    without = canal.pl.umap(labelled(), "cell_type").axes[0].collections[0]
    assert "#bdbdbd" in {to_hex(one) for one in without.get_facecolors()}


def test_any_column_can_be_drawn_by_name_or_by_number():
    adata = labelled()
    adata.obs["depth"] = np.arange(len(adata.obs)) * 100
    figure = canal.pl.umap(adata, ["mine", "depth"])
    assert [axis.get_title(loc="left") for axis in figure.axes][:2] == ["mine", "depth"]
    assert any("none (2)" in text for text in texts(figure))


@pytest.mark.parametrize("basis", ["X_canal", None])
def test_without_umap_a_layout_is_computed_and_the_cells_are_left_as_they_are(basis, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    random = np.random.default_rng(1)
    side = np.repeat([0, 1], 12)
    adata = labelled()[:24].copy()
    del adata.obsm["X_umap"]
    if basis:
        adata.obsm[basis] = random.normal(size=(24, 5)) + 20 * side[:, None]
    else:
        rates = np.where(side[:, None] == np.arange(8) // 4, 20.0, 1.0)
        adata = anndata.AnnData(random.poisson(rates).astype(np.float32), obs=adata.obs)
    before = adata.copy()
    figure = canal.pl.umap(adata)
    assert figure.axes[0].get_xlabel() == "t-SNE 1"
    places = canal.pl.layout(adata)
    assert (places.shape, places.dtype) == ((24, 2), np.float32)
    within = np.linalg.norm(places - np.stack([places[side == one].mean(axis=0) for one in side]), axis=1)
    between = np.linalg.norm(places[side == 0].mean(axis=0) - places[side == 1].mean(axis=0))
    assert between > 2 * np.median(within)
    drawn = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(places, axis=0), rtol=1e-6)
    assert list(adata.obsm) == list(before.obsm)
    assert not adata.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_a_few_cells_are_laid_out_as_they_are(monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    adata = labelled()[:3].copy()
    del adata.obsm["X_umap"]
    assert canal.pl.layout(adata).shape == (3, 2)
    assert canal.pl.umap(adata) is not None


def test_labels_under_another_key_are_drawn_and_named_where_they_were_not_asked_for():
    adata = labelled("second")
    assert "B here" in canal.pl.dotplot(adata, "mine", key="second").get_suptitle()
    with pytest.raises(DataError, match="those of another key: give key='second'"):
        canal.pl.dotplot(adata, "mine")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_saved_the_same_bytes_again(tmp_path, suffix):
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file in files:
        canal.pl.dotplot(labelled(), "mine", save=file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(files[0].read_bytes()) > 5000


def test_save_true_takes_scanpys_folder_and_show_shows(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    assert canal.pl.umap(labelled(), save=True) is not None
    assert (tmp_path / "figures" / "umap.png").is_file()
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    assert canal.pl.dotplot(labelled(), "mine", show=True) is None
    assert len(shown) == 1
    pyplot.close("all")


def without(column):
    adata = labelled()
    del adata.obs[column]
    return adata


def with_places(values):
    adata = labelled()
    adata.obsm["X_umap"] = values
    return adata


def with_column(name, values):
    adata = labelled()
    adata.obs[name] = values
    return adata


def nowhere(x=None):
    adata = labelled()
    return anndata.AnnData(x, obs=adata.obs)


def twice_named():
    adata = labelled()
    return anndata.AnnData(adata.X, obs=pd.concat([adata.obs, adata.obs[["mine"]]], axis=1))


def unlabelled():
    adata = labelled()
    adata.obs["mine"] = None
    return adata


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: canal.pl.dotplot("cells.h5ad", "mine"), "expected an AnnData, found the path"),
        (lambda: canal.pl.umap(without("canal_novelty")), "1 are missing.*canal.annotate"),
        (lambda: canal.pl.dotplot(labelled(), "leiden"), "found 'leiden'; obs has the columns 'mine'"),
        (lambda: canal.pl.dotplot(labelled(), "canal_novelty"), "found 72. different values"),
        (lambda: canal.pl.dotplot(unlabelled(), "mine"), "found none: name the column"),
        (lambda: canal.pl.dotplot(labelled()[:0], "mine"), "has no cells"),
        (lambda: canal.pl.dotplot(labelled(), "mine", save="figure.bmp"), "ends in .png, .svg or .pdf"),
        (lambda: canal.pl.umap(labelled(), "depth"), "expected 'cell_type', 'confidence', 'novelty' or"),
        (lambda: canal.pl.umap(with_places(np.full((723, 2), np.nan))), "finite numbers.*723 cells"),
        (lambda: canal.pl.umap(with_places(np.zeros((723, 1)))), "found .723, 1."),
        (lambda: canal.pl.umap(with_places(np.full((723, 2), 1e300))), "expected finite numbers"),
        (lambda: canal.pl.umap(labelled(), color=[]), "or a list of these, found an empty one"),
        (lambda: canal.pl.umap(labelled(), color=5), "or a list of these, found 5"),
        (lambda: canal.pl.umap(labelled(), color=[["mine"]]),  # type: ignore[list-item]
          r"or a column of obs, found \['mine'\]"),
        (lambda: canal.pl.dotplot(labelled(), ["mine"]), r"your own labels, found \['mine'\]"),
        (lambda: canal.pl.umap(with_column("canal_confidence", "high")), "723 of 723 cells, such as 'high'"),
        (lambda: canal.pl.dotplot(with_column("canal_novelty", "x"), "mine"), "'canal_novelty': expected"),
        (lambda: canal.pl.umap(with_column("canal_novelty", np.nan)), "no number that could be drawn"),
        (lambda: canal.pl.umap(nowhere()), "X holds nothing: compute a layout"),
        (lambda: canal.pl.layout(nowhere(np.full((723, 2), "x", object))), "X holds values of type object"),
        (lambda: canal.pl.dotplot(twice_named(), "mine"), "found several called 'mine'"),
        (lambda: canal.pl.umap(labelled(), save=5), r"\.pdf, or True, found 5"),
        (lambda: canal.pl.umap(labelled(), save="/dev/null/x.png"), "/dev/null/x.png cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_words(draw, message):
    with pytest.raises(DataError, match=message):
        draw()


@pytest.mark.parametrize(
    "colours",
    [["#ffffff"], [1, 2, 3, 4], {"B": "#fff"}, "#ffffff", 5, np.ones((4, 3, 2)), [np.nan] * 4, []],
    ids=str,
)
def test_colours_that_are_none_are_told_and_the_types_own_are_drawn(colours):
    adata = labelled()
    adata.uns["canal_cell_type_colors"] = colours
    with pytest.warns(UserWarning, match="a colour for each of its 4 categories.*canal's own colours"):
        figure = canal.pl.umap(adata, "cell_type")
    assert drawn_colours(figure) == drawn_colours(canal.pl.umap(labelled(), "cell_type"))


def test_colours_of_any_kind_are_those_of_uns():
    adata = labelled()
    assert list(adata.obs["canal_cell_type"].cat.categories) == ["B", "NK", "T", "Unassigned"]
    adata.uns["canal_cell_type_colors"] = np.array([b"#ff0000", b"lime", b"#0000ff", b"#123456"])
    wanted = drawn_colours(canal.pl.umap(adata, "cell_type"))
    assert {"#ff0000", "#00ff00", "#0000ff"} <= wanted
    adata.uns["canal_cell_type_colors"] = [(1, 0, 0), (0, 1, 0), (0, 0, 1), "black"]
    assert drawn_colours(canal.pl.umap(adata, "cell_type")) == wanted


def drawn_colours(figure):
    from matplotlib.colors import to_hex

    return {to_hex(one) for one in figure.axes[0].collections[0].get_facecolors()}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("canal_cell_type", lambda obs: obs["canal_cell_type"].cat.add_categories(["no cell"])),
        ("canal_confidence", lambda obs: obs["canal_confidence"].where(obs["canal_cell_type"] != "NK")),
        ("canal_confidence", lambda obs: obs["canal_confidence"].astype("Float32").where(obs.mine != "dead")),
        ("canal_confidence", lambda obs: obs["canal_confidence"].astype(str)),
        ("mine", lambda obs: obs["mine"].astype("category").cat.add_categories(["no cell"])),
        ("mine", lambda obs: [[number % 3] for number in range(len(obs))]),
        ("mine", lambda obs: pd.array([1, None, 2] * 241, dtype="Int64")),
    ],
)  # fmt: skip
def test_odd_columns_are_drawn(column, values):
    adata = labelled()
    adata = with_column(column, values(adata.obs))
    assert canal.pl.dotplot(adata, "mine")
    assert canal.pl.umap(adata, ["cell_type", "mine"])


def test_too_many_cells_for_a_layout_are_told_what_to_do(monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    monkeypatch.setattr(plots, "_MOST_CELLS", 50)
    adata = labelled()
    del adata.obsm["X_umap"]
    adata.obsm["X_canal"] = np.ones((723, 3))
    with pytest.raises(DataError, match=r"723 cells by t-SNE.*sc.tl.umap"):
        canal.pl.umap(adata)


def test_asking_for_the_plots_loads_no_matplotlib_and_drawing_leaves_its_settings():
    code = (
        "import sys, canal; canal.pl.dotplot\n"
        "assert not {'torch', 'mlflow', 'matplotlib', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import matplotlib

    before = dict(matplotlib.rcParams)
    canal.pl.dotplot(labelled(), "mine")
    assert dict(matplotlib.rcParams) == before
