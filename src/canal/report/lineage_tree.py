"""A lineage as text: on the terminal, and for Graphviz, whatever characters its names hold.

On the terminal it is a branch a version, below it what it was made from, down to the raw bytes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from canal.registry.provenance.lineage import Fact, Graph, Node
from canal.report.tables import text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.tree import Tree

_DIGEST_DIGITS = 12
_HEX = set("0123456789abcdef")
_IN_LABEL = ("version", "stage", "id")

_SHAPES = {"version": "box", "backbone": "box", "bytes": "cylinder", "run": "ellipse"}
_PLAIN = "note"


def lineage_tree(graph: Graph) -> "Group":
    """Return the tree of a lineage; what stands in it already is named again, not repeated."""
    from rich.console import Group
    from rich.tree import Tree

    chain = graph.chain
    tree = Tree(text(f"Lineage of {chain[0].label}", "bold"), guide_style="dim")
    seen: set[str] = set()
    ids = {node.id for node in chain}
    for node, parent in zip(chain, [*chain[1:], None], strict=True):
        branch = tree.add(_line(node, "bold cyan"))
        seen.add(node.id)
        if parent is not None:
            branch.add(text(f"{_how(graph, node, parent)} {parent.label}"))
        _grow(branch, graph, node, seen, ids)
    return Group(tree, text("digests are shortened; --json has them whole", "dim"))


def shown(value: Fact) -> str:
    """Return a fact as people read it: a digest by its first digits, yes and no in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    words = str(value)
    return words[:_DIGEST_DIGITS] if len(words) in (32, 40, 64) and set(words) <= _HEX else words


def _grow(branch: "Tree", graph: Graph, node: Node, seen: set[str], versions: set[str]) -> None:
    for origin in graph.origins(node.id):
        if origin.id in versions:
            continue
        if origin.id in seen:
            branch.add(text(f"{origin.label} (above)", "dim"))
            continue
        seen.add(origin.id)
        _grow(branch.add(_line(origin, "")), graph, origin, seen, versions)


def _how(graph: Graph, node: Node, parent: Node) -> str:
    return next(edge.kind for edge in graph.edges if (edge.product, edge.origin) == (node.id, parent.id))


def _line(node: Node, style: str) -> Any:
    """Return a node's label with its facts behind it."""
    facts = ", ".join(f"{name} {shown(value)}" for name, value in node.facts.items() if name not in _IN_LABEL)
    return text(node.label, style).append_text(text(f"  {facts}" if facts else "", "dim"))


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
