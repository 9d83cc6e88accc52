"""A source's declaration made from what a person said on the command line."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import ConfigError, SourceError


def declare(
    file: Path, wishes: Mapping[str, Any], label_map: Path | None, root: Path | None
) -> dict[str, Any]:
    """Return the params.yaml entry of an h5ad file on disk.

    The path is kept relative to the project where the file lies inside it; wishes that are None are left out.

    Raises
    ------
    SourceError
        If there is no such file.
    ConfigError
        If the label map is no CSV of two columns.
    """
    if not file.is_file():
        found = "is no file" if file.exists() else "not found"
        raise SourceError(f"{file} {found}; give the path of an h5ad file")
    place, project = file.resolve(), (root or Path.cwd()).resolve()
    inside = place.is_relative_to(project)
    entry: dict[str, Any] = {
        "path": (place.relative_to(project) if inside else place).as_posix(),
        "sha256": file_digest(file),
    }
    entry |= {name: value for name, value in wishes.items() if value is not None}
    if label_map is not None:
        entry["label_map"] = read_label_map(label_map)
    return entry


def trimmed_labels(file: Path, column: str, given: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Return the entries that a label map needs for labels with blanks at their ends.

    Parameters
    ----------
    file
        An h5ad file.
    column
        The column of obs that holds the labels.
    given
        The map that a person gave, without blanks; without one the entries of all labels are returned, if
        any label has such blanks.
    """
    from canal.io.h5ad import open_h5ad

    with open_h5ad(file) as opened:
        if column not in opened.obs_columns:
            return {}  # the gate says so
        labels = [label for label in opened.obs_column(column).unique() if label.strip()]
    if given is not None:
        known = (label for label in labels if label not in given and label.strip() in given)
        return {label: given[label.strip()] for label in known}
    if all(label == label.strip() for label in labels):
        return {}
    return {label: label.strip() for label in sorted(labels)}


def read_label_map(path: Path) -> dict[str, str | None]:
    """Read a CSV of published label and cell type; an empty cell type drops the label."""
    if not path.is_file():
        raise ConfigError(f"label map {path} not found")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    wrong = [row for row in rows if len(row) != 2 or not row[0].strip()]
    if wrong or not rows:
        found = f"{len(wrong)} other line(s), such as {wrong[0]}" if wrong else "an empty file"
        raise ConfigError(f"label map {path} must hold lines of two columns, label,cell type; found {found}")
    return {label.strip(): cell_type.strip() or None for label, cell_type in rows}
