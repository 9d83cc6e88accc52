"""Figures of remade stages are drawn in a process of their own: the same bytes, and no harm if it ends."""

import pytest

from canal.app.remaking import figures_ahead
from canal.report.collect import draw_figures

pytestmark = pytest.mark.pipeline


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.chaos
def test_they_are_the_same_bytes_and_asked_for_in_any_order(line, tmp_path):
    project = line.project()
    with figures_ahead(project) as figures:
        for stage in ("first", "second"):
            figures.begin(stage)
        drawn = {stage: content(figures.folder(stage)) for stage in ("second", "first")}
        assert figures.folder("backbone") is None  # nobody asked for them
    for stage, found in drawn.items():
        (tmp_path / stage).mkdir()
        draw_figures(project.layout, stage, tmp_path / stage)
        assert found == content(tmp_path / stage)
        assert len(found) > 3


def test_a_process_that_ended_has_drawn_nothing(line):
    with figures_ahead(line.project()) as figures:
        figures.begin("third")  # which is no stage: it ends by an error
        assert figures.folder("third") is None
        figures.begin("first")
        assert figures.folder("first") is None
