"""A lineage as a static offline HTML page (picture and facts), as a terminal tree, and as Graphviz DOT.

The picture has a column for each kind of node and a band of rows for each version, the oldest on top.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from canal.core.progress import percent
from canal.report.canvas import write_html
from canal.report.listing import Branch, text

if TYPE_CHECKING:
    from canal.registry.provenance.lineage import Fact, Graph, Kind, Node

_LETTERS = 40
"""Letters that fit into a box at most; a longer name is whole below the picture and in the tooltip."""
_LETTER = 7
"""Units of the picture that a letter takes."""

_TITLES = {
    "version": "Versions",
    "backbone": "Backbones",
    "data": "Data sets",
    "split": "Splits",
    "verdict": "Verdicts of the gate",
    "panel": "Gene panels",
    "source": "Sources, as declared",
    "bytes": "Bytes they began with",
    "run": "MLflow runs",
}

COLUMNS: Mapping[Kind, int] = {
    "bytes": 0,
    "source": 1,
    "data": 2,
    "split": 3,
    "verdict": 3,
    "panel": 3,
    "version": 4,
    "backbone": 4,
    "run": 5,
}
WIDTH, HEIGHT = 158, 46
"""Of a box of short names; all are as wide as the longest name needs."""
GAP_X, GAP_Y = 36, 14
_BAND = 22
_HANDED = {"keeps bank cells of": "bank", "keeps the sums of": "sums"}  # BANK, SUMS of provenance.lineage
_BESIDE = {"bank": 26, "sums": -26}
"""Units beside the line of the version itself."""
_MARGIN = 8


@dataclass(frozen=True)
class Box:
    """The position of a node: its upper left corner, in units of the picture."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True)
class Line:
    """A curve from an origin to a product, as an SVG path, and its meaning."""

    path: str
    kind: str

    @property
    def what(self) -> str:
        """What is handed on from version to version: ``bank``, ``sums``, or empty for any other line."""
        return _HANDED.get(self.kind, "")


@dataclass(frozen=True)
class Picture:
    """Boxes and lines, and the size of the picture."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: int
    height: int
    box_width: int = WIDTH


def write_lineage(graph: Graph, out: Path) -> Path:
    """Write the page of a lineage to ``out`` and return it; the same graph gives the same bytes."""
    picture, places = lay_out(graph), {node.id: f"n{i}" for i, node in enumerate(graph.nodes)}
    values = {
        "title": graph.chain[0].label,
        "picture": picture,
        "boxes": [_box(box, places) for box in picture.boxes],
        "columns": _columns(picture),
        "tables": _tables(graph, places),
        "width": picture.box_width,
        "height": HEIGHT,
        "kinds": {line.what for line in picture.lines},
        "withdrawn": any(_withdrawn(node) for node in graph.nodes),
    }
    return write_html("lineage.html", out, values)


def _box(box: Box, places: dict[str, str]) -> dict[str, Any]:
    """Return the template's values for a box."""
    node = box.node
    return {
        "x": box.x,
        "y": box.y,
        "kind": f"{node.kind} withdrawn" if _withdrawn(node) else node.kind,
        "place": places[node.id],
        "label": _cut(_name(node)),
        "below": _cut(_gist(node)),
        "whole": "\n".join([node.label, *(f"{name}: {value}" for name, value in node.facts.items())]),
    }


def _name(node: Node) -> str:
    """Return a node's label; of a version without the model's name, which is the same in a lineage."""
    if node.kind != "version":
        return node.label
    return f"{node.facts.get('version', 'elsewhere')} {node.facts['stage']}"


def _withdrawn(node: Node) -> bool:
    """Whether cells were taken out of a source, or a version was made without some."""
    return any(node.facts.get(name) for name in ("excluded cells", "excluded batches", "without cells of"))


def _gist(node: Node) -> str:
    """Return the most informative line about a node, shown beside its label."""
    facts = node.facts
    if node.kind in ("version", "backbone"):
        average = facts.get("average accuracy")
        accuracy = "" if average is None else f", {percent(float(average))} right"
        return f"{facts.get('aliases') or 'key ' + shown(facts['key'])}{accuracy}"
    if _withdrawn(node):
        return "cells taken out"
    if node.kind == "split" and "train" in facts:
        return f"{shown(facts['train'])} / {shown(facts['validation'])} / {shown(facts['test'])} cells"
    if node.kind == "verdict" and "passed" in facts:
        return "passed" if facts["passed"] else "refused"
    if node.kind == "data" and "cells" in facts:
        return f"{shown(facts['cells'])} cells"
    if node.kind == "source":
        return str(facts["values"])
    if node.kind == "run":
        return str(facts.get("time", ""))[: len("2026-01-02T03:04")].replace("T", " ")
    return f"sha256 {shown(facts['sha256'])}"


def _cut(words: str) -> str:
    """Return a name shortened in the middle to fit into a box."""
    half = _LETTERS // 2
    return words if len(words) <= _LETTERS else f"{words[:half]}…{words[1 - half :]}"


def _columns(picture: Picture) -> list[dict[str, Any]]:
    """Return a heading for each column that is not empty."""
    names = {
        "bytes": "raw bytes",
        "source": "source",
        "data": "data set",
        "split": "split, verdict",
        "version": "version",
        "run": "run",
    }
    found = {box.node.kind: box.x for box in picture.boxes}
    return [{"name": name, "x": found[kind]} for kind, name in names.items() if kind in found]


def _tables(graph: Graph, places: dict[str, str]) -> list[dict[str, Any]]:
    """Return every node with all its facts, by kind."""
    found, labels = [], {node.id: node.label for node in graph.nodes}
    for kind, title in _TITLES.items():
        nodes = [node for node in graph.nodes if node.kind == kind]
        if nodes:
            rows = [{"place": places[node.id], "label": node.label, "facts": dict(node.facts), "origins": [
                {"kind": edge.kind, "label": labels[edge.origin], "place": places[edge.origin]}
                for edge in graph.edges if edge.product == node.id
            ]} for node in nodes]  # fmt: skip
            found.append({"title": title, "rows": rows})
    return found


def lay_out(graph: Graph) -> Picture:
    """Return a picture of the graph in which no two boxes overlap.

    A lineage is a chain, so each version has a band to itself: what it brings stands there, from its raw
    bytes on the left to the version on the right. What an older version brought is drawn to, not repeated.
    """
    boxes: dict[str, Box] = {}
    top = _MARGIN
    longest = max(len(_cut(words)) for node in graph.nodes for words in (_name(node), _gist(node)))
    wide = max(WIDTH, 18 + _LETTER * longest)
    for version in reversed(graph.chain):
        rows: dict[int, int] = {}
        for node in _brought(graph, version):
            if node.id not in boxes:
                column = COLUMNS[node.kind]
                row = rows.get(column, 0)
                rows[column] = row + 1
                x, y = _MARGIN + column * (wide + GAP_X), top + row * (HEIGHT + GAP_Y)
                boxes[node.id] = Box(node, x, y)
        top += max(rows.values()) * (HEIGHT + GAP_Y) + _BAND
    lines = [
        Line(_path(boxes[edge.origin], boxes[edge.product], boxes.values(), wide, edge.kind), edge.kind)
        for edge in graph.edges
        if edge.origin in boxes and edge.product in boxes
    ]
    width = 2 * _MARGIN + (max(COLUMNS.values()) + 1) * (wide + GAP_X) - GAP_X
    return Picture(tuple(boxes.values()), tuple(lines), width, top - _BAND - GAP_Y + _MARGIN, wide)


def _brought(graph: Graph, version: Node) -> list[Node]:
    """Return a version and all its origins except other versions, nearest first."""
    found, left = {version.id: version}, [version]
    while left:
        for node in graph.origins(left.pop(0).id):
            if node.id not in found and node.kind not in ("version", "backbone"):
                found[node.id] = node
                left.append(node)
    return list(found.values())


def _path(origin: Box, product: Box, boxes: Collection[Box], wide: int, kind: str) -> str:
    """Return a curve between two boxes that leaves and enters them on facing sides, and around others."""
    if origin.x == product.x:
        x = origin.x + wide // 2 + _BESIDE.get(_HANDED.get(kind, ""), 0)
        upper, lower = sorted((origin, product), key=lambda box: box.y)
        if any(box.x == origin.x and upper.y < box.y < lower.y for box in boxes):
            side, y1, y2 = origin.x + wide, origin.y + HEIGHT // 2, product.y + HEIGHT // 2
            return f"M{side} {y1} C{side + GAP_X // 2} {y1} {side + GAP_X // 2} {y2} {side} {y2}"
        start, end = upper.y + HEIGHT, lower.y
        return f"M{x} {start} L{x} {end}" if origin is upper else f"M{x} {end} L{x} {start}"
    if origin.x < product.x:
        x1, x2 = origin.x + wide, product.x
    else:
        x1, x2 = origin.x, product.x + wide
    y1, y2 = origin.y + HEIGHT // 2, product.y + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"


_DIGEST_DIGITS = 12
_HEX = set("0123456789abcdef")
_IN_LABEL = ("version", "stage", "id")

_SHAPES = {"version": "box", "backbone": "box", "bytes": "cylinder", "run": "ellipse"}
_PLAIN = "note"


def lineage_tree(graph: Graph) -> Group:
    """Return the tree of a lineage; nodes that occur again are named, not expanded."""
    chain = graph.chain
    tree = Branch(text(f"Lineage of {chain[0].label}", "bold"))
    seen: set[str] = set()
    ids = {node.id for node in chain}
    labels = {node.id: node.label for node in chain}
    for node in chain:
        branch = tree.add(_line(node, "bold cyan"))
        seen.add(node.id)
        for edge in graph.edges:
            if edge.product == node.id and edge.origin in ids:
                branch.add(text(f"{edge.kind} {labels[edge.origin]}"))
        _grow(branch, graph, node, seen, ids)
    return Group(tree, text("digests are shortened; --json has them whole", "dim"))


def shown(value: Fact) -> str:
    """Return a fact in readable form: digests shortened, yes and no in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    words = str(value)
    return words[:_DIGEST_DIGITS] if len(words) in (32, 40, 64) and set(words) <= _HEX else words


def _grow(branch: Branch, graph: Graph, node: Node, seen: set[str], versions: set[str]) -> None:
    for origin in graph.origins(node.id):
        if origin.id in versions:
            continue
        if origin.id in seen:
            branch.add(text(f"{origin.label} (above)", "dim"))
            continue
        seen.add(origin.id)
        _grow(branch.add(_line(origin, "")), graph, origin, seen, versions)


def _line(node: Node, style: str) -> Any:
    """Return a node's label followed by its facts."""
    facts = ", ".join(f"{name} {shown(value)}" for name, value in node.facts.items() if name not in _IN_LABEL)
    return text(node.label, style).append_text(text(f"  {facts}" if facts else "", "dim"))


def dot(graph: Graph) -> str:
    """Return the graph in DOT; arrows lead from origins to products."""
    return "".join(f"{line}\n" for line in _lines(graph))


def quoted(text: str) -> str:
    r"""Return ``text`` as a quoted string of DOT: it shows as it is, each line break as a space.

    In a quoted string ``\"`` is a quote; in a label ``\\`` is a backslash, and a lone one would begin an
    escape such as ``\N``, the node's name. What no terminal shows is left out.
    """
    visible = "".join(one if one.isprintable() else " " for one in text)
    escaped = visible.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _lines(graph: Graph) -> Iterator[str]:
    yield "digraph lineage {"
    yield '  rankdir="LR";'
    yield '  node [fontname="Helvetica", fontsize=10];'
    for node in graph.nodes:
        yield f"  {quoted(node.id)} [shape={_SHAPES.get(node.kind, _PLAIN)}, label={_label(node)}];"
    for edge in graph.edges:
        yield f"  {quoted(edge.origin)} -> {quoted(edge.product)} [label={quoted(edge.kind)}];"
    yield "}"


def _label(node: Node) -> str:
    """Return a node's label and facts, one a line, with Graphviz's escape for line breaks."""
    lines = [node.label, *(f"{name}: {shown(value)}" for name, value in node.facts.items())]
    return '"' + "\\n".join(quoted(line)[1:-1] for line in lines) + '"'
