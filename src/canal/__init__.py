"""canal: an annotator of single-cell RNA-seq data that keeps learning.

What stands in ``__all__`` is public (CONTRIBUTING.md says for how long); modules below may change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from canal.core import __version__
from canal.core.errors import arguments_named
from canal.core.packages import named_packages

if TYPE_CHECKING:
    from canal.annotation.naming import Naming
    from canal.annotation.options import Options
    from canal.app.annotating import annotate
    from canal.app.recorded import record
    from canal.app.teaching import learn
    from canal.core.errors import CanalError
    from canal.report import plots as pl

__all__ = ["CanalError", "Naming", "Options", "__version__", "annotate", "learn", "pl", "record"]


def __dir__() -> list[str]:
    """Return the public names, which are not imported yet."""
    return __all__


_MODULES = {
    "CanalError": "canal.core.errors",
    "Naming": "canal.annotation.naming",
    "Options": "canal.annotation.options",
    "annotate": "canal.app.annotating",
    "learn": "canal.app.teaching",
    "record": "canal.app.recorded",
}
_PLOTS = "canal.report.plots"
"""``canal.pl``, a module of plots, as scanpy calls its own."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, since it brings much with it."""
    if name == "pl":
        return import_module(_PLOTS)
    if name not in _MODULES:
        raise AttributeError(f"module 'canal' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    return value if isinstance(value, type) else _public(f"canal.{name}")(value)


@contextmanager
def _public(name: str) -> Iterator[None]:
    """Name the extra of a missing package, and in refusals arguments instead of a command's options."""
    with named_packages(name), arguments_named():
        yield
