"""What a command tells while it works: in cells with the time left, and only when it lasts."""

import time

import numpy as np
import pytest

from canal.annotation.reading import Block, in_parts
from canal.core import errors, progress
from canal.core.progress import by_cells, count, doing, each, p_value, percent, points, size, span


def test_cells_are_told_with_rate_and_time_left_and_the_last_ones_too():
    clock = iter([0.0, 10.0, 10.5, 20.0, 30.0])
    said = []
    tell = by_cells(said.append, lambda: next(clock))
    for done in (0, 100, 101, 500, 1000):
        tell(done, 1000)
    assert said == [
        "labelled 100 of 1,000 cells (10 cells/s, 90 s left)",
        "labelled 500 of 1,000 cells (25 cells/s, 20 s left)",
        "labelled 1,000 of 1,000 cells",
    ]


def test_the_first_cells_are_told_soon_and_a_long_job_tells_ever_less_often():
    clock = iter([0.0, 0.5, 1.6, 2.0, 100.0, 109.0, 112.0])
    said = []
    tell = by_cells(said.append, lambda: next(clock))
    for done in (0, 100, 320, 400, 20_000, 21_800, 22_400):
        tell(done, 100_000)
    assert said == [
        "labelled 320 of 100,000 cells (200 cells/s, 8 min left)",
        "labelled 20,000 of 100,000 cells (200 cells/s, 7 min left)",
        "labelled 22,400 of 100,000 cells (200 cells/s, 6 min left)",
    ]


def test_a_short_job_tells_nothing_and_a_resumed_one_leaves_out_what_was_done():
    said = []
    clock = iter([0.0, 0.2, 0.4])
    tell = by_cells(said.append, lambda: next(clock))
    for done in (0, 100, 200):
        tell(done, 200)
    assert said == []
    clock = iter([0.0, 10.0])
    tell = by_cells(said.append, lambda: next(clock))
    for done in (900, 950):
        tell(done, 1000)
    assert said == ["labelled 950 of 1,000 cells (5 cells/s, 10 s left)"]


def test_parts_of_a_block_take_about_a_second_and_hold_every_cell_once():
    now = [0.0]
    expression = np.arange(4000, dtype=np.float32).reshape(2000, 2)
    blocks = iter([Block(start, expression[:1000] + start, np.zeros(1000, bool)) for start in (0, 1000)])
    parts = []
    for part in in_parts(blocks, lambda: now[0]):
        parts.append(part)
        now[0] += len(part.expression) / 400  # 400 cells a second
    assert [len(part.expression) for part in parts] == [100, 400, 400, 100, 400, 400, 200]
    assert np.array_equal([part.start for part in parts], np.cumsum([0, 100, 400, 400, 100, 400, 400]))


@pytest.fixture
def watched(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET", 0.05)
    monkeypatch.setattr(progress, "_WATCH", progress._Watch())
    monkeypatch.setattr(errors, "_last_line", time.monotonic())
    progress.watch()
    return capsys


def wait_for(watched, words):
    said, end = "", time.monotonic() + 5
    while words not in said and time.monotonic() < end:
        time.sleep(0.01)
        said += watched.readouterr().err
    return said.splitlines()


def test_what_lasts_is_told_once_and_then_with_its_seconds(watched):
    with doing("checking the registry"):
        lines = wait_for(watched, "so far")
    assert lines[0] == "checking the registry ..."
    assert lines[1].startswith("checking the registry ... (")
    assert all(line.isprintable() for line in lines)
    assert progress._WATCH.activities == []


def test_items_are_numbered_and_the_innermost_is_told(watched):
    lines = []
    with doing("auditing"):
        for one in each(["a", "b"], lambda name: f"checking stage {name}"):
            if one == "b":
                lines = wait_for(watched, "stage b")
    assert lines == ["checking stage b (2 of 2) ..."]


def test_what_is_short_or_shows_its_own_progress_is_not_told(watched):
    with doing("short"):
        pass
    with doing("labelling"), doing(""):
        time.sleep(0.2)
    assert watched.readouterr().err == ""


def test_a_library_tells_nothing(watched):
    progress._WATCH.is_on = False
    with doing("long"):
        time.sleep(0.2)
    assert watched.readouterr().err == ""


def test_numbers_have_one_form():
    assert [percent(0.9771), percent(1.0), percent(None), percent(0.5, "")] == [
        "97.7 %",
        "100.0 %",
        "-",
        "50.0",
    ]
    assert [points(0.012), points(-0.1), points(0.0001), points(-0.0001), points(None)] == [
        "+1.2", "-10.0", "0.0", "0.0", "-",
    ]  # fmt: skip
    assert [count(1), count(12_345), count(0, "error")] == ["1 cell", "12,345 cells", "0 errors"]
    assert [p_value(0.0123), p_value(0.5), p_value(1e-9)] == ["0.012", "0.5", "<0.001"]
    assert [span(s) for s in (0.04, 4.2, 35, 420, 9000)] == ["0.0 s", "4.2 s", "35 s", "7 min", "2.5 h"]
    assert [size(n) for n in (1, 812, 3_400, 12_500_000)] == ["1 byte", "812 bytes", "3.4 kB", "12.5 MB"]
