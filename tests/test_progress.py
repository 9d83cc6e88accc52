"""What a command tells while it works: in cells with the time left, and only when it lasts."""

import os
import subprocess
import sys
import time

import pytest

from canal.core import errors, progress
from canal.core.progress import (
    advance,
    by_cells,
    count,
    counted,
    doing,
    each,
    p_value,
    percent,
    points,
    size,
    span,
    told_together,
)


def test_cells_are_told_with_rate_and_time_left_and_the_last_ones_too():
    said, now = [], [0.0]
    tell = by_cells(said.append, lambda: now[0])
    for now[0], done in ((0, 0), (10, 100), (10.5, 101), (20, 500), (30, 1000)):
        tell(done, 1000)
    assert said == [
        "labelled 100 of 1,000 cells (10 cells/s, 90 s left)",
        "labelled 500 of 1,000 cells (25 cells/s, 20 s left)",
        "labelled 1,000 of 1,000 cells",
    ]


def test_the_first_cells_are_told_soon_and_a_long_job_tells_ever_less_often():
    now = [0.0]
    said = []
    tell = by_cells(said.append, lambda: now[0])
    for now[0], done in (
        (0, 0),
        (0.5, 100),
        (1.6, 320),
        (2, 400),
        (600, 12_000),
        (601, 12_020),
        (612, 12_240),
    ):
        tell(done, 100_000)
    assert said == [
        "labelled 320 of 100,000 cells (200 cells/s)",  # of the first seconds, which foretell nothing
        "labelled 12,000 of 100,000 cells (20 cells/s, 73 min left)",
        "labelled 12,240 of 100,000 cells (20 cells/s, 73 min left)",
    ]


def test_a_short_job_tells_nothing_and_a_resumed_one_leaves_out_what_was_done():
    said = []
    now = [0.0]
    tell = by_cells(said.append, lambda: now[0])
    for now[0], done in ((0, 0), (0.2, 100), (0.4, 200)):
        tell(done, 200)
    assert said == []
    now = [0.0]
    tell = by_cells(said.append, lambda: now[0])
    for now[0], done in ((0, 900), (10, 950)):
        tell(done, 1000)
    assert said == ["labelled 950 of 1,000 cells (5 cells/s, 10 s left)"]


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
    with doing("labelling"), doing(""), doing("within what shows a bar"):
        time.sleep(0.2)
    assert watched.readouterr().err == ""


def test_what_is_done_changes_within_a_block(watched):
    with doing("asking DVC") as now:
        wait_for(watched, "asking DVC")
        now("step prepare")
        lines = wait_for(watched, "step prepare")
    assert lines[-1].startswith("step prepare ...")


def test_cells_are_counted_and_told(watched):
    with counted("epoch 2: trained on", 4000) as count_more:
        count_more(1000)
        lines = wait_for(watched, "trained on 1,")
    assert lines[-1].startswith("epoch 2: trained on 1,000 of 4,000 cells (")


def test_an_outer_process_keeps_still_while_an_inner_one_tells(watched, tmp_path, monkeypatch):
    """`canal run` starts DVC, which starts steps: whoever knows best what is done says so."""
    monkeypatch.setattr(progress, "QUIET", 1.0)
    telling = "while True: tell('inner'); sleep(0.02)"
    code = f"from time import sleep; from canal.core.errors import tell\n{telling}"
    with told_together(tmp_path / "private" / "last-line"), doing("outer"):
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as inner:
            inner.stderr.readline()
            watched.readouterr()
            time.sleep(1.5)
            inner.kill()
        assert watched.readouterr().err == ""
        assert wait_for(watched, "outer")
    assert errors.LAST_LINE not in os.environ


def test_a_lost_mark_of_the_last_line_hinders_nobody(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(errors.LAST_LINE, str(tmp_path / "gone"))
    errors.tell("a line")
    assert capsys.readouterr().err == "a line\n"
    assert errors.seconds_since_line() < 5


def test_a_fork_does_nothing_of_what_its_parent_does(watched):
    with doing(""):
        pid = os.fork()
        if pid == 0:
            with doing("the fork's own"):
                os._exit(len(progress._WATCH.activities))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_cells_within_a_block_are_told_before_it_is_done(watched):
    said = []
    tell = by_cells(said.append)
    with doing("labelling cells"):
        tell(0, 4000)
        advance(1234)
        lines = wait_for(watched, "labelled")
        tell(2000, 4000)
        tell(4000, 4000)
    assert lines[0].startswith("labelled 1,234 of 4,000 cells (")
    assert said[-1] == "labelled 4,000 of 4,000 cells"
    with doing("writing the file"):
        assert wait_for(watched, "writing")[0] == "writing the file ..."


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
