"""Where a revision of canal defines a name: modules move from one revision to the next, names rarely do.

Imported by scripts that run with some revision's ``src`` on the path: here and in tests/released.
"""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any


def module_of(name: str) -> Any:
    """Import the one module of canal that defines a function, class or constant at its top."""
    spec = importlib.util.find_spec("canal")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    defined = re.compile(rf"^(def |class ){name}\b|^{name}\b.* = ", re.MULTILINE)
    found = [path for path in sorted(root.rglob("*.py")) if defined.search(path.read_text(encoding="utf-8"))]
    assert len(found) == 1, f"{name} is defined in {found}"
    parts = found[0].relative_to(root.parent).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def by_name(name: str) -> Any:
    """Return what canal defines by this name."""
    return getattr(module_of(name), name)
