"""A lineage laid out for a picture: a column a kind, a band of rows a version, the oldest on top."""

from collections.abc import Mapping
from dataclasses import dataclass

from canal.registry.lineage import Graph, Kind, Node

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
GAP_X, GAP_Y = 36, 14
_BAND = 22
_MARGIN = 8


@dataclass(frozen=True)
class Box:
    """Where a node stands: its upper left corner, in units of the picture."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True)
class Line:
    """A curve from an origin to what came of it, as the path of an SVG, and what it means."""

    path: str
    kind: str


@dataclass(frozen=True)
class Picture:
    """Boxes and lines, and how large they are together."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    width: int
    height: int


def lay_out(graph: Graph) -> Picture:
    """Return a picture of the graph in which no two boxes overlap.

    A lineage is a chain, so each version has a band to itself: what it brings stands there, from its raw
    bytes on the left to the version on the right. What an older version brought is drawn to, not repeated.
    """
    boxes: dict[str, Box] = {}
    top = _MARGIN
    for version in reversed(graph.chain):
        rows: dict[int, int] = {}
        for node in _brought(graph, version):
            if node.id not in boxes:
                column = COLUMNS[node.kind]
                row = rows.get(column, 0)
                rows[column] = row + 1
                x, y = _MARGIN + column * (WIDTH + GAP_X), top + row * (HEIGHT + GAP_Y)
                boxes[node.id] = Box(node, x, y)
        top += max(rows.values()) * (HEIGHT + GAP_Y) + _BAND
    lines = [
        Line(_path(boxes[edge.origin], boxes[edge.product]), edge.kind)
        for edge in graph.edges
        if edge.origin in boxes and edge.product in boxes
    ]
    width = 2 * _MARGIN + (max(COLUMNS.values()) + 1) * (WIDTH + GAP_X) - GAP_X
    return Picture(tuple(boxes.values()), tuple(lines), width, top - _BAND - GAP_Y + _MARGIN)


def _brought(graph: Graph, version: Node) -> list[Node]:
    """Return a version and all that it comes from but other versions, nearest first."""
    found, left = {version.id: version}, [version]
    while left:
        for node in graph.origins(left.pop(0).id):
            if node.id not in found and node.kind not in ("version", "backbone"):
                found[node.id] = node
                left.append(node)
    return list(found.values())


def _path(origin: Box, product: Box) -> str:
    """Return a curve between two boxes that leaves and enters them where they face each other."""
    if origin.x == product.x:
        x = origin.x + WIDTH // 2
        upper, lower = sorted((origin, product), key=lambda box: box.y)
        start, end = upper.y + HEIGHT, lower.y
        return f"M{x} {start} L{x} {end}" if origin is upper else f"M{x} {end} L{x} {start}"
    if origin.x < product.x:
        x1, x2 = origin.x + WIDTH, product.x
    else:
        x1, x2 = origin.x, product.x + WIDTH
    y1, y2 = origin.y + HEIGHT // 2, product.y + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"
