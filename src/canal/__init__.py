"""canal: an annotator of single-cell RNA-seq data that keeps learning."""

from typing import TYPE_CHECKING, Any

from canal.core import __version__

if TYPE_CHECKING:
    from canal.app.annotating import annotate

__all__ = ["__version__", "annotate"]


def __getattr__(name: str) -> Any:
    """Import `annotate` when it is first asked for, since it brings much with it."""
    if name != "annotate":
        raise AttributeError(f"module 'canal' has no attribute {name!r}")
    from canal.app.annotating import annotate

    return annotate
