"""The values of the board's pages, as documents: what a person reads, from what `Index` has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from canal.annotation.places import type_colours
from canal.app.board_access import RefusedError
from canal.app.board_index import Index
from canal.core.files import read_json
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, PREVIOUS
from canal.registry.store.database import Version

Document = dict[str, Any]

PER_PAGE = 100
_NEWEST = 10


def versions_page(index: Index) -> Document:
    """Return the list of versions, newest first, and recall by type along the line of versions."""
    rows = index.rows()
    labelled = Counter(one["key"] for one in index.records.rows())
    held = {alias: index.holder(alias) for alias in (CHAMPION, CANDIDATE, PREVIOUS)}
    entries = index.entries()
    served = [one for one in entries if one.kind in ("promote", "rollback")]
    return {
        "rows": [{**row, "labelled": labelled[row["key"]]} for row in reversed(rows)],
        "trend_of": {"rows": rows, "colours": colours(index)},
        "held": held,
        "last": None if not served else entry_row(served[-1]),
        "model": index.config.registry.model,
        "waiting": waiting(index, entries),
    }


def waiting(index: Index, entries: Sequence[Entry]) -> Version | None:
    """Return the candidate that nobody has decided about yet; None where there is none."""
    one = index.holder(CANDIDATE)
    if one is None or one.retired or CHAMPION in one.aliases:
        return None
    decided = any(
        entry.document["key"] == one.key and entry.kind in ("promote", "rollback", "retire")
        for entry in entries
    )
    return None if decided else one


def colours(index: Index) -> dict[str, str]:
    """Return a colour for each type, as every figure of canal has it."""
    labels: dict[str, None] = {}
    for one in index.versions():
        labels |= dict.fromkeys(index.evaluation(one).get("labels", ()))
    return type_colours(tuple(labels))


def found_version(index: Index, number: str) -> Version:
    """Return the version of a number in an address.

    Raises
    ------
    RefusedError
        If there is none.
    """
    version = (
        index.version(int(number)) if number.isascii() and number.isdecimal() and len(number) < 9 else None
    )
    if version is None:
        raise RefusedError(404, f"there is no version {number[:20]}: the list of versions names all")
    return version


def version_page(index: Index, number: str, mlflow: str | None) -> Document:
    """Return everything that is known of a version without loading it."""
    version = found_version(index, number)
    rows = {row["number"]: row for row in index.rows()}
    row = rows[version.number]
    key, record, evaluation = index.key(version), index.record(version), index.evaluation(version)
    champion = index.holder(CHAMPION)
    files = [one for one in index.records.rows() if one["key"] == version.key]
    other = champion if champion is not None and champion.number != version.number else None
    parents = [index.version(number) for number in row["parents"]]
    return {
        "row": row,
        "version": version,
        "data": key.get("data"),
        "method": (key.get("request", {}).get("continual") or {}).get("method"),
        "unlearned": key.get("unlearned"),
        "merged": key.get("merged"),
        "record": record,
        "evaluation": evaluation,
        "types": type_rows(evaluation),
        "colours": type_colours(tuple(evaluation.get("labels", ()))),
        "verdict": verdict_rows(index.verdict(version)),
        "decisions": [
            entry_row(one)
            for one in reversed(index.entries())
            if one.model == version.model and one.document["key"] == version.key
        ],
        "files": files[: -_NEWEST - 1 : -1],
        "n_files": len(files),
        "chain": [rows[one.number] for one in index.ancestors(version)],
        "children": [one for one in rows.values() if version.number in one["parents"]],
        "other": other or next((one for one in parents if one is not None), None),
        "champion": champion,
        "mlflow": mlflow_address(mlflow, version),
    }


def row_of(index: Index, version: Version) -> Document:
    """Return the row of a version in the list of all."""
    return next(row for row in index.rows() if row["number"] == version.number)


def mlflow_address(base: str | None, version: Version) -> str | None:
    """Return the address of a version on MLflow's pages; None where it is not known where these are."""
    return (
        None if base is None else f"{base}/#/models/{quote(version.model, safe='')}/versions/{version.number}"
    )


def type_rows(evaluation: Mapping[str, Any]) -> list[Document]:
    """Return recall by stage and type, the worst first."""
    rows = [
        {"stage": stage, "name": name, "n": of["n"], "recall": of["recall"]}
        for stage, one in evaluation.get("stages", {}).items()
        for name, of in one["recall"].items()
    ]
    return sorted(rows, key=lambda one: (one["recall"], -one["n"]))


def verdict_rows(verdict: Mapping[str, Any]) -> Document | None:
    """Return a verdict of the gate: what does not hold first; None where there is none."""
    if not verdict:
        return None
    rules = sorted(
        verdict.get("rules", ()), key=lambda one: (bool(one["passed"]), one["severity"] != "error")
    )
    failing = [one for one in rules if not one["passed"]]
    return {
        "rules": rules,
        "errors": sum(one["severity"] == "error" for one in failing),
        "warnings": sum(one["severity"] != "error" for one in failing),
        "source": verdict.get("source", ""),
        "cells": (verdict.get("counts") or {}).get("cells"),
    }


def entry_row(entry: Entry) -> Document:
    """Return what a page shows of an entry of the ledger."""
    document = entry.document
    details = document["details"]
    return {
        "seq": entry.seq,
        "time": document["time"],
        "kind": entry.kind,
        "model": entry.model,
        "version": entry.version,
        "who": document["who"],
        "why": document["why"],
        "aliases": entry.aliases,
        "overrides": [str(one) for one in details.get("overrides") or ()],
        "too_few": str(details.get("too_few") or ""),
        "rulings": [one for one in details.get("rulings") or () if isinstance(one, dict)],
        "hash": entry.hash,
        "signed": str((document.get("signature") or {}).get("key", "")),
    }


def compare_page(index: Index, first: str, second: str) -> Document:
    """Return two versions side by side; without two names the form alone, with a proposal."""
    versions = index.versions()
    champion, candidate = index.holder(CHAMPION), index.holder(CANDIDATE)
    pair = [one for one in (first, second) if one]
    if len(pair) < 2:
        chosen = [one for one in (champion, candidate) if one is not None] or versions[-2:]
        return {"versions": versions, "chosen": [one.number for one in chosen][:2], "sides": None}
    sides = [found_version(index, one) for one in pair]
    evaluations = [index.evaluation(one) for one in sides]
    keys = [index.key(one) for one in sides]
    types: dict[tuple[str, str], Document] = {}
    for place, evaluation in enumerate(evaluations):
        for one in type_rows(evaluation):
            types.setdefault((one["stage"], one["name"]), {"n": one["n"]})[("a", "b")[place]] = one["recall"]
    rows = [
        {"stage": stage, "name": name, **one, "change": _change(one.get("a"), one.get("b"))}
        for (stage, name), one in types.items()
    ]
    labels = [set(one.get("labels", ())) for one in evaluations]
    return {
        "versions": versions,
        "chosen": [one.number for one in sides],
        "sides": [row_of(index, one) for one in sides],
        "evaluations": evaluations,
        "stages": [
            {"stage": stage, "a": a, "b": b, "change": _change(a, b)}
            for stage in dict.fromkeys([stage for one in evaluations for stage in one.get("row", {})])
            for a, b in [[one.get("row", {}).get(stage) for one in evaluations]]
        ],
        "types": sorted(rows, key=lambda one: (one["change"] is None, one["change"] or 0.0)),
        "gone": sorted(labels[0] - labels[1]),
        "new": sorted(labels[1] - labels[0]),
        "differs": [
            {"what": what, "a": a, "b": b}
            for what, (a, b) in {
                "data set": [_of(one, "data", "source") for one in keys],
                "its file": [_of(one, "data", "source_sha256")[:12] for one in keys],
                "method": [_of(one, "request", "continual", "method") for one in keys],
                "branch": [str(one.get("branch", "")) for one in keys],
                "code": [str(one.get("code") or "")[:12] for one in keys],
                "panel": [str(one.get("panel") or "")[:12] for one in keys],
            }.items()
        ],
    }


def _of(document: Mapping[str, Any], *names: str) -> str:
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return "" if found is None else str(found)


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def page_of(rows: Sequence[Any], wanted: str) -> Document:
    """Return one page of rows, and how many pages there are."""
    pages = max(1, -(-len(rows) // PER_PAGE))
    number = min(int(wanted), pages) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 7 else 1
    number = max(1, number)
    return {
        "rows": rows[(number - 1) * PER_PAGE : number * PER_PAGE],
        "page": number,
        "pages": pages,
        "n": len(rows),
    }


def ledger_page(index: Index, kind: str, wanted: str) -> Document:
    """Return entries of the ledger, newest first."""
    entries = index.entries()
    kinds = sorted({one.kind for one in entries})
    chosen = [one for one in reversed(entries) if not kind or one.kind == kind]
    shown = page_of(chosen, wanted)
    return {
        **shown,
        "rows": [entry_row(one) for one in shown["rows"]],
        "kinds": kinds,
        "kind": kind if kind in kinds else "",
        "head": entries[-1].hash if entries else None,
        "numbers": {one.key: one.number for one in index.versions()},
    }


def gate_page(index: Index) -> Document:
    """Return the verdicts on the stages of params.yaml, the newest first."""
    shown = []
    by_stage = {one.stage: one for one in index.versions()}
    for stage in reversed(index.config.stages):
        path = index.layout.verdict(stage)
        found = read_json(path) if path.is_file() else {}
        version = by_stage.get(stage)
        if not found and version is not None:
            found = index.verdict(version)
        shown.append(
            {
                "stage": stage,
                "source": index.config.stages[stage].source,
                "verdict": verdict_rows(found),
                "version": version,
            }
        )
    return {"stages": shown}


def data_page(index: Index) -> Document:
    """Return the data sets of params.yaml and of registered versions, and how many versions stand on each."""
    rows, config = index.rows(), index.config
    stages: dict[str, list[str]] = {}
    for stage, one in config.stages.items():
        stages.setdefault(one.source, []).append(stage)
    known = dict.fromkeys([*config.sources, *(row["source"] for row in rows if row["source"])])
    shown = []
    for name in known:
        newest = next((one for one in reversed(index.versions()) if _source(index, one) == name), None)
        donors = index.donors(newest) if newest is not None else {}
        declared = config.sources.get(name)
        shown.append(
            {
                "name": name,
                "stages": stages.get(name, []),
                "pretrains": name in config.backbone.unlabelled,
                "declared": declared is not None,
                "batch": declared.batch if declared is not None else None,
                "cells": sum(one["cells"] for one in donors.values()),
                "donors": len(donors),
                "versions": sum(name in row["sources"] for row in rows),
                "excluded": None
                if declared is None
                else len(declared.exclude.cells) + len(declared.exclude.batches),
            }
        )
    return {"rows": shown}


def _source(index: Index, version: Version) -> str:
    return str(index.key(version).get("data", {}).get("source", ""))


def source_page(index: Index, name: str) -> Document:
    """Return a data set: its donors, and the versions and labelled files that stand on it."""
    row = next((one for one in data_page(index)["rows"] if one["name"] == name), None)
    if row is None:
        raise RefusedError(404, f"there is no data set {name[:80]!r}: the list of data sets names all")
    mine = [one for one in index.versions() if _source(index, one) == name]
    donors = index.donors(mine[-1]) if mine else {}
    users = [{**one, "own": one["source"] == name} for one in index.rows() if name in one["sources"]]
    keys = {one["key"] for one in users}
    declared = index.config.sources.get(name)
    return {
        **row,
        "source": None if declared is None else declared.model_dump(mode="json"),
        "by_donor": [{"name": donor, **of} for donor, of in donors.items()],
        "of_version": mine[-1] if mine else None,
        "users": users,
        "files": sum(one["key"] in keys for one in index.records.rows()),
    }


def files_page(index: Index, wanted: str, sought: str) -> Document:
    """Return the labelled files on record, newest first: all, or those of a name, digest, id or version."""
    numbers = {one.key: one.number for one in index.versions()}
    rows: Sequence[Document] = index.records.rows()
    words = sought.strip().casefold()
    if words:
        version = words.removeprefix("version ")
        rows = [
            one
            for one in rows
            if words in one["file"].casefold()
            or (len(words) >= 8 and (one["sha256"].startswith(words) or one["id"].startswith(words)))
            or version == str(numbers.get(one["key"]))
        ]
    shown = page_of(rows[::-1], wanted)
    return {**shown, "numbers": numbers, "sought": sought, "unreadable": index.records.unreadable}


def withdrawn_page(index: Index) -> Document:
    """Return what was taken out and what it touches: unlearnings, erasings, exclusions."""
    versions = index.versions()
    by_key = {one.key: one for one in versions}
    labelled = Counter(one["key"] for one in index.records.rows())
    entries = index.entries()
    unlearned = []
    for one in versions:
        left = index.key(one).get("unlearned")
        if not left:
            continue
        old = by_key.get(str(left.get("version", "")))
        entry = next((e for e in entries if e.kind == "register" and e.document["key"] == one.key), None)
        unlearned.append(
            {
                "version": one,
                "old": old,
                "cells": left.get("n_cells"),
                "summed": left.get("n_summed"),
                "entry": None if entry is None else entry_row(entry),
                "files": 0 if old is None else labelled[old.key],
            }
        )
    sources = {
        name: {"cells": len(one.exclude.cells), "batches": list(one.exclude.batches)}
        for name, one in index.config.sources.items()
        if one.exclude.cells or one.exclude.batches
    }
    return {
        "unlearned": unlearned[::-1],
        "erased": [
            {**entry_row(one), "cells": one.document["details"].get("n_cells")}
            for one in reversed(entries)
            if one.kind == "erase"
        ],
        "excluded": sources,
        "gone": [one for one in versions if one.erased],
    }
