"""Whether a file that a command makes is whole, by its kind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import pandas as pd


def whole_file(path: Path) -> bool:
    """Return whether a file can be read to its end, and holds what such a file ends with."""
    if not path.is_file():
        return False
    try:
        return _CHECKS[path.suffix](path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None and "manifest.json" in archive.namelist()


def _h5ad(path: Path) -> bool:
    with h5py.File(path) as file:
        return "canal" in file["uns"] and json.loads(file["uns"]["canal"][()]) != {}


def _csv(path: Path) -> bool:
    text = path.read_text()
    return text.endswith("\n") and not pd.read_csv(path).isna().all(axis=1).any()


def _ends_with(end: str) -> object:
    return lambda path: path.read_text().rstrip().endswith(end)


_CHECKS = {
    ".zip": _zip,
    ".canal": _zip,
    ".h5ad": _h5ad,
    ".csv": _csv,
    ".html": _ends_with("</html>"),
    ".pem": _ends_with("-----END PRIVATE KEY-----"),
    ".txt": _ends_with("="),
}
