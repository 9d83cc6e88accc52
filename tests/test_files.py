"""Files and folders are whole or not there."""

import errno
import os
import re
import stat
import subprocess
import sys
import threading

import pytest

from canal.core.digests import canonical_json, file_digest, json_digest, tree_digests
from canal.core.files import (
    append_line,
    first_file,
    new_file,
    new_folder,
    read_json,
    usual_rights,
    write_json,
)


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


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_rights_follow_the_umask_and_what_is_replaced(tmp_path, umask):
    path, secret = tmp_path / "a.txt", tmp_path / "secret"
    write_json(path, 1)
    assert mode_of(path) == 0o640
    path.chmod(0o600)
    write_json(path, 2)
    assert mode_of(path) == 0o600
    secret.write_text("x")
    secret.chmod(0o400)
    with new_file(tmp_path / "b.txt", like=secret):
        pass
    assert mode_of(tmp_path / "b.txt") == 0o600
    with new_folder(tmp_path / "c"):
        pass
    with new_folder(tmp_path / "d", like=tmp_path / "c"):
        pass
    assert mode_of(tmp_path / "c") == mode_of(tmp_path / "d") == 0o750
    (tmp_path / "c" / "values").write_text("x")
    (tmp_path / "c" / "values").chmod(0o600)
    with new_file(tmp_path / "e.txt", like=tmp_path / "c"):
        pass
    assert mode_of(tmp_path / "e.txt") == 0o600


KILLED = """
import os, signal, sys
from pathlib import Path
from canal.core.files import new_file, new_folder, scratch_folder
with scratch_folder("gate"), new_file(Path("a.csv")) as file, new_folder(Path("b")) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "x").write_text("half")
    (folder / "deep").chmod(0o500)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("waited_for", [True, False])
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, monkeypatch, waited_for):
    """Also where nobody waits for what was killed, as the first process of a container often does not."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path)
    os.waitid(os.P_PID, run.pid, os.WEXITED | (0 if waited_for else os.WNOWAIT))
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 3
    others = {".a.csv-abc.csv", ".canal", f".x.canal-00000000-{2**22 + 1}-00000000.csv"}
    alive = re.sub(r"-[0-9]+-", f"-{os.getpid()}-", next(name for name in left if name.endswith(".csv")))
    for name in (*others, alive):
        (tmp_path / name).write_text("of another program, another machine, or a run that goes on")
    write_json(tmp_path / "other.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {*others, alive, "other.json"}
    run.wait()


def test_a_folder_that_may_not_be_written_is_removed_all_the_same(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a") as temporary:
        (temporary / "b").mkdir()
        (temporary / "b" / "c").write_text("x")
        (temporary / "b").chmod(0o500)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_names_of_many_bytes_are_written(tmp_path):
    path = tmp_path / ("細" * 80 + ".json")
    write_json(path, 1)
    assert read_json(path) == 1


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


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path):
    """Who looks meanwhile sees the one or the other, whole; a thread looks all the while."""
    path, seen, over = tmp_path / "folder", set(), threading.Event()
    path.mkdir()
    for number in range(20):
        (path / f"{number}").write_text("old")

    def look():
        while not over.is_set():
            seen.add((path / "19").is_file())

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(10):
        with new_folder(path) as temporary:
            for number in range(20):
                (temporary / f"{number}").write_text("new")
    over.set()
    watcher.join()
    assert seen <= ({True} if sys.platform == "linux" else {True, False})
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_what_is_made_first_is_never_replaced(tmp_path):
    path = tmp_path / "file"
    with first_file(path, 0o600) as temporary:
        temporary.write_text("first")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError), first_file(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "first"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_library_that_makes_a_file_for_its_user_alone_leaves_the_umask_to_say_who_reads(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        with usual_rights(path):
            path.unlink()
            os.close(os.open(path, os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
