"""Files and folders are whole or not there."""

import errno
import os

import pytest

from canal.digests import canonical_json, file_digest, json_digest, tree_digests
from canal.files import append_line, new_file, new_folder, read_json, write_json


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    with pytest.raises(RuntimeError), new_folder(folder) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert (folder / "weights").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "gone").write_text("x")
    with new_folder(folder) as temporary:
        (temporary / "here").write_text("y")
    assert tree_digests(folder).keys() == {"here"}


def test_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "a.json").read_text() == '{\n "a": "ä",\n "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_equal_documents_have_equal_digests(tmp_path):
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
    (tmp_path / "x").write_text(canonical_json({"a": 1}))
    assert file_digest(tmp_path / "x") == json_digest({"a": 1})


def test_lines_are_added_whole_behind_whatever_a_kill_left(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    with path.open("a") as stream:
        stream.write("torn")
    append_line(path, "three")
    assert path.read_text().splitlines() == ["one", "two", "torn", "three"]


def test_a_line_that_the_disk_does_not_take_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    write = os.write

    def full(handle, content):
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content[:5])

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "a longer line")
    assert path.read_text() == "one\n"
