"""The documentation's site: it builds strictly, asks no other host for anything, and its links are good."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pymdownx.slugs import slugify

import canal

ROOT = Path(__file__).resolve().parents[1]
slug = slugify(case="lower")
ASKED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}
"""What a browser fetches for a page without being told to: element -> attribute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site once; a link or an anchor that leads nowhere ends the build."""
    made = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(made)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


class Elements(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_no_link_is_called_by_the_name_of_a_file():
    """Its words say what is there: on the site nobody sees files."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = re.compile(r"\[`?[\w/.-]+\.(?:md|html)`?\]\([^)]*\)")
    found = {page.name: named.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {name: links for name, links in found.items() if links} == {}


def test_no_page_asks_another_host_for_anything(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    foreign = [
        f"{page.relative_to(site)}: {attrs[ASKED[tag]]}"
        for page in pages
        for tag, attrs in Elements(page).found
        if tag in ASKED and re.match(r"(?:[a-z]+:)?//", attrs.get(ASKED[tag]) or "")
    ]
    assert foreign == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


def test_what_a_page_asks_for_is_there(site):
    """Also where the site is opened from a disk, so every address is relative."""
    for page in (site / "index.html", site / "reference" / "api.html", site / "adr" / "0003-rooms.html"):
        asked = [
            attrs[ASKED[tag]] for tag, attrs in Elements(page).found if tag in ASKED and attrs.get(ASKED[tag])
        ]
        local = [one.split("?")[0].split("#")[0] for one in asked]
        assert len(local) > 4
        assert [one for one in local if not (page.parent / one).is_file()] == []
    assert (site / "search" / "search_index.js").is_file()  # search without a server


def test_every_page_is_in_the_navigation(site):
    links = {attrs.get("href") for tag, attrs in Elements(site / "index.html").found if tag == "a"}
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html", "index.html"}
    assert pages - links == set()


def test_the_docstring_of_every_public_name_is_on_the_page(site):
    names = {attrs.get("id") for _, attrs in Elements(site / "reference" / "api.html").found}
    plots = ("umap", "dotplot", "layout")
    wanted = {f"canal.{name}" for name in canal.__all__ if name not in ("pl", "__version__")}
    assert wanted | {f"canal.report.plots.{name}" for name in plots} <= names
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "api.html").read_text(encoding="utf-8"))
    for value in (canal.annotate, canal.Options, canal.learn, *(getattr(canal.pl, name) for name in plots)):
        first = value.__doc__.strip().splitlines()[0].split("`")[0].split("canal.")[0].strip()
        assert len(first) > 20
        assert first in text, value


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading, "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_pages_beside_the_site_lead_somewhere(name):
    page = ROOT / name
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (ROOT / path) if path else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            wrong.append(target)
    assert wrong == []


def test_links_in_the_docs_are_those_of_github_too():
    """The strict build proves them for the site; on GitHub the headings' anchors are made by its own rule."""
    wrong = []
    pages = sorted((ROOT / "docs").rglob("*.md"))
    for page in pages:
        for path, anchor in re.findall(r"\]\(([\w./-]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            aim = (page.parent / path).resolve() if path else page
            if anchor not in anchors(aim):
                wrong.append(f"{page.name}: {path}#{anchor}")
    assert wrong == []


@pytest.mark.parametrize("name", ["README.md", "quickstart", "faq", "compare", "scale", "prove", "withdraw"])
def test_lines_that_people_read_are_at_most_100_columns(name):
    page = ROOT / (name if name.endswith(".md") else f"docs/{name}.md")
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "!["))] == []


def test_readme_is_a_screen_and_a_half_and_says_what_its_words_mean():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    first = re.search(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [line.split("#")[0].strip() for line in first[1].splitlines()]
    assert commands == ["make run", "make test"]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for word in ("network", "sums", "stage", "gate"):
        first_use = re.search(rf"\b{word}\b(?!\.md)", prose)
        assert prose[first_use.start() - 1] == "*", f"{word} is used before it is said what it is"
