"""What the board's pages show, read once: versions, ledger, evaluations, keys, splits, records, verdicts.

A version's files never change, so they are read once, by the digest of its record. What does change is read
again when the time or the size of its file has changed. No library that takes seconds is imported.
"""

from __future__ import annotations

import csv
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from canal.annotation.columns import UNASSIGNED
from canal.annotation.records import parse_record
from canal.config.layout import Layout
from canal.config.params import Config
from canal.config.yaml_file import load_config
from canal.core.errors import CanalError
from canal.core.files import read_json
from canal.registry.ledger.ledger import Entry
from canal.registry.manifest.version_folder import parent_keys, read_key, read_record
from canal.registry.promotion.moves import ledger_of
from canal.registry.store.database import LOGGED, Version, inside, local_path
from canal.registry.store.store import Store

Document = dict[str, Any]
Item = TypeVar("Item")

_SERVER_S = 2.0
"""Seconds for which what a tracking server has said is shown again."""
_MOST = 4000
"""Files of versions that are kept in memory."""


def stamp(*paths: Path) -> tuple[tuple[int, int, int], ...]:
    """Return what changes when a file does: its time, size and inode; zeros where there is none."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


class Fresh(Generic[Item]):
    """A value that is made again when its stamp has changed; of threads that ask at once, one makes it."""

    def __init__(self, stamped: Callable[[], Hashable], make: Callable[[], Item]) -> None:
        self._stamped, self._make = stamped, make
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, Item] | None = None

    def __call__(self) -> Item:
        """Return the value."""
        with self._lock:
            now = self._stamped()  # before it is made: what changes meanwhile is seen the next time
            if self._kept is None or self._kept[0] != now:
                self._kept = now, self._make()
            return self._kept[1]


class Records:
    """The log of annotations, of which only lines that were appended are read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: tuple[int, int] = (0, 0)
        self._rows: list[Document] = []
        self.unreadable = 0

    def rows(self) -> Sequence[Document]:
        """Return a row for each record, oldest first: file, time, model, cells, Unassigned."""
        with self._lock:
            (_, size, inode) = stamp(self._path)[0]
            done, of = self._read
            if inode != of or size < done:
                done, self._rows, self.unreadable = 0, [], 0
            if size > done:
                with self._path.open("rb") as stream:
                    stream.seek(done)
                    *lines, torn = stream.read(size - done).split(b"\n")
                for line in lines:
                    self._add(line)
                done = size - len(torn)
            self._read = done, inode
            return self._rows

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        record = parse_record(line.decode("utf-8", "replace"))
        if isinstance(record, str):
            self.unreadable += 1
            return
        given = record.get("input") or {}
        self._rows.append(
            {
                "id": record.get("id", ""),
                "time": str(record.get("time", "")),
                "file": str(given.get("name") or given.get("path") or "?"),
                "sha256": str(given.get("sha256", "")),
                "key": str(record["model"].get("key", "")),
                "model": str(record["model"].get("model", "")),
                "version": record["model"].get("version"),
                "cells": record["n_cells"],
                "unassigned": record["cell_types"].get(UNASSIGNED, 0),
                "types": sum(1 for name, n in record["cell_types"].items() if n and name != UNASSIGNED),
            }
        )


class Index:
    """The documents of a project, each read once.

    Parameters
    ----------
    root
        The project folder; by default the working directory.
    """

    def __init__(self, root: Path | None) -> None:
        self.layout = Layout((root or Path.cwd()).resolve())
        self.records = Records(self.layout.annotations)
        self._config = Fresh(lambda: stamp(self.layout.params), lambda: load_config(self.layout.params))
        self._versions = Fresh(self._registry_stamp, self._read_versions)
        self._folders = Fresh(self._registry_stamp, self._read_folders)
        self._entries = Fresh(lambda: stamp(self.layout.ledger), lambda: ledger_of(self.store).entries())
        self._rows = Fresh(lambda: (self._registry_stamp(), stamp(self.layout.ledger)), self._read_rows)
        self._files: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def config(self) -> Config:
        """The parameters."""
        return self._config()

    @property
    def store(self) -> Store:
        """The registry."""
        return Store(self.layout, self.config.registry)

    def _registry_stamp(self) -> Hashable:
        store = self.store
        if store.remote:
            return (store.uri, int(time.monotonic() / _SERVER_S))
        base = self.layout.database
        return (store.uri, *stamp(base, base.with_name(f"{base.name}-wal")))

    def _read_versions(self) -> list[Version]:
        return [one for one in self.store.versions() if one.ready]

    def versions(self) -> list[Version]:
        """Return the ready versions, oldest first."""
        return self._versions()

    def version(self, number: int) -> Version | None:
        """Return the ready version of a number; None where there is none."""
        return next((one for one in self.versions() if one.number == number), None)

    def holder(self, alias: str) -> Version | None:
        """Return the version that an alias points to; None where it points to none."""
        return next((one for one in self.versions() if alias in one.aliases), None)

    def entries(self) -> list[Entry]:
        """Return the ledger's entries, oldest first.

        Raises
        ------
        LedgerError
            If the ledger does not hold.
        """
        return self._entries()

    def folder(self, version: Version) -> Path | None:
        """Return the folder of a version's files; None where they are not on this disk."""
        return self._folders().get(version.number)

    def _read_folders(self) -> dict[int, Path]:
        """Return the folders of the versions on this disk, by number, at one asking of the database."""
        store, found = self.store, {}
        database = store.database
        locations = database.artifact_locations() if database else {}
        for one in self.versions():
            location = locations.get(one.source.removeprefix(LOGGED))
            folder = None if location is None else local_path(location)
            if folder is not None and not store.remote:
                folder = inside(self.layout, folder)
            if folder is not None and folder.is_dir():
                found[one.number] = folder
        return found

    def _of(self, version: Version, what: str, read: Callable[[Path], Item]) -> Item | None:
        """Return what is read of a version's folder, the first time that it is asked for."""
        place = version.record, what
        with self._lock:
            if place in self._files:
                self._files.move_to_end(place)
                found: Item = self._files[place]
                return found
        folder = self.folder(version)
        if folder is None:
            return None
        try:
            value = read(folder)
        except (CanalError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # damaged files are the audit's to name
        with self._lock:
            self._files[place] = value
            while len(self._files) > _MOST:
                self._files.popitem(last=False)
        return value

    def key(self, version: Version) -> Document:
        """Return key.json of a version without its list of files; empty where it cannot be read."""
        return self._of(version, "key", lambda folder: {**read_key(folder), "files": {}}) or {}

    def record(self, version: Version) -> Document:
        """Return record.json of a version without its list of files; empty where it cannot be read."""
        return self._of(version, "record", lambda folder: {**read_record(folder), "files": {}}) or {}

    def verdict(self, version: Version) -> Document:
        """Return the gate's verdict on the stage of a version; empty where there is none."""
        place = "validation/verdict.json"
        return self._of(version, place, lambda folder: dict(read_json(folder / place))) or {}

    def evaluation(self, version: Version) -> Document:
        """Return a version's accuracy and recall by stage and type; empty where it was not measured."""
        return self._of(version, "evaluation", _evaluation) or {}

    def donors(self, version: Version) -> Document:
        """Return the cells of a version's own stage by batch, type and set."""
        return self._of(version, "split", _donors) or {}

    def rows(self) -> list[Document]:
        """Return a row for each version, oldest first: what the list of versions shows."""
        return self._rows()

    def _read_rows(self) -> list[Document]:
        versions, rows = self.versions(), {}
        by_key = {one.key: one.number for one in versions}
        for one in versions:  # parents are registered before their children
            row = rows[one.number] = self._row(one, by_key)
            beneath = (rows[number]["sources"] for number in row["parents"] if number in rows)
            row["sources"] = sorted({source for sources in beneath for source in sources} | {row["source"]})
        return list(rows.values())

    def _row(self, version: Version, by_key: Mapping[str, int]) -> Document:
        key, evaluation = self.key(version), self.evaluation(version)
        figures = version.figures
        return {
            "number": version.number,
            "stage": version.stage,
            "aliases": list(version.aliases),
            "retired": version.retired,
            "erased": version.erased,
            "imported": version.imported,
            "created": utc(version.created / 1000),
            "accuracy": evaluation.get("row", {}).get(version.stage, _number(figures.get("accuracy"))),
            "average": evaluation.get("average", _number(figures.get("average_accuracy"))),
            "types": len(evaluation["labels"]) if evaluation else int(_number(figures.get("types")) or 0),
            "recall": evaluation.get("recall", {}),
            "parents": [by_key[one] for one in parent_keys(key) if one in by_key],
            "source": key.get("data", {}).get("source", ""),
            "unlearned": key.get("unlearned"),
            "key": version.key,
        }

    def ancestors(self, version: Version) -> list[Version]:
        """Return a version and those that it was learned on, newest first, as far as they are here."""
        by_key = {one.key: one for one in self.versions()}
        found: dict[str, Version] = {}
        waiting = [version.key]
        while waiting:
            one = by_key.get(waiting.pop(0))
            if one is not None and one.key not in found:
                found[one.key] = one
                waiting += parent_keys(self.key(one))
        return list(found.values())

    def warm(self) -> None:
        """Read what the first pages need; what goes wrong is shown by the page that asks for it."""
        for read in (self.rows, self.entries, self.records.rows):
            try:
                read()
            except (CanalError, OSError):
                continue


def utc(seconds: float) -> str:
    """Return a time as the ledger writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _evaluation(folder: Path) -> Document:
    """Return what pages show of evaluation.json: rows, and recall by type over all stages."""
    whole = read_json(folder / "metrics" / "evaluation.json")
    found: dict[str, tuple[float, int]] = {}
    stages: Document = {}
    for stage, one in whole["per_stage"].items():
        recalls = {str(name): dict(of) for name, of in (one.get("recall") or {}).items()}
        stages[stage] = {"n": one.get("n", 0), "accuracy": one.get("accuracy"), "recall": recalls}
        for name, of in recalls.items():
            right, n = found.get(name, (0.0, 0))
            found[name] = right + of["recall"] * of["n"], n + of["n"]
    novelty, calibration = whole.get("novelty") or {}, whole.get("calibration") or {}
    return {
        "stage": whole["stage"],
        "labels": list(whole["labels"]),
        "row": dict(whole["row"]),
        "average": whole["average_accuracy"],
        "stages": stages,
        "recall": {name: right / n for name, (right, n) in found.items() if n},
        "cells": {name: n for name, (_, n) in found.items()},
        "h_score": novelty.get("h_score"),
        "ece": calibration.get("ece"),
    }


def _donors(folder: Path) -> Document:
    """Return the cells of a split by batch: ``{batch: {"types": {type: n}, "sets": {set: n}}}``."""
    types: dict[str, Counter[str]] = {}
    sets: dict[str, Counter[str]] = {}
    with (folder / "split" / "cells.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            types.setdefault(row["batch"], Counter())[row["cell_type"]] += 1
            sets.setdefault(row["batch"], Counter())[row["set"]] += 1
    return {
        name: {"cells": sum(types[name].values()), "types": dict(types[name]), "sets": dict(sets[name])}
        for name in sorted(types)
    }
