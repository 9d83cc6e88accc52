"""Files that another process makes meanwhile: the layout of a map, and the library that draws charts.

Both take seconds and follow from little, so they are kept; a second core makes a missing one while this
process judges and compares.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path

from platformdirs import user_cache_path

from canal.core.files import new_file

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
_WAIT_S = 120


class Beside:
    """A file that a function of this module makes in another process, unless it is there.

    Parameters
    ----------
    path
        The file.
    make
        The function: gets ``path`` and ``arguments``.
    arguments
        Texts.
    """

    def __init__(self, path: Path, make: Callable[..., None], *arguments: str) -> None:
        self.path, self.make, self.arguments = path, make, arguments
        self._child: subprocess.Popen[bytes] | None = None
        if not path.is_file():
            # -P: nothing in the working directory takes the place of a package.
            command = [sys.executable, "-P", "-m", __name__, make.__name__, str(path), *arguments]
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> Path | None:
        """Return the path once the file is there; None where it could not be made."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_WAIT_S)
        return self.path if self.path.is_file() else None


def library_path() -> Path:
    """Return the file of the drawing library in this user's cache; it follows from the installed package."""
    return user_cache_path("canal", appauthor=False) / f"vega-{installed('vl-convert-python')}.js"


def library() -> str:
    """Return the library that draws charts in a browser: Vega, as vl-convert carries it."""
    from vl_convert import javascript_bundle

    bundle: str = javascript_bundle(_SNIPPET)
    return bundle


def make_library(path: Path) -> None:
    """Write the drawing library."""
    with new_file(path) as temporary:
        temporary.write_text(library(), encoding="utf-8")


def make_layout(path: Path, embedding: str, iterations: str) -> None:
    """Write the layout of an embedding (a .npy file) by t-SNE."""
    import numpy as np

    from canal.report.plots import tsne_places

    places = tsne_places(np.load(embedding, allow_pickle=False), int(iterations))
    with new_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, places, allow_pickle=False)


if __name__ == "__main__":
    {one.__name__: one for one in (make_library, make_layout)}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
