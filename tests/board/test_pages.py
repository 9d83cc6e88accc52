"""The pages of `canal ui` on a registry made by hand: what they show, and what nobody can do by them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from canal.annotation.records import make_record
from canal.app.board import BoardOptions, serve
from canal.core.digests import canonical_json
from canal.core.errors import ConfigError
from canal.core.files import append_line
from canal.registry.ledger.ledger import Draft, Ledger
from tests.support.board import TOKEN, Visit, words
from tests.support.registry_made import SECOND, StageCells, two_stages

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE versions; --",
    "javascript:alert(1)",
    "{{ 7*7 }}{% raw %}",
    "\u202egnp.exe",
    "a" * 199,
)
CHANGING = (
    "/rollback",
    "/versions/2/promote",
    "/versions/2/retire",
    "/data/first/unlearn",
    "/naming/0123456789abcdef",
)


def record_of(made, version, file="cells.h5ad", n=10):
    facts = {
        "time": "2026-01-03T00:00:00.000+00:00",
        "input": {"name": file, "bytes": 10, "sha256": "ab" * 32},
        "model": {"model": version.model, "version": version.number, "key": version.key, "stage": "x"},
        "options": {},
        "cell_types": {"B": n - 1, "Unassigned": 1},
        "n_cells": n,
    }
    append_line(made.root / "annotations.jsonl", canonical_json(make_record(facts)))


def write_entry(made, version, who, why, kind="register", **facts):
    ledger = Ledger(made.root / "ledger.jsonl")
    draft = Draft(kind, version.model, version.number, version.key, version.record, who, why, **facts)
    ledger.append(ledger.next(draft))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = two_stages(tmp_path_factory.mktemp("board") / "project")
    first, second = made.project.store.versions()
    for one in (first, second):
        write_entry(made, one, "canal registry sync", "", aliases={"candidate": one.number})
    write_entry(made, first, "A. Person", "the first", "promote", aliases={"champion": 1})
    record_of(made, second, "lung.h5ad")
    return made


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
def visit(made, token_file):
    return Visit(made.root, token_file)


def read_addresses(visit):
    """Every address of the board that is read, with values in the place of its parameters."""
    given = {"number": "2", "name": "first", "sheet": "0" * 16, "job": "nothing"}
    for route in visit.app.app.routes:
        if "GET" in route.methods:
            yield re.sub(r"{(\w+)}", lambda one: given[one[1]], route.path)


def written(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".canal" not in path.relative_to(root).parts
    }


def test_the_pages_say_what_the_registry_holds(visit):
    page = words(visit.get("/"))
    assert "serves (champion) 1 first" in page
    assert "newest (candidate) 2 second" in page
    assert "Version 2 (second) waits for somebody to judge it" in page
    assert "A. Person let version 1 serve (promote): the first" in page
    page = words(visit.get("/versions/2"))
    for said in ("Mono second 5 75.0 %", "T first 5 50.0 %", "2 second from second", "1 first from first"):
        assert said in page, said
    assert "drift" in page
    assert "lung.h5ad: 10 cells, 1 Unassigned" in page
    page = words(visit.get("/compare?a=1&b=2"))
    assert "Version 2 also knows Mono" in page
    assert "T first 5 100.0 % 50.0 % -50.0" in page
    page = words(visit.get("/data/first"))
    assert "donor-1 2 2 B 1, T 1 Where used" in page
    assert "2 second learned on one that did" in page
    assert "1 first learned from it" in page
    assert "lung.h5ad" in visit.get("/files?q=LUNG")
    assert "lung.h5ad" in visit.get("/files?q=version+2")
    assert "lung.h5ad" not in visit.get("/files?q=version+1")
    assert "lung.h5ad" in visit.get("/files?q=abababab")
    assert "the first" in visit.get("/ledger?kind=promote")
    assert "the first" not in words(visit.get("/ledger?kind=register"))
    assert "Nothing was unlearned" in visit.get("/withdrawn")


def test_a_page_is_read_again_when_what_it_shows_has_changed(made, tmp_path):
    again = two_stages(tmp_path / "project")
    visit = Visit(again.root)
    assert "Files labelled" in visit.get("/")
    first, second = again.project.store.versions()
    record_of(again, second, "new.h5ad")
    write_entry(again, second, "B. Person", "looked at it")
    again.alias("champion", second)
    assert "new.h5ad" in visit.get("/files")
    assert "looked at it" in visit.get("/ledger")
    assert "serves (champion) 2" in words(visit.get("/"))
    with (again.root / "annotations.jsonl").open("a") as log:
        log.write('{"half": "a rec')
    assert "new.h5ad" in visit.get("/files")
    assert "cannot be read" not in visit.get("/files")


def test_nothing_is_changed_by_reading(visit, made):
    before = written(made.root)
    for address in read_addresses(visit):
        answer = visit.client.get(address)
        assert answer.status_code in (200, 404), address
    for address in ("/versions/2/report?open=1", "/compare?a=1&b=2&do=promote", "/?to=1&why=x"):
        visit.get(address)
    assert written(made.root) == before


def test_every_answer_has_its_headers(visit):
    asked = [visit.client.get(address) for address in read_addresses(visit)]
    asked += [visit.client.post("/rollback"), visit.client.get("/", headers={"host": "evil.example"})]
    asked += [visit.client.get("/no/such/page"), visit.client.put("/")]
    for answer in asked:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
    cookie = visit.another().client.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


def test_a_form_needs_the_secret_of_its_own_page_and_a_login(visit, made):
    before = written(made.root)
    other = visit.another()
    for address in CHANGING:
        assert visit.client.post(address, data={"why": "x"}).status_code == 403, address
        assert visit.client.post(address, data={"why": "x", "csrf": other.csrf}).status_code == 403, address
        answer = visit.post(address, why="x", batch="donor-1", to="2")
        assert (answer.status_code, "log in first" in answer.text) == (403, True), address
    assert visit.client.post("/login", data={"token": TOKEN, "name": "x"}).status_code == 403
    assert visit.client.post("/drop", content=b"x").status_code == 403
    answer = visit.client.post("/rollback", json={"csrf": visit.csrf})
    assert answer.status_code == 415
    assert written(made.root) == before


def test_other_sites_and_other_names_of_this_machine_are_refused(visit):
    for host in ("evil.example", "evil.example:5002", "127.0.0.1:80", "127.0.0.1.evil.example:5002", ""):
        assert visit.client.get("/", headers={"host": host}).status_code == 403, host
    for host in ("127.0.0.1:5002", "localhost:5002", "LOCALHOST:5002", "[::1]:5002"):
        assert visit.client.get("/", headers={"host": host}).status_code == 200, host
    fields = {"csrf": visit.csrf, "token": TOKEN, "name": "x"}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:5001"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert visit.client.post("/login", data=fields, headers=headers).status_code == 403, headers
    fetched = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}
    assert visit.client.get("/", headers=fetched).status_code == 403
    assert visit.client.get("/", headers=fetched | {"sec-fetch-dest": "document"}).status_code == 200
    own = {"origin": "http://127.0.0.1:5002", "sec-fetch-site": "same-origin"}
    assert visit.client.post("/login", data=fields, headers=own).status_code == 303


def test_a_login_gives_a_new_session_and_too_many_wrong_tokens_wait(visit, token_file, made):
    before = visit.client.get("/").headers.get("set-cookie"), visit.client.cookies["canal_board"]
    assert visit.log_in(token="wrong").status_code == 403
    assert visit.log_in(name=" ").status_code == 400
    assert visit.log_in(name="a\x00b").status_code == 400
    assert visit.log_in().status_code == 303
    assert visit.client.cookies["canal_board"] != before[1]
    assert "Ada Lovelace" in visit.get("/")
    assert "Judge and promote" in visit.get("/versions/2")
    stolen = visit.another()
    assert "Ada" not in stolen.get("/")
    assert visit.post("/logout").status_code == 303
    assert "Ada Lovelace" not in visit.get("/")
    token_file.write_text("another token, no: " + TOKEN)
    assert visit.log_in().status_code == 400
    token_file.write_text(TOKEN[::-1])
    for _ in range(7):
        assert visit.log_in().status_code == 403
    assert visit.log_in(token=TOKEN[::-1]).status_code == 429


def test_a_board_without_a_token_is_for_reading(made):
    visit = Visit(made.root)
    assert "for reading" in visit.get("/")
    assert "--token-file" in visit.get("/login")
    assert "--token-file" in visit.get("/versions/2")
    assert visit.log_in().status_code == 403


def test_a_token_that_is_none_and_a_folder_that_is_no_project_are_refused(made, tmp_path):
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigError, match="must hold one token"):
        serve(made.root, BoardOptions(token_file=tmp_path / "short"))
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        serve(tmp_path, BoardOptions())


def test_what_is_not_there_is_said(visit):
    for address in ("/versions/9", "/versions/x", "/versions/" + "9" * 30, "/data/none", "/naming/1"):
        assert "names all" in visit.get(address, 404), address
    assert "no such page" in visit.get("/etc/passwd", 404)
    assert visit.client.get("/static/../board.py").status_code == 404
    for asked in ("-1", "0", "x", "9" * 40, "2"):
        visit.get(f"/ledger?page={asked}")
        visit.get(f"/files?page={asked}&q={asked}")


class Markup(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A registry in which whatever a person may name holds markup."""
    made = two_stages(tmp_path_factory.mktemp("hostile") / "project")
    parent = made.project.store.versions()[-1]
    types = [f"{name} {number}" for number in range(30) for name in HOSTILE]
    cells = StageCells(
        train=["Mono-1", "T-1"],
        validation=["Mono-3"],
        test=["Mono-4"],
        bank=["Mono-1"],
        probe=["Mono-3"],
        batches={"Mono-1": HOSTILE[0], "T-1": HOSTILE[1]},
        recall={"second": dict.fromkeys(types, 0.5)},
        tested=SECOND.tested,
    )
    version = made.stage("second", parent, cells, types)
    made.alias("<i>alias", version)
    for name in HOSTILE:
        if name.isprintable():
            write_entry(made, version, name, name, "promote", aliases={"<i>alias": 3})
        record_of(made, version, f"{name}.h5ad")
    (made.root / "labelled").mkdir()
    sheet = made.root / "labelled" / "<b>x.csv"
    sheet.write_text(
        f'group,n_cells,top_genes,nearest_types,batches,purity,cell_type,sheet\n1,"{HOSTILE[0]}",x,,,,,y\n'
    )
    sheet.with_name("<b>x.cells.json").write_text("{}")
    return made


def test_names_that_hold_markup_are_text(hostile, token_file):
    visit = Visit(hostile.root, token_file)
    visit.log_in(name="<b onclick=alert(1)>Eve</b>")
    addresses = [*read_addresses(visit), "/versions/3", "/data/second", "/compare?a=2&b=3"]
    addresses += [f"/files?q={one}" for one in ("<script>", "%22%3E%3Cimg", "{{ 7*7 }}")]
    addresses += ["/ledger?kind=<script>"]
    seen = ""
    for address in addresses:
        answer = visit.client.get(address)
        if "text/html" not in answer.headers["content-type"]:
            continue
        seen += answer.text
        found = Markup(answer.text)
        assert found.tags.count("script") == 1, address
        assert not {"img", "i", "b", "iframe", "style"} & set(found.tags), address
        assert not [name for name, _ in found.attributes if name.startswith("on") or name == "style"], address
        links = [value for name, value in found.attributes if name in ("href", "action", "src")]
        assert all(value.startswith(("/", "#")) for value in links), address
        assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|\b49\b", answer.text), address
    for name in HOSTILE:
        assert name.replace("\u202e", "\ufffd") in words(seen) or "\u202e" in name or "<" in name, name
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in seen
    assert "&lt;b onclick" in seen
    assert "\u202e" not in seen
