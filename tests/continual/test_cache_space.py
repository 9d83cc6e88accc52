import os
import shutil
from types import SimpleNamespace

import pytest

from canal.continual.segments import GIGABYTE, RESERVE, CacheSpace, indexes, write_segment
from canal.core.errors import TrainingError
from tests.support.learning import KEY, KIND, names, value

SEGMENT = KIND.segment_bytes(2)


def segment_of(space, *numbers, key=KEY):
    """Write a segment; those written later were used later."""
    cells = names(*numbers)
    with space.writing(key) as folder:
        segment = write_segment(folder, KIND, cells, map(value, cells))
    os.utime(segment.index, (numbers[0], numbers[0]))
    return segment


def left(space, *keys):
    return {index for key in keys or (KEY,) for index in indexes(space.place(key))}


def with_free(monkeypatch, n_bytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=n_bytes + RESERVE))


def test_what_was_used_longest_ago_goes_first_whatever_its_key(tmp_path):
    space = CacheSpace(tmp_path, 2 * SEGMENT)
    middle, newest = segment_of(space, 5, 6), segment_of(space, 9, 10)
    oldest = segment_of(space, 1, 2, key="other")
    space.make_room(0)
    assert left(space, KEY, "other") == {middle.index, newest.index}
    os.utime(middle.index, (99, 99))
    space.make_room(SEGMENT)
    assert left(space, KEY, "other") == {middle.index}
    assert not oldest.index.with_suffix(".npy").exists()


def test_what_is_in_use_stays(tmp_path):
    space = CacheSpace(tmp_path, 2 * SEGMENT)
    used, idle = segment_of(space, 1, 2), segment_of(space, 3, 4)
    space.use(used)
    assert SEGMENT <= space.room < 2 * SEGMENT
    space.make_room(10 * SEGMENT)
    assert left(space) == {used.index}
    space.release(used)
    assert space.room == 2 * SEGMENT
    space.make_room(10 * SEGMENT)
    assert left(space) == set()
    assert idle.size == 0


def test_what_is_within_the_bound_stays(tmp_path):
    space = CacheSpace(tmp_path, 3 * SEGMENT)
    both = {segment_of(space, 1, 2).index, segment_of(space, 3, 4).index}
    space.make_room(SEGMENT)
    assert left(space) == both


def test_a_short_disk_counts_like_the_bound(tmp_path, monkeypatch):
    space = CacheSpace(tmp_path)
    segment_of(space, 1, 2)
    newest = segment_of(space, 3, 4)
    with_free(monkeypatch, SEGMENT)
    space.make_room(SEGMENT + 1)
    assert left(space) == {newest.index}


def test_too_small_a_disk_is_refused_with_the_sizes(tmp_path, monkeypatch):
    space = CacheSpace(tmp_path / "features")
    with_free(monkeypatch, 3 * GIGABYTE)
    space.require(3 * GIGABYTE, "the features of 9 cells")
    message = r"features of 9 cells need 40 GB in .*features; 3 GB .* are free.*cache\.max_gb.*bfloat16"
    with pytest.raises(TrainingError, match=message):
        space.require(40 * GIGABYTE, "the features of 9 cells")


def test_what_may_be_removed_counts_as_free(tmp_path, monkeypatch):
    space = CacheSpace(tmp_path)
    segment = segment_of(space, 1, 2)
    with_free(monkeypatch, 100)
    space.require(100 + segment.size, "features")
    space.use(segment)
    with pytest.raises(TrainingError, match="features need"):
        space.require(100 + segment.size, "features")


def test_leavings_of_the_killed_go_where_nobody_writes(tmp_path):
    space = CacheSpace(tmp_path, SEGMENT)
    for key in ("dead", "alive"):
        segment_of(space, 1, 2, key=key).index.unlink()
    torn = {key: next(space.place(key).glob("*.npy")) for key in ("dead", "alive")}
    with space.writing("alive"):
        half = space.place("alive") / ".half.npy"
        half.write_bytes(b"x" * SEGMENT)
        torn["dead"].with_name(".half.npy").write_bytes(b"x" * SEGMENT)
        space.make_room(0)
        assert half.exists()
    assert list(space.place("dead").glob("*.npy")) == []
    with space.writing("alive"):
        assert not half.exists()
