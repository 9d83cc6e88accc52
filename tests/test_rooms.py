"""Which module imports which: no circles, and none beside the rooms; what texts call modules is there.

import-linter holds the arrows.
"""

import ast
import re
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
    assert sorted(path.name for path in (ROOT / "canal").glob("*.py")) == ["__init__.py", "__main__.py"]


def test_no_module_is_longer_than_400_lines():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lines.items() if n > 400} == {}


APART = {"canal.runtime.warm_python": "a program of its own, started by its path"}
"""Modules that one other imports and has room for, and why they are two."""


def test_no_module_is_a_section_of_the_only_one_that_imports_it():
    """Those of `cli` are one for each group of commands; `app` names its own, so they count as two."""
    importers = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for other in set(imported(path)) & MODULES.keys():
            importers[other].add(name)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    sections = {
        name: importer
        for name, (importer, *more) in ((name, sorted(found)) for name, found in importers.items() if found)
        if not more
        and name.rpartition(".")[0] == importer.rpartition(".")[0] != "canal.cli"
        and lines[name] + lines[importer] <= 400
    }
    assert sections.keys() == APART.keys()


def defined(path):
    """Return the names that a module defines or imports at its top."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for one in node.body if isinstance(node, ast.If | ast.Try) else [node]:
            if isinstance(one, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in one.names}
            elif isinstance(one, ast.Assign | ast.AnnAssign):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            elif hasattr(one, "name"):
                names.add(one.name)
    return names


def test_what_docs_and_docstrings_call_by_its_dotted_name_is_there():
    texts = [*MODULES.values(), *(ROOT.parent / "docs").rglob("*.md"), *ROOT.parent.glob("*.md")]
    rooms = "|".join(path.name for path in (ROOT / "canal").iterdir() if path.is_dir())
    dotted = re.compile(rf"(?<![\w./-])canal\.(?:{rooms})(?:\.[A-Za-z]\w*)+")
    known, gone, n = {}, [], 0
    for path in texts:
        if path.name == "CHANGELOG.md":  # tells of the past
            continue
        for name in dotted.findall(path.read_text(encoding="utf-8")):
            n += 1
            module = name
            while module not in MODULES:
                module = module.rpartition(".")[0]
            rest = name.removeprefix(module).lstrip(".").split(".")[0]
            if rest and rest not in known.setdefault(module, defined(MODULES[module])):
                gone.append(f"{path.name}: {name}")
    assert n > 300
    assert gone == []
