"""Arrays of whole numbers and of float64 in safetensors files: equal arrays, equal bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from canal.core.digests import canonical_json
from canal.core.errors import SumsError
from canal.core.files import parse_json, usual_rights

_ABOUT = "about"


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None
) -> None:
    """Write arrays, and texts about them, to a safetensors file."""
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    # One text of all: safetensors writes several in an order that it draws anew each time.
    with usual_rights(path):
        save_file(whole, path, metadata={_ABOUT: canonical_json(dict(about))} if about else None)


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, which must be just the named ones.

    Raises
    ------
    SumsError
        If the file is missing or damaged, or holds other arrays.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
    if set(found) != set(names):
        raise SumsError(f"{path} must hold {sorted(names)}, found {sorted(found)}; restore the model")
    return dict(found)


def read_about(path: Path) -> dict[str, str]:
    """Return the texts that `write_arrays` wrote beside the arrays; raises `SumsError` as `read_arrays`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {})[_ABOUT])
            return {str(name): str(text) for name, text in about.items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise SumsError(f"{path} is missing or damaged ({error}); restore the model") from error
