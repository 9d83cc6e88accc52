"""Which module imports which: no circles, and none beside the rooms. import-linter holds the arrows."""

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "canal").rglob("*.py"))
}


def imported(path):
    """Yield the modules of canal that a module imports, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{one.name}" for one in node.names}
            yield from (names & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


def test_no_module_is_imported_by_what_it_imports():
    graph = nx.DiGraph(
        (name, other) for name, path in MODULES.items() for other in imported(path) if other in MODULES
    )
    assert graph.number_of_edges() > 1000
    assert [sorted(one) for one in nx.strongly_connected_components(graph) if len(one) > 1] == []


def test_no_module_stands_beside_the_rooms():
    assert [path.name for path in (ROOT / "canal").glob("*.py")] == ["__init__.py"]


def test_no_module_is_longer_than_400_lines():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lines.items() if n > 400} == {}
