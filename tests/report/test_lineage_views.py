"""A lineage as a tree, as Graphviz text and as a page: whole, within its space, and with no name obeyed."""

import re
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from canal.registry.provenance.lineage import BANK, SUMS, Edge, Graph, Node
from canal.report.lineage_page import HEIGHT, dot, lay_out, lineage_tree, quoted, write_lineage
from tests.report.test_page import Page

EVIL = "<script>alert('x')</script>&\"\\N\\$a_b{{ 7 * 7 }}[red]\x1b[31m"


def make_graph(stages=2, name="lung"):
    """A lineage of so many stages; each other one reads the raw bytes of the one before."""
    nodes, edges = [], []
    for number in range(stages, 0, -1):
        ids = {
            kind: f"{kind}:{name}-{number}"
            for kind in ("version", "run", "split", "verdict", "data", "source")
        }
        ids["bytes"] = f"bytes:{(number + 1) // 2:064x}"
        nodes += [
            Node(
                ids["version"],
                "version",
                f"m {number} ({name})",
                {"version": number, "stage": name, "key": "k"},
            ),
            Node(ids["run"], "run", "run 1", {"host": name, "time": "2026-01-02T03:04:05+00:00"}),
            Node(ids["verdict"], "verdict", f"verdict on {name}", {"passed": True, "sha256": "a" * 64}),
            Node(ids["split"], "split", f"split of {name}", {"train": 1000, "validation": 2, "test": 3}),
            Node(ids["data"], "data", f"data set {name}", {"cells": 1005}),
            Node(ids["source"], "source", f"source {name}", {"values": "counts"}),
            Node(ids["bytes"], "bytes", "raw bytes", {"sha256": ids["bytes"].removeprefix("bytes:")}),
        ]
        older = f"version:{name}-{number - 1}" if number > 1 else "backbone"
        edges += [
            Edge(ids["version"], ids["run"], "registered by"),
            Edge(ids["version"], older, "learned on"),
            Edge(ids["version"], ids["split"], "trained on"),
            Edge(ids["version"], ids["verdict"], "admitted by"),
            Edge(ids["split"], ids["data"], "divides"),
            Edge(ids["verdict"], ids["data"], "judges"),
            Edge(ids["data"], ids["source"], "prepared as declared by"),
            Edge(ids["source"], ids["bytes"], "reads"),
        ]
    nodes += [
        Node("backbone", "backbone", "b 1", {"key": "k"}),
        Node("panel", "panel", "gene panel", {"sha256": "p"}),
    ]
    edges += [Edge("backbone", "panel", "reads the genes of"), Edge("panel", f"split:{name}-1", "chosen on")]
    edges.append(Edge("backbone", f"split:{name}-1", "trained on"))
    unique = {node.id: node for node in nodes}
    return Graph(tuple(unique.values()), tuple(edges))


def rendered(what, width=80):
    stream = StringIO()
    Console(file=stream, width=width).print(what)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 110])
def test_the_tree_names_everything_once_and_fits(width):
    graph = make_graph(3)
    text = rendered(lineage_tree(graph), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for node in graph.nodes:
        assert node.label in text
    assert text.count("raw bytes") == 3  # three stages, two files: the shared one is named again
    assert text.count("(above)") >= 4
    assert "…" not in text


def test_a_long_lineage_does_not_grow_to_the_right():
    deepest = [max(map(len, rendered(lineage_tree(make_graph(n)), 200).splitlines())) for n in (1, 30)]
    assert deepest[1] - deepest[0] <= 4


def test_a_name_in_the_tree_is_neither_markup_nor_steers_the_terminal():
    text = rendered(lineage_tree(make_graph(1, EVIL)), 400)
    assert "[red]" in text
    assert "\x1b" not in text


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_dot_quotes_whatever_there_is(words):
    text = quoted(words)
    assert text[0] == text[-1] == '"'
    assert re.fullmatch(r'(?:[^"\\]|\\["\\])*', text[1:-1])
    assert text.isprintable()
    assert re.sub(r"\\(.)", r"\1", text[1:-1]) == "".join(one if one.isprintable() else " " for one in words)


def test_dot_holds_every_node_and_edge():
    graph = make_graph(2, EVIL)
    lines = dot(graph).splitlines()
    assert (lines[0], lines[-1]) == ("digraph lineage {", "}")
    assert sum(" -> " in line for line in lines) == len(graph.edges)
    assert sum("shape=" in line for line in lines) == len(graph.nodes)
    assert all(line.endswith((";", "{", "}")) for line in lines)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12))
def test_no_two_boxes_of_the_picture_overlap_and_none_lies_outside(stages):
    graph = make_graph(stages)
    picture = lay_out(graph)
    assert len(picture.boxes) == len(graph.nodes)
    assert len(picture.lines) == len(graph.edges)
    for i, box in enumerate(picture.boxes):
        assert 0 <= box.x <= picture.width - picture.box_width
        assert 0 <= box.y <= picture.height - HEIGHT
        for other in picture.boxes[:i]:
            assert abs(box.x - other.x) >= picture.box_width or abs(box.y - other.y) >= HEIGHT


def test_what_versions_hand_on_is_drawn_beside_the_chain(tmp_path):
    graph = make_graph(2)
    newest, older, *_ = (node.id for node in graph.chain)
    whole = Graph(graph.nodes, (*graph.edges, Edge(newest, older, BANK), Edge(newest, older, SUMS)))
    picture = lay_out(whole)
    assert sorted(line.what for line in picture.lines if line.what) == ["bank", "sums"]
    between = {line.path for line in picture.lines if line.kind in ("learned on", BANK, SUMS)}
    assert len(between) == len([edge for edge in whole.edges if edge.kind in ("learned on", BANK, SUMS)])
    text = write_lineage(whole, tmp_path / "lineage.html").read_text(encoding="utf-8")
    assert "example cells handed on" in text
    assert "sums handed on" in text


def test_older_versions_stand_above():
    picture = lay_out(make_graph(3))
    heights = {box.node.label: box.y for box in picture.boxes if box.node.kind in ("version", "backbone")}
    assert sorted(heights, key=heights.get) == ["b 1", "m 1 (lung)", "m 2 (lung)", "m 3 (lung)"]


def test_the_page_is_offline_whole_and_the_same_twice(tmp_path):
    graph = make_graph(2)
    path = write_lineage(graph, tmp_path / "new" / "lineage.html")
    text = path.read_text(encoding="utf-8")
    page = Page(_closed(text))
    assert "script" not in page.tags
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert page.tags.count("rect") == len(graph.nodes)
    places = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= places
    for node in graph.nodes:
        assert node.label in page.text
    assert write_lineage(graph, tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_a_name_on_the_page_is_shown_and_not_obeyed(tmp_path):
    text = write_lineage(make_graph(1, EVIL), tmp_path / "lineage.html").read_text(encoding="utf-8")
    assert "<script" not in text
    page = Page(_closed(text))
    assert "script" not in page.tags
    assert "alert('x')" in page.text
    assert "{{ 7 * 7 }}" in page.text


def _closed(text):
    """SVG's empty elements closed as HTML's parser in the tests wants them."""
    return re.sub(r"<(rect|path)\b([^>]*)/>", r"<\1\2></\1>", text)
