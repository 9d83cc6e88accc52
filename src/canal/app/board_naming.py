"""The worklist of novel groups: the sheets of `canal novel` in a project, named in the browser."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.board_access import RefusedError
from canal.app.board_index import Index
from canal.core.digests import json_digest
from canal.core.errors import CanalError, DataError
from canal.core.files import new_file
from canal.core.packages import lazy_module

if TYPE_CHECKING:
    from canal.annotation import sheet
    from canal.io import writer
else:  # they bring the libraries that read cells
    sheet, writer = lazy_module("canal.annotation.sheet"), lazy_module("canal.io.writer")

Document = dict[str, Any]

_ID_DIGITS = 16
_NEVER = ("mlartifacts", "data", "prepared", "incoming", "models", "metrics")
"""Folders of a project that are the pipeline's own."""


def sheets_in(root: Path) -> list[Path]:
    """Return the labelling sheets of `canal novel` in a project folder and in its own folders, by name."""
    found = []
    with os.scandir(root) as entries:
        folders = [root, *(Path(one.path) for one in entries if one.is_dir(follow_symlinks=False))]
    for folder in folders:
        if folder.name.startswith(".") or folder.name in _NEVER:
            continue
        found += [one for one in folder.glob("*.cells.json") if one.is_file()]
    sheets = [one.with_name(f"{one.name.removesuffix('.cells.json')}.csv") for one in found]
    return sorted(one for one in sheets if one.is_file())


def naming_page(index: Index) -> Document:
    """Return the sheets of novel groups in the project, those with nameless groups first."""
    shown = [sheet_view(index, path) for path in sheets_in(index.layout.root)]
    return {"sheets": sorted(shown, key=lambda one: (not one["open"], one["name"]))}


def sheet_view(index: Index, path: Path) -> Document:
    """Return a sheet with its groups; of one that cannot be read why."""
    place = path.relative_to(index.layout.root).as_posix()
    try:
        groups, error = sheet.groups_of(path), ""
    except CanalError as refused:
        groups, error = [], str(refused)
    return {
        "id": json_digest(place)[:_ID_DIGITS],
        "name": place,
        "path": path,
        "groups": groups,
        "open": sum(not one["cell_type"].strip() for one in groups),
        "error": error,
    }


def found_sheet(index: Index, id_: str) -> Document:
    """Return the sheet of an id in an address.

    Raises
    ------
    RefusedError
        If there is none.
    """
    found = (sheet_view(index, one) for one in sheets_in(index.layout.root))
    chosen = next((one for one in found if one["id"] == id_), None)
    if chosen is None:
        raise RefusedError(404, "there is no such sheet any more: the list of sheets names all")
    return chosen


def learned_types(index: Index) -> list[str]:
    """Return the types that any version knows, by name."""
    return sorted({name for one in index.versions() for name in index.evaluation(one).get("labels", ())})


def fill(path: Path, types: Mapping[str, str]) -> None:
    """Write the types that a person gave to groups into their sheet, atomically; other lines stay.

    Parameters
    ----------
    path
        The CSV file.
    types
        The type of each group, by its number as the sheet has it; empty: not named.

    Raises
    ------
    DataError
        If there is no such group, the sheet is malformed, or it cannot be written; it is as it was.
    """
    lines = sheet.groups_of(path)
    if unknown := sorted(types.keys() - {line["group"] for line in lines}):
        raise DataError(f"{path}: there is no group {unknown[0][:20]!r}")
    for line in lines:
        line["cell_type"] = given = types.get(line["group"], line["cell_type"]).strip()
        if writer.as_text(given) != given:
            raise DataError(f"{given[:80]!r}: a spreadsheet would take this name for a formula: give another")
    try:
        with new_file(path, path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.DictWriter(stream, sheet.COLUMNS, extrasaction="ignore", lineterminator="\n")
            rows.writeheader()
            rows.writerows(lines)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error})") from error
