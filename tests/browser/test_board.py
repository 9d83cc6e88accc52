"""The board in a real browser: each page and link, decisions, a dropped file, two people, a killed server."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.board.test_pages import HOSTILE
from tests.browser.conftest import Opened
from tests.pipeline.conftest import copied
from tests.support.board import TOKEN
from tests.support.cells import make_adata, write_adata
from tests.support.methods import N_GENES, learned_by

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SHOTS = os.environ.get("CANAL_SCREENSHOTS")
"""A folder for pictures of each page, for somebody to look at."""

PAGES = ("/", "/versions/2", "/compare?a=1&b=2", "/data", "/data/second", "/files", "/watch", "/gate",
         "/ledger", "/withdrawn", "/naming", "/drop", "/login", "/versions/2/report",
         "/versions/9")  # fmt: skip


class Served:
    """A board in a process of its own, as a person starts it."""

    def __init__(self, root: Path, token_file: Path) -> None:
        self.root, self.token_file = root, token_file
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "canal.cli", "ui", "--port", str(self.port)]
        self.log = self.root.parent / "board.log"
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                [*command, "--token-file", str(self.token_file)], cwd=self.root, stdout=stream, stderr=stream
            )
        end = time.monotonic() + 240
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urlopen(f"{self.address}/login", timeout=60).close()
                return
            except (URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    line = copied(learned_by("exact", tmp_path_factory), tmp_path_factory.mktemp("board") / "project")
    line.edit(lambda document: document["policy"].update(min_accuracy=0.99))  # more than so few cells show
    token_file = line.root.parent / "token"
    token_file.write_text(TOKEN)
    board = Served(line.root, token_file)
    yield board
    board.end()


def log_in(one: Opened, served: Served, name: str = "Ada Lovelace") -> None:
    one.page.goto(f"{served.address}/login")
    one.page.get_by_label("Your name").fill(name)
    one.page.get_by_label("The board's token").fill(TOKEN)
    one.page.get_by_role("button", name="Log in").click()
    one.page.get_by_role("banner").get_by_text(name).wait_for()


def settled(one: Opened) -> str:
    """Wait until a job has ended, and return what its page says."""
    one.page.wait_for_url(re.compile("/jobs/"))
    one.page.locator("main:not(:has([data-reload]))").wait_for(timeout=240_000)
    one.page.wait_for_load_state("networkidle")
    return str(one.page.locator("main").inner_text())


def keep(one: Opened, name: str) -> None:
    if SHOTS:
        one.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_page_is_whole_and_readable(served, opened, width, scheme):
    one = opened(f"{served.address}/", width, scheme)
    for who in ("reads", "decides"):
        if who == "decides":
            log_in(one, served)
        for address in PAGES:
            one.errors.clear()
            one.page.goto(f"{served.address}{address}")
            one.page.wait_for_load_state("networkidle")
            assert [said for said in one.errors if "404" not in said] == [], address
            assert one.overflow <= 0, address
            assert one.violations() == [], address
            keep(
                one,
                f"{address.strip('/').replace('/', '-').partition('?')[0] or 'home'}-{who}-{width}-{scheme}",
            )
    assert {urls.split("/")[2] for urls in one.asked} == {f"127.0.0.1:{served.port}"}


def test_every_link_leads_somewhere(served, opened):
    one = opened(f"{served.address}/")
    waiting, seen = ["/"], set()
    while waiting:
        address = waiting.pop()
        if address in seen or len(seen) > 80:
            continue
        seen.add(address)
        answer = one.page.goto(f"{served.address}{address}")
        assert answer is not None
        assert answer.status == 200, address
        links = one.page.locator("a[href^='/']").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        waiting += [link.partition("#")[0] for link in links]
    assert {"/", "/versions/1", "/versions/2", "/ledger", "/data/first", "/gate", "/drop"} <= seen


def test_a_version_is_refused_then_promoted_and_its_page_written(served, opened):
    one = opened(f"{served.address}/")
    log_in(one, served)
    one.page.goto(f"{served.address}/versions/1")
    one.page.get_by_role("button", name="Judge only").click()
    assert "Rules of the policy" in settled(one)
    keep(one, "judged")
    assert one.violations() == []
    one.page.get_by_label("Why", exact=True).fill("too soon")
    one.page.get_by_role("button", name="Judge and promote").click()
    assert "was not promoted" in settled(one)
    keep(one, "refused")
    one.page.goto(f"{served.address}/versions/1")
    form = one.page.locator("form[action$='/promote']")
    form.get_by_label("Why", exact=True).fill("the first")
    form.get_by_label("Let types with too few").fill("a demonstration")
    form.get_by_label("Override rules").fill("accuracy")
    form.get_by_role("button", name="Judge and promote").click()
    assert "Version 1 serves" in settled(one)
    one.page.goto(f"{served.address}/ledger")
    assert "Ada Lovelace" in one.page.locator("tbody tr").first.inner_text()
    one.page.goto(f"{served.address}/versions/2/report")
    one.page.get_by_role("button", name="Write it").click()
    assert "is written" in settled(one)
    one.errors.clear()
    one.page.get_by_role("link", name="Open it").click()
    one.page.wait_for_load_state("networkidle")
    assert one.page.locator(".chart svg").count() >= 5
    assert one.errors == []
    keep(one, "report")


def test_a_dropped_file_is_shown_and_handed_back(served, opened, tmp_path):
    path = write_adata(make_adata({"B": 40, "T": 30, "Odd": 30}, N_GENES, seed=5), tmp_path / "lung.h5ad")
    one = opened(f"{served.address}/drop")
    one.page.locator("#file").set_input_files(path)
    one.page.get_by_role("button", name="Label it").click()
    said = settled(one)
    assert "100 cells labelled" in said
    assert one.page.locator("svg.map circle").count() == 100
    assert one.errors == []
    assert one.violations() == []
    keep(one, "dropped")
    with one.page.expect_download() as caught:
        one.page.get_by_role("button", name="Download").click()
    assert caught.value.suggested_filename == "lung-labelled.h5ad"
    assert Path(caught.value.path()).stat().st_size > 10_000
    one.page.reload()
    assert "Forgotten" in one.page.locator("main").inner_text()


def test_a_file_that_is_none_is_refused_in_words(served, opened, tmp_path):
    (tmp_path / "notes.h5ad").write_text("no cells")
    one = opened(f"{served.address}/drop")
    one.page.locator("#file").set_input_files(tmp_path / "notes.h5ad")
    one.page.get_by_role("button", name="Label it").click()
    one.page.get_by_text("is no h5ad file").wait_for()
    assert one.page.url.endswith("/drop")


def test_the_plan_of_an_unlearning_is_shown_before_it_is_made(served, opened):
    one = opened(f"{served.address}/")
    log_in(one, served)
    one.page.goto(f"{served.address}/data/third")
    one.page.get_by_role("button", name="Where donor b1 was used").click()
    assert "learned" in settled(one)
    assert one.violations() == []
    keep(one, "touched")
    one.page.goto(f"{served.address}/data/third")
    form = one.page.locator("form[action$='/unlearn']")
    table = (served.root / "splits" / "third.csv").read_text().splitlines()[1:4]
    form.get_by_label("Or names of cells").fill(
        "\n".join(row.split(",")[0].partition(":")[2] for row in table)
    )
    form.get_by_label("Why").fill("consent withdrawn")
    form.get_by_role("button", name="Show what would be made").click()
    said = settled(one)
    assert "What would be made" in said
    assert "third" in said
    keep(one, "plan")
    one.page.get_by_role("button", name="Make these versions").click()
    assert "Unlearned: third without" in settled(one)
    keep(one, "unlearned")
    one.page.goto(f"{served.address}/withdrawn")
    assert "consent withdrawn" in one.page.locator("main").inner_text()
    keep(one, "withdrawn-after")


def test_two_people_at_once_decide_one_after_the_other(served, opened):
    people = [opened(f"{served.address}/") for _ in range(2)]
    for one, name, to in zip(people, ("Ada Lovelace", "Grace Hopper"), ("2", "2"), strict=True):
        log_in(one, served, name)
        one.page.goto(f"{served.address}/")
        one.page.get_by_label("Version", exact=True).select_option(to)
        one.page.get_by_label("Why").fill(f"as {name} says")
    for one in people:
        one.page.get_by_role("button", name="Roll back").click(no_wait_after=True)
    said = [settled(one) for one in people]
    assert sorted("serves again" in one for one in said) == [
        False,
        True,
    ]  # it serves already, says the second
    people[0].page.goto(f"{served.address}/ledger")
    first = people[0].page.locator("tbody tr").first.inner_text()
    assert "rollback" in first


def test_two_hundred_hostile_names_are_text(served, opened):
    one = opened(f"{served.address}/")
    ran = []
    one.page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    log_in(one, served, "<img src=x onerror=alert(1)>")
    names = [f"{name[:150]} {number}" for number in range(29) for name in HOSTILE if name.isprintable()]
    assert len(names) >= 170
    folder = served.root / "labelled"
    folder.mkdir(exist_ok=True)
    rows = [f'{n},{n},"{name.replace(chr(34), chr(34) * 2)}",x,y,,,z' for n, name in enumerate(names, 1)]
    head = "group,n_cells,top_genes,nearest_types,batches,purity,cell_type,sheet"
    (folder / "hostile.csv").write_text("\n".join([head, *rows, ""]))
    about = {"format": 1, "file": {"path": "x", "sha256": "x"}, "model": {}, "batch": None, "asked": {}}
    (folder / "hostile.cells.json").write_text(json.dumps(about | {"groups": []}))
    one.page.goto(f"{served.address}/naming")
    one.page.get_by_role("link", name="hostile.csv").click()
    one.page.wait_for_load_state("networkidle")
    assert one.page.locator("tbody tr").count() == len(names)
    assert one.page.locator("main img").count() == 0
    assert one.overflow <= 0
    for name in HOSTILE[:5]:
        one.page.goto(f"{served.address}/files?q={name}")
    assert ran == []
    shutil.rmtree(folder)


def test_a_server_that_is_killed_in_the_middle_leaves_what_the_command_would(served, opened):
    one = opened(f"{served.address}/")
    log_in(one, served)
    one.page.goto(f"{served.address}/versions/1")
    one.page.get_by_role("button", name="Judge only").click()
    one.page.wait_for_url(re.compile("/jobs/"))
    served.process.kill()
    served.process.wait(60)
    served.start()
    answer = one.page.reload()
    assert answer is not None
    assert answer.status == 404
    assert "stands in the ledger" in one.page.locator("main").inner_text()
    one.page.goto(f"{served.address}/")
    assert "Log in" in one.page.locator("header").inner_text()
    assert "The chain holds" in (one.page.goto(f"{served.address}/ledger") and one.page.content())
