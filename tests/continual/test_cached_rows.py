import errno
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.continual.feature_cache import CachedRows
from canal.continual.segments import CacheSpace, RowKind, indexes
from canal.core.errors import TrainingError
from tests.support.learning import KEY, KIND, Computer, names, space_of, value, values

FORK = multiprocessing.get_context("fork")


def test_a_second_set_computes_only_what_is_new(tmp_path):
    first, second = Computer(), Computer()
    first.rows(names(1, 2, 3, 4, 5), space_of(tmp_path))
    assert first.computed == names(1, 2, 3, 4, 5)
    cells = names(9, 4, 8, 2)
    rows = second.rows(cells, space_of(tmp_path))
    assert second.computed == names(9, 8)
    assert np.array_equal(rows.take([3, 0, 1, 1]), values(names(2, 9, 4, 4)))
    again = Computer()
    assert np.array_equal(again.rows(cells, space_of(tmp_path)).take(range(4)), values(cells))
    assert again.computed == []


def test_equal_cells_are_computed_once(tmp_path):
    computer = Computer()
    rows = computer.rows(names(1, 2, 1, 1), space_of(tmp_path))
    assert computer.computed == names(1, 2)
    assert np.array_equal(rows.take([0, 2, 1, 3]), values(names(1, 1, 2, 1)))
    assert (len(rows), rows.kept) == (4, 4)


def test_without_a_folder_everything_is_computed_at_each_use():
    computer = Computer()
    rows = computer.rows(names(1, 2), None)
    assert computer.computed == []
    assert np.array_equal(rows.take([1]), values(names(2)))
    assert (computer.computed, rows.kept) == (names(2), 0)


def test_no_cells(tmp_path):
    rows = Computer().rows([], space_of(tmp_path))
    assert rows.take([]).shape == (0, *KIND.shape)
    assert Computer().rows(names(1), None).take([]).shape == (0, *KIND.shape)


@pytest.mark.parametrize("max_rows", [0, 4])
def test_cells_that_do_not_fit_are_computed_at_each_use(tmp_path, max_rows):
    computer, cells = Computer(), names(*range(9))
    rows = computer.rows(cells, space_of(tmp_path, max_rows))
    assert rows.kept == max_rows == len(computer.computed)
    assert np.array_equal(rows.take(range(9)), values(cells))
    assert computer.computed == cells
    assert size_of(tmp_path) <= space_of(tmp_path, max_rows).max_bytes


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_longest_unused_makes_room_and_what_is_used_stays(tmp_path):
    for numbers in ((1, 2), (3, 4), (5, 6)):
        Computer().rows(names(*numbers), space_of(tmp_path, 6))
        time.sleep(0.01)
    Computer().rows(names(1, 2), space_of(tmp_path, 6))
    computer = Computer()
    rows = computer.rows(names(5, 6, 7, 8), space_of(tmp_path, 6))
    assert (computer.computed, rows.kept) == (names(7, 8), 4)
    assert size_of(tmp_path) <= space_of(tmp_path, 6).max_bytes
    computer.rows(names(1, 2), space_of(tmp_path, 6))
    assert computer.computed == names(7, 8)
    computer.rows(names(3, 4), space_of(tmp_path, 6))
    assert computer.computed == names(7, 8, 3, 4)


def test_a_few_cells_of_old_segments_do_not_take_their_whole_room(tmp_path):
    space = space_of(tmp_path, 12, segment_rows=4)
    Computer().rows(names(*range(12)), space)
    computer, cells = Computer(), names(0, 4, 8, *range(20, 28))
    rows = computer.rows(cells, space_of(tmp_path, 12, segment_rows=4))
    assert computer.computed == names(*range(20, 28))
    assert rows.kept == 11
    assert size_of(tmp_path) <= space.max_bytes
    assert np.array_equal(rows.take(range(11)), values(cells))
    again = Computer()
    again.rows(cells, space_of(tmp_path, 12, segment_rows=4))
    assert again.computed == []


def test_old_segments_stay_whole_while_there_is_room(tmp_path):
    Computer().rows(names(*range(12)), space_of(tmp_path, segment_rows=4))
    before = set(tmp_path.rglob("*.npy"))
    Computer().rows(names(0, 4, 20), space_of(tmp_path, segment_rows=4))
    assert before < set(tmp_path.rglob("*.npy"))
    (new,) = set(tmp_path.rglob("*.npy")) - before
    assert len(np.load(new)) == 1


def test_a_smaller_bound_holds_at_once(tmp_path):
    Computer().rows(names(1, 2, 3, 4, 5, 6), space_of(tmp_path, 6))
    Computer().rows(names(3, 4), space_of(tmp_path, 2))
    assert size_of(tmp_path) <= space_of(tmp_path, 2).max_bytes
    computer = Computer()
    computer.rows(names(3, 4), space_of(tmp_path, 2))
    assert computer.computed == []


def test_the_bound_holds_while_rows_are_written(tmp_path):
    space, cells = space_of(tmp_path, 4), names(7, 8, 9, 10)
    Computer().rows(names(1, 2, 3, 4), space_of(tmp_path, 4))

    def compute(positions):
        assert size_of(tmp_path) + KIND.segment_bytes(2) <= space.max_bytes
        return map(value, [cells[position] for position in positions])

    assert CachedRows(KIND, cells, compute, space, KEY).kept == 4


def damage(folder, how):
    (path,) = [path for path in folder.rglob("*.npy") if value("c3").tobytes() in path.read_bytes()]
    if how == "flipped byte":
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(bytes(raw))
    elif how == "torn rows":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "torn index":
        index = path.with_suffix(".json")
        index.write_bytes(index.read_bytes()[:50])
    elif how == "no index":
        path.with_suffix(".json").unlink()
    elif how == "no rows":
        path.unlink()
    else:
        with path.open("wb") as stream:
            np.save(stream, np.zeros((2, 7), dtype=np.float32))


@pytest.mark.parametrize("how", ["flipped byte", "torn rows", "torn index", "no index", "no rows", "shape"])
def test_what_is_damaged_is_computed_anew_and_nothing_else(tmp_path, how):
    cells = names(1, 2, 3, 4, 5, 6)
    Computer().rows(cells, space_of(tmp_path))
    damage(tmp_path, how)
    computer = Computer()
    rows = computer.rows(cells, space_of(tmp_path))
    assert np.array_equal(rows.take(range(6)), values(cells))
    assert computer.computed == names(3, 4)
    assert np.array_equal(Computer().rows(cells, space_of(tmp_path)).take(range(6)), values(cells))
    last = Computer()
    last.rows(cells, space_of(tmp_path))
    assert last.computed == []
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_what_is_damaged_while_in_use_is_computed_anew(tmp_path):
    cells, computer = names(1, 2, 3, 4), Computer()
    rows = computer.rows(cells, space_of(tmp_path))
    damage(tmp_path, "flipped byte")
    assert np.array_equal(rows.take([3, 1]), values(names(4, 2)))
    assert computer.computed == [*cells, *names(3, 4)]
    assert rows.kept == 4


def test_a_segment_removed_by_another_process_stays_readable(tmp_path):
    cells, computer = names(1, 2), Computer()
    rows = computer.rows(cells, space_of(tmp_path))
    space_of(tmp_path, 0).make_room(0)
    assert list(tmp_path.rglob("*.npy")) == []
    assert np.array_equal(rows.take([0, 1]), values(cells))
    assert computer.computed == cells


def test_bfloat16_is_rounded_kept_or_not(tmp_path):
    kind, cells = RowKind(KIND.shape, "bfloat16"), names(*range(5))
    rounded = kind.decode(kind.encode(values(cells)))
    for space in (None, space_of(tmp_path, 2), space_of(tmp_path)):
        assert np.array_equal(Computer().rows(cells, space, kind).take(range(5)), rounded)


def test_a_full_disk_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    computer = Computer()
    monkeypatch.setattr("canal.continual.segments.RESERVE", 1 << 62)
    with pytest.raises(TrainingError, match=r"the features of 3 cells need .* GB in"):
        computer.rows(names(1, 2, 3), space_of(tmp_path))
    assert computer.computed == []
    assert list(tmp_path.rglob("*.npy")) == []


def test_nothing_is_refused_where_nothing_has_to_be_written(tmp_path, monkeypatch):
    Computer().rows(names(1, 2), space_of(tmp_path))
    monkeypatch.setattr("canal.continual.segments.RESERVE", 1 << 62)
    assert Computer().rows(names(2, 1), space_of(tmp_path)).kept == 2
    assert Computer().rows(names(7), space_of(tmp_path, 0)).kept == 0


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, TrainingError), (errno.EIO, OSError)])
def test_a_disk_that_fills_up_meanwhile_ends_the_training(tmp_path, monkeypatch, code, expected):
    def write(*_):
        raise OSError(code, "simulated")

    monkeypatch.setattr("canal.continual.feature_cache.write_segment", write)
    with pytest.raises(expected, match="need .* GB in|simulated"):
        Computer().rows(names(1, 2, 3), space_of(tmp_path))


def in_a_fork(work):
    process = FORK.Process(target=work)
    process.start()
    return process


def test_a_killed_process_leaves_its_finished_segments(tmp_path):
    cells = names(*range(10))

    def compute(positions):
        for position in positions:
            if position == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            yield value(cells[position])

    killed = in_a_fork(lambda: CachedRows(KIND, cells, compute, space_of(tmp_path, segment_rows=3), KEY))
    killed.join(timeout=30)
    assert killed.exitcode == -signal.SIGKILL
    assert len(indexes(tmp_path / KEY)) == 2
    assert [path for path in (tmp_path / KEY).iterdir() if path.name.startswith(".")]
    computer = Computer()
    rows = computer.rows(cells, space_of(tmp_path, segment_rows=3))
    assert computer.computed == cells[6:]
    assert np.array_equal(rows.take(range(10)), values(cells))
    assert not [path for path in (tmp_path / KEY).iterdir() if path.name.startswith(".")]


def test_processes_that_need_the_same_cells_compute_each_once(tmp_path):
    log, start = tmp_path / "log", FORK.Event()

    def work(cells):
        def compute(positions):
            for position in positions:
                time.sleep(0.005)
                with log.open("a") as stream:
                    stream.write(f"{cells[position]}\n")
                yield value(cells[position])

        start.wait(10)
        rows = CachedRows(KIND, cells, compute, space_of(tmp_path / "cache", segment_rows=3), KEY)
        assert rows.kept == len(cells)
        assert np.array_equal(rows.take(range(len(cells))), values(cells))

    wanted = [names(*range(12)), names(*range(12)), names(*range(6, 18))]
    processes = [in_a_fork(lambda cells=cells: work(cells)) for cells in wanted]
    start.set()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == sorted(names(*range(18)))


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=8),
        st.lists(st.integers(0, 7), max_size=6),
        st.sampled_from(["float32", "bfloat16"]),
        st.sampled_from([1, 3]),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=30)
@given(REQUESTS, st.sampled_from([0, 1, 3, 7, 1000]))
def test_whatever_rows_were_read_before_they_equal_the_computed_ones(requests, max_rows):
    # Without waiting for the disk: a hundred flushes of it take seconds.
    with tempfile.TemporaryDirectory() as folder, mock.patch("canal.core.files._flush"):
        for numbers, positions, dtype, segment_rows in requests:
            kind, cells = RowKind(KIND.shape, dtype), names(*numbers)
            asked = [position for position in positions if position < len(cells)]
            sizes = KIND.segment_bytes(max_rows), KIND.segment_bytes(segment_rows)
            rows = Computer().rows(cells, CacheSpace(Path(folder) / dtype, *sizes), kind)
            expected = kind.decode(kind.encode(values(cells)))
            assert np.array_equal(rows.take(asked), expected[asked])
            assert size_of(Path(folder) / dtype) <= sizes[0]
