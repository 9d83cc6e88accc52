"""Figures: whole, legible, repeatable, and drawn without touching matplotlib's global state."""

import base64
import sys

import numpy as np
import pytest

from canal.report import figures
from canal.report.canvas import SURFACE
from tests.support.reports import STAGES, make_backbone_history, make_evaluation, make_history


def texts(figure):
    """Return every text that a reader sees in ``figure``."""
    from matplotlib.text import Text

    return [one.get_text() for one in figure.findobj(Text) if one.get_visible() and one.get_text()]


def draw_all():
    last = make_evaluation(3)
    return {
        "loss_curves": figures.loss_curves(make_history(3)),
        "first_loss_curves": figures.loss_curves(make_history(1)),
        "pretraining": figures.pretraining(make_backbone_history()),
        "confusion": figures.confusion(last["per_stage"]["pbmc"], "pbmc"),
        "r_matrix": figures.r_matrix(last["stages"], last["matrix"]),
        "recall": figures.recall_by_type([make_evaluation(number) for number in (1, 2, 3)]),
        "reliability": figures.reliability(last["calibration"]),
        "novelty": figures.novelty(last["novelty"], [0.1, 0.3, 0.7]),
    }


@pytest.fixture(scope="module")
def drawn():
    return draw_all()


@pytest.mark.xdist_group("figures")  # drawn once
def test_pngs_are_the_same_bytes_again(drawn, tmp_path):
    again = draw_all()
    for name in ("confusion", "loss_curves", "novelty", "recall"):
        figure = drawn[name]
        first = figures.save(figure, tmp_path / f"{name}.png").read_bytes()
        second = figures.save(again[name], tmp_path / "again.png").read_bytes()
        assert first[:8] == b"\x89PNG\r\n\x1a\n"
        assert first == second, name
        assert b"matplotlib" not in first.lower()


def check_whole(figure, name):
    """Assert that nothing of a figure is clipped, and no names of its rows overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page, renderer = figure.bbox.padded(1), canvas.get_renderer()
    for part in [*figure.axes, *figure.legends]:
        box = part.get_tightbbox(renderer)
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, name
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, name
    for axes in figure.axes:
        rows = [one.get_window_extent() for one in axes.get_yticklabels() if one.get_text()]
        rows.sort(key=lambda one: one.y0)
        assert all(low.y1 <= high.y0 + 1 for low, high in zip(rows, rows[1:], strict=False)), name


@pytest.mark.xdist_group("figures")
def test_nothing_is_clipped_and_no_tick_labels_overlap(drawn):
    for name, figure in drawn.items():
        check_whole(figure, name)


def test_pyplot_and_the_global_style_are_left_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.reliability(make_evaluation(1)["calibration"])
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_r_matrix_writes_percent_and_marks_what_was_not_measured():
    figure = figures.r_matrix(["a", "b"], [[0.9314], [None, 0.5]])
    found = texts(figure)
    assert "93.1" in found
    assert "50.0" in found
    assert "–" in found
    assert found.count("a") == found.count("b") == 2


def test_long_names_that_differ_at_their_end_stay_apart():
    stages = [f"a-stage-with-quite-a-long-name-{number}" for number in (1, 2)]
    found = texts(figures.r_matrix(stages, [[0.9], [0.8, 0.7]]))
    assert len({text for text in found if text.startswith("a-stage")}) == 2


def test_confusion_shows_counts_and_leaves_empty_types_out():
    document = {"labels": ["B", "T", "NK"], "counts": [[8, 2, 0], [0, 5, 0], [0, 0, 0]]}
    found = texts(figures.confusion({"confusion": document}, "cells of b"))
    assert "NK" not in found
    assert {"8", "2", "5", "B", "T", "cells of b"} <= set(found)


def test_confusion_shades_are_shares_of_a_row():
    document = {"labels": ["B", "T"], "counts": [[8, 2], [0, 500]]}
    figure = figures.confusion({"confusion": document}, "")
    (mesh,) = figure.axes[0].collections
    np.testing.assert_allclose(mesh.get_array().ravel(), [0.8, 0.2, 0, 1])


@pytest.mark.parametrize("n_types", [1, 15, 40])
def test_confusion_grows_with_the_number_of_types(n_types):
    labels = [f"cell type number {number}" for number in range(n_types)]
    counts = np.diag(np.full(n_types, 3)).tolist()
    figure = figures.confusion({"confusion": {"labels": labels, "counts": counts}}, "many")
    squares = figure.axes[0].get_window_extent().width / figure.dpi / n_types
    assert squares > 0.2


def test_loss_curves_show_distillation_only_where_there_is_some():
    assert "Distance to the teacher" not in texts(figures.loss_curves(make_history(1)))
    found = texts(figures.loss_curves(make_history(3)))
    assert "Distance to the teacher" in found
    assert {f"Probe: {stage}" for stage in STAGES[:2]} <= set(found)
    assert any("weights kept: 21" in text for text in found)


def test_loss_curves_of_one_epoch_with_gaps():
    history = {"epochs": [{"epoch": 1, "loss": 1.0, "cross_entropy": 1.0, "validation_accuracy": None}]}
    assert "Loss: cross-entropy" in texts(figures.loss_curves(history))


def test_recall_tells_what_fell_from_what_rose():
    def one(value):
        entry = {"recall": {"B": {"n": 9, "recall": value}, "T": {"n": 4, "recall": 1 - value}}}
        return {"per_stage": {"a": entry}}

    figure = figures.recall_by_type([one(0.9), one(0.6)])
    (axes,) = figure.axes
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == SURFACE]
    assert [line.get_xdata()[0] for line in hollow] == pytest.approx([0.9, 0.1])
    assert hollow[0].get_color() != hollow[1].get_color()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B  (n = 9)", "T  (n = 4)"]


def test_reliability_leaves_empty_bins_out():
    bins = [{"confidence": 0.5, "accuracy": None, "n": 0}, {"confidence": 0.9, "accuracy": 0.7, "n": 4}]
    figure = figures.reliability({"ece": 0.2, "low": None, "high": None, "bins": bins})
    assert list(figure.axes[1].get_lines()[1].get_xdata()) == [0.9]
    assert "Calibration error 0.200" in texts(figure)


def test_novelty_says_how_many_known_cells_are_called_unassigned():
    figure = figures.novelty({"threshold": 0.5, "holdouts": []}, [0.1, 0.2, 0.6, 0.3])
    assert any("25.0 % lie above" in text for text in texts(figure))
    assert len(figure.axes) == 1


def test_novelty_without_anything_measured_says_so():
    assert "Nothing measured" in texts(figures.novelty({"threshold": None, "holdouts": []}))


def test_names_with_dollars_are_no_mathematics(tmp_path):
    document = {"labels": ["$\\frac{", "T"], "counts": [[1, 0], [0, 1]]}
    figures.save(figures.confusion({"confusion": document}, "title $x"), tmp_path / "odd.png")
    assert (tmp_path / "odd.png").stat().st_size > 1000


def test_svg_follows_the_readers_scheme_and_repeats():
    uri = figures.svg_uri(figures.r_matrix(["a"], [[0.9]]))
    svg = base64.b64decode(uri.partition("base64,")[2]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert "var(--c0)" in svg
    assert "<dc:date>" not in svg
    assert uri == figures.svg_uri(figures.r_matrix(["a"], [[0.9]]))


def test_save_refuses_nothing_half_written(tmp_path):
    figure = figures.r_matrix(["a"], [[0.9]])
    with pytest.raises(ValueError, match="not supported"):
        figures.save(figure, tmp_path / "figure.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_r_matrix_writes_what_the_parent_made_of_a_stage_in_brackets():
    figure = figures.r_matrix(["a", "b"], [[0.9], [0.8, 0.7]], {("a", "b"): 0.4567})
    assert "(45.7)" in texts(figure)
