"""Decisions, withdrawals and dropped files on the board of a learned project: the same as by the commands."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import anndata
import pytest

from canal.annotation.records import read_log
from canal.app.board_drop import MOST_FILES
from tests.pipeline.conftest import copied
from tests.support.board import TOKEN, Visit, words
from tests.support.cells import make_adata, write_adata
from tests.support.methods import N_GENES, learned_by, without_pictures

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("board")]  # they share a project


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Give a copy of a project learned by sums, and a browser in which a person has logged in; made once."""
    line = copied(learned_by("exact", tmp_path_factory), tmp_path_factory.mktemp("board") / "project")
    line.edit(lambda document: document["policy"].update(min_accuracy=0.99))  # more than so few cells show
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(TOKEN)
    visit = Visit(line.root, token_file)
    with visit.client:  # as a server, so that what it starts ends with it
        visit.log_in()
        yield line, visit


@pytest.fixture
def line(board):
    return board[0]


@pytest.fixture
def visit(board):
    return board[1]


@pytest.fixture
def serving(line):
    """Let version 1 serve, unless the test before has promoted it."""
    aliases = {one.number: one.aliases for one in line.project().store.versions()}
    if "champion" not in aliases[1]:
        decided = ("--by", "A. Person", "--why", "first", "--override", "*", "--too-few", "few")
        line.canal("promote", "1", *decided)


def entries(line):
    path = line.root / "ledger.jsonl"
    return [json.loads(one) for one in path.read_text().splitlines()]


def test_a_version_is_judged_refused_and_promoted_as_by_the_command(line, visit):
    before = entries(line)
    page = words(visit.done(visit.post("/versions/1/promote", do="judge")))
    assert "Rules of the policy" in page
    refused = words(visit.done(visit.post("/versions/1/promote", do="promote", why="too soon")))
    assert "was not promoted" in refused
    assert "Override accuracy" in refused
    answer = visit.post("/versions/1/promote", do="promote", why="")
    assert (answer.status_code, "--why" in answer.text) == (409, True)
    wrong = words(visit.done(visit.post("/versions/1/promote", do="promote", why="x", override="no_rule")))
    assert "Refused" in wrong
    assert entries(line) == before
    fields = {"why": "the <first>", "override": "accuracy", "too_few": "a demonstration"}
    page = words(visit.done(visit.post("/versions/1/promote", do="promote", **fields)))
    assert "Version 1 serves" in page, page
    last = entries(line)[-1]
    assert (last["kind"], last["who"], last["why"]) == ("promote", "Ada Lovelace", "the <first>")
    assert last["details"]["too_few"] == "a demonstration"
    assert (line.root / "report" / "index.html").is_file()
    assert "the &lt;first&gt;" in visit.get("/ledger")
    assert "serves (champion) 1" in words(visit.get("/"))
    line.canal("ledger", "--verify")


def test_rollback_and_retirement_are_entries_and_refusals_move_nothing(line, visit, serving):
    before = entries(line)
    again = words(visit.done(visit.post("/rollback", to="", why="x")))
    assert "Refused" in again
    served = words(visit.done(visit.post("/versions/1/retire", why="x")))
    assert "Refused" in served
    assert entries(line) == before
    page = words(visit.done(visit.post("/rollback", to="2", why="T cells look wrong")))
    assert "Version 2 serves again" in page
    page = words(visit.done(visit.post("/rollback", to="", why="not so")))
    assert "Version 1 serves again" in page
    assert [one["kind"] for one in entries(line)[len(before) :]] == ["rollback", "rollback"]


def test_two_people_decide_one_after_the_other(line, visit):
    second = visit.another()
    second.log_in("Grace Hopper")
    both = [
        one.post("/rollback", to=number, why="at once")
        for one, number in ((visit, "2"), (second, "1"), (visit, "2"))
    ]
    pages = [words(visit.done(one)) for one in both]
    assert [page.count("serves again") for page in pages] == [1, 1, 1]
    assert [one["who"] for one in entries(line)[-3:]] == ["Ada Lovelace", "Grace Hopper", "Ada Lovelace"]
    visit.done(visit.post("/rollback", to="1", why="as before"))


def test_a_page_is_written_once_and_stands_apart(line, visit):
    assert "Not written yet" in visit.get("/versions/2/lineage")
    visit.done(visit.post("/versions/2/lineage"))
    answer = visit.client.get("/versions/2/lineage?open=1")
    assert "Lineage of" in answer.text
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src 'none'" in answer.headers["content-security-policy"]
    [kept] = (line.root / ".canal" / "board").glob("lineage-*.html")
    written = kept.stat().st_mtime_ns
    visit.get("/versions/2/lineage?open=1")
    assert kept.stat().st_mtime_ns == written


def test_cells_are_taken_out_once_the_plan_was_seen(line, visit, monkeypatch):
    without_pictures(monkeypatch)
    before = entries(line)
    asked = {"batch": "", "cells": "no-such-cell", "why": "consent withdrawn"}
    assert "Refused" in visit.done(visit.post("/data/third/unlearn", **asked))
    assert visit.post("/data/third/unlearn", batch="", cells=" ", why="x").status_code == 400
    cells = "\n".join(list(line.project().split("third")["cell_id"].str.partition(":")[2])[:3])
    plan = visit.done(visit.post("/data/third/unlearn", batch="", cells=cells, why="consent withdrawn"))
    assert "What would be made" in plan, words(plan)
    assert "third" in words(plan)
    assert entries(line) == before
    made = words(
        visit.done(visit.post("/data/third/unlearn", cells=cells, why="consent withdrawn", do="unlearn"))
    )
    assert "Unlearned: third without 3 cells" in made
    last = entries(line)[-1]
    assert (last["kind"], last["who"], last["why"]) == ("register", "Ada Lovelace", "consent withdrawn")
    gone = words(visit.get("/withdrawn"))
    assert "4 third 3 holds the cells 3" in gone
    assert "3 cells" in gone
    where = words(visit.done(visit.post("/data/third/touched", batch="b1")))
    assert "learned" in where


def test_a_file_is_labelled_shown_handed_back_and_forgotten(line, visit, serving, tmp_path):
    path = write_adata(make_adata({"B": 30, "T": 20}, N_GENES, seed=5), tmp_path / "new <b>.h5ad")
    n = len(read_log(line.root / "annotations.jsonl").records)
    answer = visit.drop(path)
    page = visit.done(answer)
    assert "50 cells labelled by version 1" in words(page)
    assert page.count("<circle") == 50
    job = answer.headers["location"].removeprefix("/jobs/")
    assert "no such" not in page
    stranger = visit.another()
    stranger.get(f"/jobs/{job}", 404)
    assert stranger.post(f"/drop/{job}/download").status_code == 404
    back = visit.post(f"/drop/{job}/download")
    assert "attachment" in back.headers["content-disposition"]
    (tmp_path / "back.h5ad").write_bytes(back.content)
    labels = anndata.read_h5ad(tmp_path / "back.h5ad").obs["canal_cell_type"].astype(str)
    line.canal("annotate", str(path), "-o", str(tmp_path / "own.h5ad"))
    own = anndata.read_h5ad(tmp_path / "own.h5ad").obs["canal_cell_type"].astype(str)
    assert labels.tolist() == own.tolist()
    assert line.canal("who", str(tmp_path / "back.h5ad"))
    records = read_log(line.root / "annotations.jsonl").records
    assert len(records) == n + 2
    assert records[-2]["input"]["sha256"] == records[-1]["input"]["sha256"]
    assert visit.post(f"/drop/{job}/download").status_code == 404
    assert "Forgotten" in visit.get(f"/jobs/{job}")
    assert not left(visit)
    watched = words(visit.get("/watch?version=1"))
    assert f"{datetime.now(UTC):%Y-%m} 1 50 (" in watched  # too few to judge
    assert "Nothing could be judged yet: fewer than 100 cells in each month." in watched
    assert "left its range" not in watched


def left(visit):
    """The files that the board holds."""
    drops = visit.board.drops
    return [] if drops._root is None else [one for one in drops._root.rglob("*") if one.is_file()]


def test_what_is_no_h5ad_file_or_too_large_is_refused_and_leaves_nothing(line, visit, tmp_path):
    (tmp_path / "text.h5ad").write_text("not HDF5 at all")
    (tmp_path / "empty.h5ad").touch()
    torn = write_adata(make_adata({"B": 6}, N_GENES, seed=5), tmp_path / "torn.h5ad")
    torn.write_bytes(torn.read_bytes()[:3000])
    assert "no h5ad" in visit.drop(tmp_path / "text.h5ad").text
    assert visit.drop(tmp_path / "empty.h5ad").status_code == 415
    assert visit.drop(torn, "cells.csv").status_code == 415
    assert visit.drop(torn, "../../../etc/x", "1").status_code == 415
    assert visit.drop(torn, model="77").status_code == 404
    page = visit.done(visit.drop(torn, "..%2F..%2Fevil.h5ad"))
    assert "Refused" in page
    assert "Traceback" not in page
    tight = Visit(line.root, max_mb=1)
    (tmp_path / "large.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1 << 20))
    assert tight.drop(tmp_path / "large.h5ad").status_code == 413
    for file in visit.board.drops.mine(visit.client.cookies["canal_board"]):
        visit.post(f"/drop/{file.job.id}/forget")
    assert not left(visit)


def test_a_file_waits_half_an_hour_and_few_wait_at_once(line, visit, tmp_path):
    path = write_adata(make_adata({"B": 12, "T": 10}, N_GENES, seed=6), tmp_path / "few.h5ad")
    answers = [visit.drop(path) for _ in range(MOST_FILES)]
    assert visit.drop(path).status_code == 503
    for one in answers:
        visit.done(one)
    for file in visit.board.drops.mine(visit.client.cookies["canal_board"]):
        file.due = time.monotonic() - 1
    assert "Your files" not in visit.get("/drop")
    assert not left(visit)


def test_a_kept_file_has_a_sheet_whose_groups_are_named(line, visit, tmp_path):
    path = write_adata(make_adata({"B": 20, "Strange": 60}, N_GENES, seed=7), tmp_path / "strange.h5ad")
    answer = visit.drop(path)
    page = visit.done(answer)
    assert "fit no known type" in page, words(page)
    job = answer.headers["location"].removeprefix("/jobs/")
    stranger = visit.another()
    assert stranger.post(f"/drop/{job}/keep", min_cells="5").status_code == 403
    assert visit.post(f"/drop/{job}/keep", min_cells="0").status_code == 400
    kept = words(visit.done(visit.post(f"/drop/{job}/keep", min_cells="5")))
    assert "Kept: labelled/strange.h5ad" in kept
    worklist = visit.get("/naming")
    assert "labelled/strange.csv" in worklist
    address = worklist.partition('href="/naming/')[2][:16]
    assert "readonly" in stranger.get(f"/naming/{address}")
    assert visit.post(f"/naming/{address}", **{"group-1": "=cmd()"}).status_code == 409
    assert visit.post(f"/naming/{address}", **{"group-99": "x"}).status_code == 409
    assert visit.post(f"/naming/{address}", **{"group-1": "Odd & <new>"}).status_code == 303
    assert "Odd &amp; &lt;new&gt;" in visit.get(f"/naming/{address}?saved=1")
    assert "Odd & <new>" in (line.root / "labelled" / "strange.csv").read_text()
    again = visit.done(visit.post(f"/drop/{job}/keep", min_cells="5"))
    assert "exists already" in again
