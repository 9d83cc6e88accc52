import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from canal.continual.segments import (
    DamagedError,
    RowKind,
    Segment,
    SegmentRows,
    indexes,
    remove_segment,
    segment_size,
    sweep,
    write_segment,
)
from tests.support.learning import KIND, names, value, values

CELLS = names(1, 2, 3)
ROUNDED = RowKind(KIND.shape, "bfloat16")
FLOATS = st.floats(width=32, allow_nan=False, min_value=-(2.0**99), max_value=2.0**99)


def write(folder, cells=CELLS, kind=KIND):
    folder.mkdir(exist_ok=True)
    return write_segment(folder, kind, cells, [kind.encode(value(cell)) for cell in cells])


def read(segment, kind=KIND):
    rows = SegmentRows(Segment(segment.index, kind), kind)
    return np.array([kind.decode(rows.row(place)) for place in range(len(segment.cells))])


@pytest.mark.parametrize("kind", [KIND, ROUNDED])
def test_rows_come_back_as_they_were_stored(tmp_path, kind):
    segment = write(tmp_path, kind=kind)
    assert segment.cells == tuple(CELLS)
    assert np.array_equal(read(segment, kind), kind.decode(kind.encode(values(CELLS))))
    assert indexes(tmp_path) == [segment.index]


@given(arrays(np.float32, (8,), elements=FLOATS))
def test_bfloat16_rounds_as_torch_does_and_by_less_than_half_a_bit(numbers):
    kind = RowKind((8,), "bfloat16")
    there_and_back = kind.decode(kind.encode(numbers))
    assert np.array_equal(there_and_back, torch.from_numpy(numbers).bfloat16().float().numpy())
    assert (np.abs(there_and_back - numbers) <= np.abs(numbers) * 2.0**-8 + 1e-38).all()
    assert np.array_equal(kind.decode(kind.encode(there_and_back)), there_and_back)


def test_float32_is_exact_and_bfloat16_takes_half():
    numbers = np.array([np.inf, -0.0, 1e-42, np.pi], dtype=np.float32)
    assert RowKind((4,)).decode(RowKind((4,)).encode(numbers)).tobytes() == numbers.tobytes()
    assert ROUNDED.row_bytes * 2 == KIND.row_bytes == 1200


@pytest.mark.parametrize("n_rows", [1, 3, 200])
def test_a_segment_is_no_larger_than_announced(tmp_path, n_rows):
    cells = [f"{n:032x}" for n in range(n_rows)]
    segment = write_segment(tmp_path, KIND, cells, [np.zeros(KIND.shape, np.float32)] * n_rows)
    assert segment.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert segment.size <= KIND.segment_bytes(n_rows)
    assert KIND.rows_within(KIND.segment_bytes(n_rows)) == n_rows
    assert KIND.rows_within(10) == 0


def flip(path, offset):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(bytes(raw))


def edit_index(change):
    def damage(index, _):
        document = json.loads(index.read_text())
        change(document)
        index.write_text(json.dumps(document))

    return damage


def save(array):
    def damage(_, rows):
        with rows.open("wb") as stream:
            np.save(stream, array)

    return damage


DAMAGES = {
    "rows cut short": lambda _, rows: rows.write_bytes(rows.read_bytes()[:-5]),
    "rows empty": lambda _, rows: rows.write_bytes(b""),
    "no array": lambda _, rows: rows.write_bytes(b"no array at all"),
    "a pickle": save(np.array([{"a": 1}], dtype=object)),
    "other shape": save(np.zeros((2, 2), dtype=np.float32)),
    "other type": save(np.zeros((3, *KIND.shape), dtype=np.float64)),
    "flipped byte": lambda _, rows: flip(rows, -7),
    "rows of other cells": save(values(CELLS)[::-1].copy()),
    "index cut short": lambda index, _: index.write_text(index.read_text()[:-9]),
    "index empty": lambda index, _: index.write_bytes(b""),
    "index of bytes": lambda index, _: index.write_bytes(b"\xff\xfe\x00"),
    "index a list": lambda index, _: index.write_text("[1, 2]"),
    "index of a later format": edit_index(lambda it: it.update(format=99)),
    "index without checksums": edit_index(lambda it: it.pop("checksums")),
    "a checksum too few": edit_index(lambda it: it["checksums"].pop()),
    "a wrong checksum": edit_index(lambda it: it["checksums"].__setitem__(2, 5)),
    "cells exchanged": edit_index(lambda it: it["cells"].reverse()),
    "other dtype": edit_index(lambda it: it.update(dtype="bfloat16")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected(tmp_path, damage):
    segment = write(tmp_path)
    DAMAGES[damage](segment.index, segment.index.with_suffix(".npy"))
    with pytest.raises(DamagedError, match=segment.index.stem):
        read(segment)


def test_a_damaged_row_leaves_the_others_readable(tmp_path):
    segment = write(tmp_path)
    flip(segment.index.with_suffix(".npy"), -7)
    rows = SegmentRows(segment, KIND)
    assert np.array_equal(rows.row(0), value("c1"))
    with pytest.raises(DamagedError, match="row 2"):
        rows.row(2)


def test_rows_of_another_kind_are_not_taken(tmp_path):
    segment = write(tmp_path)
    for kind in (ROUNDED, RowKind((30, 10))):
        with pytest.raises(DamagedError, match="something else"):
            Segment(segment.index, kind)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def rows():
        yield value("c1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segment(tmp_path, KIND, CELLS, rows())
    assert list(tmp_path.iterdir()) == []


def test_reading_goes_on_when_the_files_are_removed(tmp_path):
    segment = write(tmp_path)
    rows = SegmentRows(segment, KIND)
    remove_segment(segment.index)
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(rows.row(1), value("c2"))
    assert segment_size(segment.index) == 0
    with pytest.raises(FileNotFoundError, match=segment.index.stem):
        SegmentRows(segment, KIND)


def test_sweeping_takes_the_torn_and_leaves_the_whole(tmp_path):
    whole, torn = write(tmp_path), write(tmp_path, names(7))
    torn.index.unlink()
    for name in (".abc.npy-x1.npy", ".abc.json-x2.json"):
        (tmp_path / name).write_bytes(b"half")
    sweep(tmp_path)
    assert indexes(tmp_path) == [whole.index]
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(read(whole), values(CELLS))
