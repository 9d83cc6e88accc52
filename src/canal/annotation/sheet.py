"""The labelling sheet: a CSV file in which a person names groups of novel cells, and a file of their cells.

``SHEET.csv`` has a line for each group. ``SHEET.cells.json`` holds the cells of each group and their origin;
its digest is in every line of the sheet, so a sheet cannot be used with other cells.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from canal.annotation.columns import KEY, is_key
from canal.annotation.labelled import Labelled
from canal.annotation.novel import Group, GroupingOptions, Novel
from canal.core.digests import canonical_json, file_digest, json_digest
from canal.core.errors import DataError, no_such_file
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
        Digest of the filled-in sheet.
    about : dict
        The content of ``SHEET.cells.json``: ``file``, ``model``, ``batch``, ``asked``, ``groups``.
    types : dict
        The type given to each group, by its number; groups without a type are left out.
    """

    path: Path
    sha256: str
    about: Mapping[str, Any]
    types: dict[int, str]

    @property
    def labelled(self) -> Path:
        """The path of the labelled file, relative to the sheet."""
        return self.path.parent / str(self.about["file"]["path"])

    def cells(self) -> list[tuple[int, str, int]]:
        """Return (row, cell's name, group) of every cell of a group that has a type, by row."""
        groups = {int(one["group"]): one for one in self.about["groups"]}
        cells = [
            (int(row), str(name), number)
            for number in self.types
            for row, name in zip(groups[number]["rows"], groups[number]["cells"], strict=True)
        ]
        return sorted(cells)


def cells_file(sheet: Path) -> Path:
    """Return the path of the file that holds a sheet's cells."""
    return sheet.with_suffix(".cells.json")


def check_sheet(sheet: Path, overwrite: bool) -> None:
    """Raise unless a sheet may be written.

    Raises
    ------
    DataError
        If its suffix is not .csv, or one of its two files exists and may not be replaced.
    """
    if sheet.suffix != ".csv":
        raise DataError(f"{sheet}: the labelling sheet is a CSV file: give an output that ends in .csv")
    existing = [path for path in (sheet, cells_file(sheet)) if path.exists()]
    if existing and not overwrite:
        raise DataError(
            f"{existing[0]} exists already, maybe filled in: give another name, or use --overwrite"
        )


def write_sheet(sheet: Path, labelled: Labelled, sha256: str, novel: Novel, options: GroupingOptions) -> None:
    """Write a sheet to be filled in, and the file with the cells of its groups.

    Parameters
    ----------
    sheet
        The CSV file to write.
    labelled
        The file that holds the cells.
    sha256
        Its digest.
    novel, options
        The groups, and how they were made.

    Raises
    ------
    DataError
        If they cannot be written.
    """
    names = labelled.file.obs_names()
    # Sheets hold no absolute paths, so they can move.
    relative = Path(os.path.relpath(labelled.path.resolve(), sheet.parent.resolve())).as_posix()
    about = {
        "format": FORMAT,
        "file": {"path": relative.encode("utf-8", "replace").decode(), "sha256": sha256},
        "model": labelled.record["model"],
        "record": labelled.record.get("id"),
        **({"key_added": labelled.key} if labelled.key != KEY else {}),
        "batch": novel.batch,
        "asked": {
            "min_cells": options.min_cells,
            "resolution": options.resolution,
            "seed": options.seed,
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
        If one of its two files is missing or malformed, they do not belong together, a line names an unknown
        or repeated group, or no group was given a type.
    """
    lines = read_lines(sheet, _NEEDED, "canal novel LABELLED.h5ad")
    about = _about(sheet)
    known = {int(one["group"]) for one in about["groups"]}
    identity = json_digest(about)[:_ID_DIGITS]
    types: dict[int, str] = {}
    seen: set[int] = set()
    for line in lines:
        number = _number(sheet, line["group"], known, seen)
        if line["sheet"].strip() != identity:
            raise DataError(
                f"{sheet}: the line of group {number} belongs to another sheet ({line['sheet']!r}) than "
                f"{cells_file(sheet).name} ({identity}): do not edit the column `sheet`, and keep both files "
                "of a sheet together"
            )
        if given := line["cell_type"].strip():
            types[number] = given
    if not types:
        raise DataError(
            f"{sheet}: none of its {len(lines)} groups was given a type: fill in the column cell_type "
            "of the groups that you know"
        )
    return Sheet(sheet, file_digest(sheet), about, types)


def groups_of(sheet: Path) -> list[dict[str, str]]:
    """Return the lines of a sheet, named or not, as texts by column.

    Raises
    ------
    DataError
        If one of its two files is missing or malformed.
    """
    _about(sheet)
    return read_lines(sheet, _NEEDED, "canal novel LABELLED.h5ad", COLUMNS)


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


def read_lines(
    sheet: Path, needed: Sequence[str], command: str, optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return the lines of a sheet that a person filled in with any program, as texts by column.

    Parameters
    ----------
    needed, optional
        Columns that must be there, and others, which are ``""`` where they are not.
    command
        The command that writes such a sheet, for messages.

    Raises
    ------
    DataError
        If it is missing, is no CSV in UTF-8, or lacks one of the columns.
    """
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(no_such_file(sheet, f"`{command} -o {sheet.name}` writes one")) from error
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
    columns = list(rows[0]) if rows else []
    if missing := [name for name in needed if name not in columns]:
        raise DataError(
            f"{sheet}: expected the columns {', '.join(needed)} and the lines of a sheet, as `{command}` "
            f"writes them; missing are {', '.join(missing)}"
        )
    return [{name: row.get(name) or "" for name in (*needed, *optional)} for row in rows]


def _about(sheet: Path) -> dict[str, Any]:
    path = cells_file(sheet)
    try:
        about = read_json(path)
        canonical_json(about).encode()  # raises for NaN and lone surrogates, which have no digest
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; it holds the cells of {sheet.name}, and `canal novel` wrote both: keep "
            "the two files together, and rename both or neither"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): write the sheet again with `canal novel`"
        ) from error
    if not _is_valid(about):
        raise DataError(
            f"{path} was not written by `canal novel`, was edited, or has another format than {FORMAT}: "
            "write the sheet again"
        )
    result: dict[str, Any] = about
    return result


def _is_valid(about: Any) -> bool:
    """Return whether a document has the fields that `write_sheet` writes and other code reads."""
    try:
        return bool(
            about["format"] == FORMAT
            and all(isinstance(about["file"][name], str) for name in ("path", "sha256"))
            and isinstance(about["model"], dict)
            and isinstance(about["asked"], dict)
            and is_key(about.get("key_added", KEY))
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
        raise DataError(f"{sheet}: group {number} has two lines: keep one of them")
    seen.add(number)
    return number


# The cells that a person named, written as an h5ad file that becomes the source of a stage.

ORIGIN_KEY = "canal_novel"
"""The key in uns of the origin of a stage file's cells."""

LABEL, BATCH, GROUP = "cell_type", "batch", "canal_group"
_EXAMPLES = 5


@dataclass(frozen=True)
class StageFile:
    """What params.yaml must declare of a stage file: its units, and whether it has a column of batches."""

    values: str
    batch: bool


def write_stage_file(
    target: Path,
    labelled: Labelled,
    reading: Reading,
    sheet: Sheet,
    origin: Mapping[str, Any],
    chunk_cells: int = 500,
) -> StageFile:
    """Write the cells that were given a type, atomically; memory does not grow with cells.

    Values are those of the labelled layer in its own units (logarithms of counts scaled to another depth are
    rescaled to counts per 10,000). Genes are all genes of the file, under the model's names. obs holds
    `LABEL`, `GROUP` and, where batches are known, `BATCH`; uns[`ORIGIN_KEY`] holds ``origin`` as JSON.

    Raises
    ------
    DataError
        If the file does not hold the cells that the sheet names, or the new file cannot be written.
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
        writer.finish(obs, _var(whole), {ORIGIN_KEY: canonical_json(origin)})
    return StageFile(reading.units.values, BATCH in obs)


def _check_cells(labelled: Labelled, cells: list[tuple[int, str, int]]) -> None:
    names = labelled.file.obs_names()
    wrong = [name for row, name, _ in cells if not (0 <= row < len(names) and names[row] == name)]
    twice = len(cells) - len({row for row, _, _ in cells})
    if wrong or twice:
        problem = f"{len(wrong):,} of {len(cells):,} cells are not in the rows that the sheet names"
        problem = f"{problem}, such as {wrong[:_EXAMPLES]}" if wrong else f"{twice:,} cells are in two groups"
        raise DataError(f"{labelled.path}: {problem}; write the sheet again with `canal novel`")


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
