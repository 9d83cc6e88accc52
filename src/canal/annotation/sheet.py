"""The labelling sheet: a line a group of novel cells, to be given a type by a person; beside it the cells.

``SHEET.csv`` is for people. ``SHEET.cells.json`` holds the cells of each group and where they are from; its
digest stands in every line of the sheet, so a sheet cannot be taken for cells that it was not made for.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from canal.annotation.labelled import Labelled
from canal.annotation.novel import Group, Novel, Wishes
from canal.core.digests import canonical_json, file_digest, json_digest
from canal.core.errors import DataError
from canal.core.files import new_file, read_json
from canal.io.writer import H5adWriter, as_text, writing

if TYPE_CHECKING:
    from canal.annotation.reading import Reading

FORMAT = 1
COLUMNS = (
    *("group", "n_cells", "top_genes", "nearest_types", "batches", "purity"),
    *("cell_type", "sheet"),
)
_NEEDED = ("group", "cell_type", "sheet")
_ID_DIGITS = 16
_DIGITS = 20
_BATCHES_TOLD = 5


@dataclass(frozen=True)
class Sheet:
    """A sheet that a person filled in.

    Attributes
    ----------
    path : Path
    sha256 : str
        Of the sheet as it is.
    about : dict
        What `write_sheet` wrote beside it: ``file``, ``model``, ``batch``, ``asked``, ``groups``.
    types : dict
        The type given to each group, by its number; groups without one are left out.
    """

    path: Path
    sha256: str
    about: Mapping[str, Any]
    types: dict[int, str]

    @property
    def labelled(self) -> Path:
        """Where the labelled file lay, seen from the sheet."""
        return self.path.parent / str(self.about["file"]["path"])

    def cells(self) -> list[tuple[int, str, int]]:
        """Return (row, cell's name, group) of every cell of a group that has a type, by row."""
        groups = {int(one["group"]): one for one in self.about["groups"]}
        found = [
            (int(row), str(name), number)
            for number in self.types
            for row, name in zip(groups[number]["rows"], groups[number]["cells"], strict=True)
        ]
        return sorted(found)


def cells_file(sheet: Path) -> Path:
    """Return the path of the file that holds a sheet's cells."""
    return sheet.with_suffix(".cells.json")


def check_sheet(sheet: Path, overwrite: bool) -> None:
    """Raise unless a sheet may be written.

    Raises
    ------
    DataError
        If its name is not that of a CSV file, or it or the file beside it is there and not to be replaced.
    """
    if sheet.suffix != ".csv":
        raise DataError(f"{sheet}: the labelling sheet is a CSV file: name it so")
    there = [path for path in (sheet, cells_file(sheet)) if path.exists()]
    if there and not overwrite:
        raise DataError(
            f"{there[0]} is there already, maybe filled in: give another name, or use --overwrite"
        )


def write_sheet(sheet: Path, labelled: Labelled, sha256: str, novel: Novel, wishes: Wishes) -> None:
    """Write a sheet to be filled in, and the cells of its groups beside it.

    Parameters
    ----------
    sheet
        A CSV file.
    labelled
        The file that the cells are from.
    sha256
        Its digest.
    novel, wishes
        The groups, and how they were made.

    Raises
    ------
    DataError
        If they cannot be written.
    """
    names = labelled.file.obs_names()
    about = {
        "format": FORMAT,
        "file": {"path": _seen_from(sheet.parent, labelled.path), "sha256": sha256},
        "model": labelled.record["model"],
        "record": labelled.record.get("id"),
        "batch": novel.batch,
        "asked": {
            "min_cells": wishes.min_cells,
            "resolution": wishes.resolution,
            "seed": wishes.seed,
        },
        "groups": [
            {"group": one.number, "rows": list(one.rows), "cells": [names[row] for row in one.rows]}
            for one in novel.groups
        ],
    }
    try:
        with new_file(cells_file(sheet), labelled.path) as temporary:
            temporary.write_text(canonical_json(about) + "\n", encoding="utf-8")
        with (
            new_file(sheet, labelled.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(_line(one, json_digest(about)[:_ID_DIGITS]) for one in novel.groups)
    except OSError as error:
        raise DataError(f"{sheet} cannot be written ({error.strerror or error})") from error


def read_sheet(sheet: Path) -> Sheet:
    """Read a sheet that a person filled in.

    Raises
    ------
    DataError
        If it or the file beside it is missing or no sheet, they do not belong together, a line names no
        group or one twice, or no group was given a type.
    """
    lines = _lines(sheet)
    about = _about(sheet)
    known = {int(one["group"]) for one in about["groups"]}
    identity = json_digest(about)[:_ID_DIGITS]
    types: dict[int, str] = {}
    seen: set[int] = set()
    for line in lines:
        number = _number(sheet, line["group"], known, seen)
        if line["sheet"].strip() != identity:
            raise DataError(
                f"{sheet}: the line of group {number} is from another sheet ({line['sheet']!r}) than "
                f"{cells_file(sheet).name} ({identity}): keep the column `sheet` as it was, and "
                "both files of one sheet together"
            )
        if given := line["cell_type"].strip():
            types[number] = given
    if not types:
        raise DataError(
            f"{sheet}: none of its {len(lines)} groups was given a type: fill in the column cell_type "
            "of those that you know"
        )
    return Sheet(sheet, file_digest(sheet), about, types)


def _seen_from(folder: Path, file: Path) -> str:
    """Return the way from a folder to a file: sheets hold no absolute paths, for folders are moved."""
    way = os.path.relpath(file.resolve(), folder.resolve())
    return Path(way).as_posix().encode("utf-8", "replace").decode()


def _line(group: Group, identity: str) -> list[str]:
    batches = [f"{name}: {n}" for name, n in list(group.batches.items())[:_BATCHES_TOLD]]
    more = len(group.batches) - len(batches)
    return [
        str(group.number),
        str(len(group.rows)),
        as_text(" ".join(gene.gene for gene in group.genes)),
        as_text(", ".join(f"{name} {share:.0%}" for name, share in group.nearest.items())),
        as_text(", ".join(batches) + (f" and {more} more" if more > 0 else "")),
        "" if group.purity is None else f"{group.purity:.2f}",
        "",
        identity,
    ]


def _lines(sheet: Path) -> list[dict[str, str]]:
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{sheet}: no such file; `canal novel LABELLED.h5ad -o {sheet.name}` writes one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{sheet} cannot be read as a CSV file in UTF-8 ({error}): save it as such"
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # what spreadsheets write depends on the country
    try:
        rows = [
            row
            for row in csv.DictReader(StringIO(text, newline=""), delimiter=delimiter)
            if any(row.values())
        ]
    except csv.Error as error:
        raise DataError(f"{sheet} is no CSV file ({error})") from error
    there = list(rows[0]) if rows else []
    if missing := [name for name in _NEEDED if name not in there]:
        raise DataError(
            f"{sheet}: expected the columns {', '.join(_NEEDED)} and a line a group, as `canal novel` writes "
            f"them; missing are {', '.join(missing)}"
        )
    return [{name: row[name] or "" for name in _NEEDED} for row in rows]


def _about(sheet: Path) -> dict[str, Any]:
    path = cells_file(sheet)
    try:
        about = read_json(path)
        canonical_json(about).encode()  # no NaN, and no half of a character, which have no digest
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; it holds the cells of {sheet.name}, and `canal novel` wrote both: keep "
            "them together, under one name"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): write the sheet again with `canal novel`"
        ) from error
    if not _whole(about):
        raise DataError(
            f"{path} is not what `canal novel` writes, or is of another format than {FORMAT}: write "
            "the sheet again"
        )
    result: dict[str, Any] = about
    return result


def _whole(about: Any) -> bool:
    """Return whether a document is what `write_sheet` writes, as far as it is looked up by."""
    try:
        return bool(
            about["format"] == FORMAT
            and all(isinstance(about["file"][name], str) for name in ("path", "sha256"))
            and isinstance(about["model"], dict)
            and isinstance(about["asked"], dict)
            and (about["batch"] is None or isinstance(about["batch"], str))
            and all(
                isinstance(one["group"], int)
                and len(one["rows"]) == len(one["cells"])
                and all(isinstance(row, int) for row in one["rows"])
                for one in about["groups"]
            )
        )
    except (TypeError, KeyError):
        return False


def _number(sheet: Path, text: str, known: set[int], seen: set[int]) -> int:
    number = int(text) if text.strip().isdecimal() and len(text) < _DIGITS else -1
    if number not in known:
        raise DataError(
            f"{sheet}: there is no group {text.strip()[:20]!r}; the groups are 1 to {max(known, default=0)}"
        )
    if number in seen:
        raise DataError(f"{sheet}: group {number} has two lines; leave one")
    seen.add(number)
    return number


# Cells of a labelled file that a person named, written as the h5ad file that a stage is learned from.

NOTE = "canal_novel"
"""The name in uns of what says where a lesson's cells are from."""

LABEL, BATCH, GROUP = "cell_type", "batch", "canal_group"
_EXAMPLES = 5


@dataclass(frozen=True)
class Lesson:
    """What has to be declared of a file to learn from: its units, and whether it has a column of batches."""

    values: str
    batch: bool


def write_lesson(
    target: Path,
    labelled: Labelled,
    reading: Reading,
    sheet: Sheet,
    note: Mapping[str, Any],
    chunk_cells: int = 500,
) -> Lesson:
    """Write the cells that were given a type, whole or not at all; memory does not grow with cells.

    Values are those of the layer that was labelled, in its own units: counts as they are, logarithms as they
    are (those of counts that were scaled to another depth become counts per 10,000). Genes are all genes of
    the file, called as the model calls them. obs holds `LABEL`, `GROUP` and, where batches are known,
    `BATCH`; uns[`NOTE`] holds ``note`` as JSON.

    Raises
    ------
    DataError
        If the file does not hold the cells that the sheet names, or the new one cannot be written.
    """
    cells = sheet.cells()
    _check_cells(labelled, cells)
    rows = np.array([row for row, _, _ in cells], dtype=np.int64)
    whole = reading.of_all_genes()
    with (
        writing(target),
        new_file(target, labelled.path) as temporary,
        H5adWriter(temporary, len(whole.panel)) as writer,
    ):
        for first, block, _ in whole.values(chunk_cells):
            start, stop = np.searchsorted(rows, (first, first + block.shape[0]))
            if start == stop:
                continue
            chosen = block[rows[start:stop] - first]
            chosen.eliminate_zeros()
            chosen.sort_indices()
            writer.append(chosen)
        obs = _obs(labelled, sheet, cells, rows)
        writer.finish(obs, _var(whole), {NOTE: canonical_json(note)})
    return Lesson(reading.units.values, BATCH in obs)


def _check_cells(labelled: Labelled, cells: list[tuple[int, str, int]]) -> None:
    names = labelled.file.obs_names()
    wrong = [name for row, name, _ in cells if not (0 <= row < len(names) and names[row] == name)]
    twice = len(cells) - len({row for row, _, _ in cells})
    if wrong or twice:
        found = f"{len(wrong):,} of {len(cells):,} cells are not where the sheet says"
        found = f"{found}, such as {wrong[:_EXAMPLES]}" if wrong else f"{twice:,} cells are in two groups"
        raise DataError(f"{labelled.path}: {found}; write the sheet again with `canal novel`")


def _obs(
    labelled: Labelled, sheet: Sheet, cells: list[tuple[int, str, int]], rows: np.ndarray
) -> pd.DataFrame:
    groups = [number for _, _, number in cells]
    obs = pd.DataFrame(
        {
            LABEL: pd.Categorical([sheet.types[number] for number in groups]),
            GROUP: np.array(groups, dtype=np.int64),
        },
        index=pd.Index([name for _, name, _ in cells], dtype=object),
    )
    if (column := sheet.about["batch"]) is not None:
        obs[BATCH] = pd.Categorical(labelled.file.obs_column(column).to_numpy(dtype=object)[rows])
    return obs


def _var(whole: Reading) -> pd.DataFrame:
    return pd.DataFrame(index=pd.Index(list(whole.panel), dtype=object))
