"""`canal watch`: whether the cells that a version labels are still like those on which it was measured.

Only documents are read: the log of annotations, and what the version's evaluation and gates recorded.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from canal.annotation import drift
from canal.annotation.columns import UNASSIGNED
from canal.annotation.drift import Finding, Rows, judge, rows_of
from canal.annotation.records import Record, read_log
from canal.annotation.summary import MOST_LIKE
from canal.app.models import serving_version
from canal.app.project import Project
from canal.core.errors import DataError
from canal.core.progress import count, doing, first_names, percent
from canal.registry.provenance.measured import measured, rounded, stage_view
from canal.registry.store.database import Version

Document = dict[str, Any]
By = Literal["month", "file"]

FORMAT = 1
ALARM_CODE = 3
"""Exit code of `canal watch` where an alarm stands: 1 is an error, 2 a wrong call."""
_AHEAD = timedelta(days=1)
"""How far ahead of this machine's clock a record's may be."""
_SHOWN_FILES = 20
_TECHNICAL = (drift.GENES, drift.DEPTH)
"""What of a file may make its cells look novel though they are not."""


@dataclass(frozen=True)
class _File:
    """A labelled file: the first time that its version labelled it, and the newest record of that."""

    record: Record
    time: datetime | None

    @property
    def month(self) -> str:
        """Year and month in UTC; empty where the record has no time."""
        return "" if self.time is None else f"{self.time:%Y-%m}"

    @property
    def name(self) -> str:
        """The input's name; old records may lack it."""
        return str((self.record.get("input") or {}).get("name") or "?")

    def to_json(self) -> Document:
        """Return which file it is."""
        return {
            "name": self.name,
            "sha256": (self.record.get("input") or {}).get("sha256"),
            "labelled": self.record.get("labelled"),
            "time": None if self.time is None else self.time.isoformat(timespec="seconds"),
            "cells": self.record["n_cells"],
        }


def watch(
    project: Project,
    wanted: str | None = None,
    since: str | None = None,
    by: By = "month",
    now: datetime | None = None,
) -> Document:
    """Return what was labelled by a version, month by month or file by file, and what left its range.

    Parameters
    ----------
    project
        The project.
    wanted
        Number or alias of the version; by default the champion, else the newest.
    since
        The first month, ``YYYY-MM``; by default all.
    by
        What is judged as one: all cells of a month, or those of a file.
    now
        The present time; records that are dated later than a day from it are left out.

    Returns
    -------
    dict
        ``model``, ``version``, ``stage``, ``key``; ``stages``, what was measured of each stage's cells, and
        ``ranges`` over them by measure, with ``why_not`` for those without; ``rows``, oldest first: name,
        files, cells, ``cell_types``, and by measure value and state; ``alarms``, newest first: what is off in
        words, the cause, what to do, the command, the files; ``left_out``, records that count nowhere;
        ``rules``, the numbers by which it is judged. All is in range where ``alarms`` is empty.

    Raises
    ------
    CanalError
        If there is no such version, or ``since`` is no month.
    """
    first = _month(since)
    version = project.store.version(wanted) if wanted is not None else serving_version(project, None)
    with doing("reading the log of annotations"):
        files, left_out = _files(project, version, now or datetime.now(UTC))
    files = [one for one in files if one.month >= first or (not one.month and since is None)]
    with doing("reading what the version was measured on"):
        stages, why_not = measured(project.store, version)
    found, told, alarms = _judged(files, stages, by)
    return {
        "format": FORMAT,
        "model": version.model,
        "version": version.number,
        "stage": version.stage,
        "key": version.key,
        "by": by,
        "since": since,
        "stages": [stage_view(one) for one in stages],
        "ranges": {
            name: None if one.low is None else [rounded(one.low), rounded(one.high)]
            for name, one in found.items()
        },
        "why_not": why_not,
        "rows": told,
        "alarms": alarms,
        "left_out": left_out,
        "rules": RULES,
    }


def _judged(
    files: Sequence[_File], stages: Sequence[drift.Stage], by: By
) -> tuple[Mapping[str, Finding], list[Document], list[Document]]:
    """Return what each measure says, the rows, and the alarms, the newest first."""
    each = rows_of([one.record for one in files])
    groups = _groups(files, by)
    names = list(groups)
    member = np.zeros(len(files), dtype=np.int64)
    for number, places in enumerate(groups.values()):
        member[places] = number
    rows = each.pooled(member, len(groups))
    of_files = judge(each, stages)
    found = of_files if by == "file" else judge(rows, stages)
    view = _View(files, rows, found, of_files, list(groups.values()))
    told = [
        view.row(number, files[groups[name][0]].name if by == "file" else name, by)
        for number, name in enumerate(names)
    ]
    alarms = [
        view.alarm(number, measure, told[number]["name"], by)
        for number in reversed(range(len(told)))
        for measure in drift.MEASURES
        if found[measure].states[number] == drift.ALARM
    ]
    return found, told, alarms


RULES: Document = {
    "min_cells": drift.MIN_CELLS,
    "level": drift.LEVEL,
    "unassigned_tolerance": drift.SHARE_TOLERANCE,
    "distribution_tolerance": drift.CURVE_TOLERANCE,
    "types_tolerance": drift.TYPES_TOLERANCE,
    "genes_tolerance": drift.GENES_TOLERANCE,
    "depth_ratio": drift.DEPTH_RATIO,
}


def _month(since: str | None) -> str:
    if since is None:
        return ""
    try:
        if len(since) != len("2026-01"):
            raise ValueError
        return f"{datetime.strptime(since, '%Y-%m').replace(tzinfo=UTC):%Y-%m}"
    except ValueError:
        raise DataError(f"--since: expected a month such as 2026-01, found {since!r}") from None


def _time(record: Record) -> datetime | None:
    """Return when a file was labelled, in UTC; None where the record does not say."""
    try:
        time = datetime.fromisoformat(record["time"])
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (KeyError, ValueError, OverflowError):
        return None


def _files(project: Project, version: Version, now: datetime) -> tuple[list[_File], Document]:
    """Return the files that a version labelled, by the time of the first labelling, and what is left out."""
    log = read_log(project.layout.annotations)
    numbers = {one.key: one.number for one in project.store.versions() if one.ready}
    others: dict[str, int] = {}
    edited = damaged = future = again = 0
    kept: dict[str, _File] = {}
    for place, record in enumerate(log.records):
        key, time = record["model"].get("key"), _time(record)
        if place in log.edited:
            edited += 1
        elif key != version.key:
            name = str(numbers.get(key, "elsewhere"))
            others[name] = others.get(name, 0) + 1
        elif not drift.is_sound(record):
            damaged += 1
        elif time is not None and time > now + _AHEAD:
            future += 1
        else:
            cells = (record.get("input") or {}).get("sha256") or f"record {place}"
            before = kept.get(cells)
            again += before is not None
            kept[cells] = _File(record, _earlier(time, before))
    files = sorted(kept.values(), key=lambda one: (one.time is not None, one.time or now))
    return files, {
        "unreadable": log.unreadable,
        "edited": edited,
        "damaged": damaged,
        "future": future,
        "again": again,
        "other_versions": others,
    }


def _earlier(time: datetime | None, before: _File | None) -> datetime | None:
    known = [one for one in (time, before.time if before else None) if one is not None]
    return min(known, default=None)


def _groups(files: Sequence[_File], by: By) -> dict[str, list[int]]:
    """Return the places of the files that are judged as one, by a name of their own."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(files):
        groups.setdefault((one.month or "undated") if by == "month" else str(place), []).append(place)
    return groups


# What is told of a row, and of what left its range.


@dataclass(frozen=True, eq=False)
class _View:
    """The rows with what was found of them, and of each of their files.

    Attributes
    ----------
    files : sequence of _File
    rows : Rows
    found, of_files : dict
        What each measure says of the rows, and of the files one by one.
    members : sequence
        The places of each row's files.
    """

    files: Sequence[_File]
    rows: Rows
    found: Mapping[str, Finding]
    of_files: Mapping[str, Finding]
    members: Sequence[Sequence[int]]

    def row(self, number: int, name: str, by: By) -> Document:
        """Return a row as a JSON document."""
        counts = zip(self.rows.labels, self.rows.types[number].tolist(), strict=True)
        types = sorted(((label, n) for label, n in counts if n), key=lambda one: (-one[1], one[0]))
        states = [self.found[measure].states[number] for measure in drift.MEASURES]
        judged = [one for one in states if one in (drift.ALARM, drift.IN_RANGE)]
        rest = drift.TOO_FEW if drift.TOO_FEW in states else drift.NOT_MEASURED
        places = self.members[number]
        return {
            "name": name,
            "state": drift.ALARM if drift.ALARM in states else drift.IN_RANGE if judged else rest,
            "files": len(places),
            "cells": int(self.rows.n[number]),
            "unassigned": int(self.rows.unassigned[number]),
            "cell_types": dict(types),
            "like_learned": self._like(number),
            "median_counts": self._counts(places),
            "measures": {
                measure: {"value": rounded(one.values[number]), "state": one.states[number]}
                | ({"shows": one.details[number]} if one.states[number] == drift.ALARM else {})
                for measure, one in self.found.items()
            },
            "outside": [
                {"file": self.files[place].name, "measures": out}
                for place in (places if by == "month" else ())
                if (out := [m for m in drift.MEASURES if self.of_files[m].states[place] == drift.ALARM])
            ],
        }

    def _like(self, number: int) -> float | None:
        summed, n = self.rows.like[number].tolist()
        return rounded(summed / n) if n else None

    def _counts(self, places: Sequence[int]) -> float | None:
        """Return the median over files of a cell's median counts; None where none is on record."""
        held = [(self.files[place].record.get("distributions") or {}) for place in places]
        counts = [value for one in held if isinstance(value := one.get("median_counts"), int | float)]
        return round(float(np.median(counts)), 1) if counts else None

    def alarm(self, number: int, measure: str, name: str, by: By) -> Document:
        """Return what is off in a row by a measure, and what to do."""
        places = self._responsible(number, measure)
        files = [self.files[place] for place in places]
        like = self._like(number)
        shifted = like is not None and like < MOST_LIKE
        cause, advice, command = _advice(self._origin(number, measure, places[0]), shifted, files[0])
        return {
            "row": name,
            "measure": measure,
            "cause": cause,
            "what": self._words(number, measure, f"of {name}"),
            "where": _where(files, len(self.members[number])) if by == "month" else "",
            "advice": advice,
            "command": command,
            "files": [one.to_json() for one in files[:_SHOWN_FILES]],
        }

    def _origin(self, number: int, measure: str, place: int) -> str:
        """Return what explains an alarm: genes or depth, where the first file (a small one: its row) is."""
        if measure in (*_TECHNICAL, drift.TYPES):
            return measure
        alone = all(self.of_files[one].states[place] == drift.TOO_FEW for one in _TECHNICAL)
        judged, at = (self.found, number) if alone else (self.of_files, place)
        out = [one for one in _TECHNICAL if judged[one].states[at] == drift.ALARM]
        return out[0] if out else measure

    def _responsible(self, number: int, measure: str) -> list[int]:
        """Return the files of a row that left the range themselves, those of most cells first; else all."""
        places = self.members[number]
        out = [place for place in places if self.of_files[measure].states[place] == drift.ALARM] or places
        records = {place: self.files[place].record for place in out}
        if measure == drift.UNASSIGNED_SHARE:
            return sorted(out, key=lambda place: -records[place]["cell_types"].get(UNASSIGNED, 0))
        return sorted(out, key=lambda place: -records[place]["n_cells"])

    def _words(self, number: int, measure: str, where: str) -> str:
        found, shows = self.found[measure], self.found[measure].details[number]
        cells = f"of {count(int(self.rows.n[number]))} {where}"
        value = float(found.values[number])
        if measure == drift.UNASSIGNED_SHARE:
            n, of = shows["cells"], shows["of"]
            those = _ends(found.low, found.high)
            return f"{n:,} of {of:,} cells {where} are Unassigned ({percent(value)}; on test cells {those})"
        if measure == drift.TYPES:
            those = _ends(*shows["on_test_cells"])
            share = percent(shows["share"])
            return f"{share} {cells} that have a type are {shows['type']}; of test cells {those}"
        if measure == drift.GENES:
            those = _ends(found.low, found.high)
            return (
                f"the files {where} have {percent(value)} of the model's genes, those of its stages {those}"
            )
        if measure == drift.DEPTH:
            those = _ends(found.low, found.high)
            return f"a median cell {where} expresses {percent(value)} of the genes, in the stages {those}"
        those, share = _ends(*shows["on_test_cells"]), percent(shows["share"])
        cut = f"below {shows['below']:.2f}" if "below" in shows else f"of {shows['from']:.2f} or more"
        return f"{share} {cells} have a {measure} {cut}; of test cells {those}"


def _typed(name: str) -> str:
    """Return a file's name as a shell reads it, and no command takes it for an option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def _where(files: Sequence[_File], n: int) -> str:
    return f"{'above all ' if n > 1 else ''}in {first_names([one.name for one in files])}"


def _ends(low: float | None, high: float | None) -> str:
    low_text, high_text = percent(low), percent(high)
    return low_text if low_text == high_text else f"{percent(low, '')} to {high_text}"


def _advice(measure: str, shifted: bool, file: _File) -> tuple[str, str, str]:
    """Return the likely cause of an alarm, what to do in words, and the command."""
    name = str(file.record.get("labelled") or "")
    labelled = _typed(name) if name.endswith((".h5ad", ".zarr")) else "LABELLED.h5ad"
    cells = _typed(file.name) if file.name != "?" else "FILE.h5ad"
    learn = f"canal stage add NAME --file {cells} --values counts"
    if measure == drift.GENES:
        more = "find the genes by other names (--gene-column, --aliases), or label before genes are left out"
        return "missing genes", more, f"canal who {labelled}"
    if measure == drift.DEPTH:
        return (
            "other depth",
            "look how the cells were sequenced and filtered; if it stays so, learn a part",
            learn,
        )
    if measure == drift.TYPES:
        sorted_cells = "right for sorted cells or another tissue; else look at what carries the types"
        return "other composition", sorted_cells, f"canal explain {labelled} -o genes.csv"
    if shifted or measure == drift.CONFIDENCE:
        return "shifted study", "label a part of these cells by hand and learn it as a stage", learn
    return (
        "novel cells",
        "group them and name the groups: a new stage is due",
        f"canal novel {labelled} -o novel.csv",
    )
