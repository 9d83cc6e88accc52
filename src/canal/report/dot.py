"""A lineage as Graphviz text, whatever characters its names hold."""

from collections.abc import Iterator

from canal.registry.lineage import Graph, Node
from canal.report.lineage_tree import shown

_SHAPES = {"version": "box", "backbone": "box", "bytes": "cylinder", "run": "ellipse"}
_PLAIN = "note"


def dot(graph: Graph) -> str:
    """Return the graph as a digraph in DOT; arrows lead from an origin to what came of it."""
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
    """Return a node's label and facts, a line each, by the escape that Graphviz reads as a line break."""
    lines = [node.label, *(f"{name}: {shown(value)}" for name, value in node.facts.items())]
    return '"' + "\\n".join(quoted(line)[1:-1] for line in lines) + '"'
