"""canal: an annotator of single-cell RNA-seq data that keeps learning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canal.api import annotate

__version__ = "0.1.0"
__all__ = ["__version__", "annotate"]


def __getattr__(name: str) -> Any:
    """Import `annotate` when it is first asked for, since it brings much with it."""
    if name != "annotate":
        raise AttributeError(f"module 'canal' has no attribute {name!r}")
    from canal.api import annotate

    return annotate
