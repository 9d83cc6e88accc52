"""Entries that somebody else than canal writes after a ledger's last, with a hash that fits.

The ledger: a backbone, versions 1 and 2 registered, 1 promoted, then 2. Each is one wish of an insider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from canal.registry.ledger.ledger import Draft, Entry, entry_hash
from canal.registry.ledger.ledger_rules import LOST
from tests.support.registered import PASSED, promoted

ADA = "Ada Lovelace"


@dataclass(frozen=True)
class Forgery:
    """What is forged, and words by which a finding has to name it."""

    name: str
    draft: Draft
    named: str


def rechained(documents: Sequence[dict[str, Any]], sign=None) -> list[Entry]:
    """Return entries with these contents, numbered, chained, hashed and, by ``sign(kind)``, signed anew."""
    made: list[Entry] = []
    for number, document in enumerate(documents, start=1):
        one = {name: value for name, value in document.items() if name != "signature"}
        one |= {"seq": number, "previous": made[-1].hash if made else "0" * 64}
        one["hash"] = entry_hash(one)
        if sign is not None:
            one["signature"] = dict(sign(one["kind"])(one["hash"]))
        made.append(Entry(one))
    return made


def following(entries: Sequence[Entry], draft: Draft, sign=None) -> Entry:
    """Return the entry that a draft makes after the last one, whatever it says."""
    document = {
        "format": 1,
        "time": "2026-11-29T12:00:00+00:00",
        **{
            name: getattr(draft, name) for name in ("kind", "model", "version", "key", "record", "who", "why")
        },
        "aliases": dict(draft.aliases),
        "details": dict(draft.details),
    }
    last = rechained([*(entry.document for entry in entries), document])[-1]
    if sign is None:
        return last
    return Entry(last.document | {"signature": dict(sign(last.hash))})


def honest(entries: Sequence[Entry]) -> list[Draft]:
    """Return what canal itself may write next: each must be let through."""
    one, two = _registered(entries)
    back = {"from": 2, "to": 1}
    return [
        _draft(one, "promote", {"champion": 1, "previous": 2}, promoted(1, 2, _overridden("accuracy"))),
        _draft(one, "rollback", {"champion": 1, "previous": 2}, back),
        _draft(one, "retire", {"previous": None}),
        _draft(two, "rebuild", {"champion": 2, "candidate": 2}, who="root"),
        _draft(two, "rebuild", {"champion": None, "candidate": None}, {LOST: True}),
        _draft(one, "rebuild", {"previous": 1}),
        _draft(one, "register", {"candidate": 3}, version=3, key="3" * 64, who="canal registry sync (root)"),
        _draft(one, "register", {}, version=3, key="3" * 64, who="canal import (root)"),
    ]


def forgeries(entries: Sequence[Entry]) -> list[Forgery]:
    """Return what no canal writes next; each must be named."""
    return [*_of_kinds(entries), *_of_versions(entries), *_of_rulings(entries)]


def _of_kinds(entries: Sequence[Entry]) -> list[Forgery]:
    """Aliases that a kind may not move."""
    one, two = _registered(entries)
    backbone = entries[0]
    new = {"version": 3, "key": "3" * 64}
    only = "moves candidate to the version that it registers"
    leaves = "rebuilding leaves aliases where they were"
    moves = "moves champion to its version"
    off = "a retirement takes previous off its version"
    return [
        Forgery("register moves champion", _draft(one, "register", {"champion": 3}, **new), only),
        Forgery(
            "register moves champion too",
            _draft(one, "register", {"candidate": 3, "champion": 3}, **new),
            only,
        ),
        Forgery("register moves candidate elsewhere", _draft(one, "register", {"candidate": 1}, **new), only),
        Forgery("register removes champion", _draft(one, "register", {"champion": None}, **new), only),
        Forgery("register moves previous", _draft(one, "register", {"previous": 2}, **new), only),
        Forgery("register an alias of its own", _draft(one, "register", {"production": 3}, **new), only),
        Forgery("register once more", _draft(one, "register", {"candidate": 1}), "registered before"),
        Forgery("rebuild moves champion", _draft(one, "rebuild", {"champion": 1}), leaves),
        Forgery("rebuild swaps", _draft(one, "rebuild", {"champion": 1, "previous": 2}), leaves),
        Forgery("rebuild forgets an alias", _draft(two, "rebuild", {"champion": 2}), leaves),
        Forgery("rebuild removes champion", _draft(two, "rebuild", {"champion": None}), leaves),
        Forgery(
            "rebuild gives another the lost one's alias",
            _draft(one, "rebuild", {"champion": 1, "previous": None}, {LOST: True}),
            "rebuilding takes off the aliases",
        ),
        Forgery("retire moves champion", _draft(one, "retire", {"champion": 1}), off),
        Forgery("retire removes champion", _draft(one, "retire", {"champion": None}), off),
        Forgery("retire hands candidate to nobody's", _draft(two, "retire", {"candidate": 9}), off),
        Forgery("retire the champion", _draft(two, "retire", {"candidate": 1}), "is the champion"),
        Forgery("promote leaves previous", _draft(one, "promote", {"champion": 1}, promoted(1, 2)), moves),
        Forgery(
            "promote another than it names",
            _draft(one, "promote", {"champion": 2, "previous": 2}, promoted(1, 2)),
            moves,
        ),
        Forgery(
            "promote moves candidate too",
            _draft(one, "promote", {"champion": 1, "previous": 2, "candidate": 1}, promoted(1, 2)),
            moves,
        ),
        Forgery(
            "promote from a version that never was",
            _draft(one, "promote", {"champion": 1, "previous": 9}, promoted(1, 9)),
            "was never registered",
        ),
        Forgery("rollback moves no champion", _draft(one, "rollback", {}, {"from": 2, "to": 1}), moves),
        Forgery(
            "rollback from nobody", _draft(one, "rollback", {"champion": 1}, {"to": 1}), "no champion to go"
        ),
        Forgery("a kind of its own", _draft(one, "import", {"champion": 1}), "no such kind"),
        Forgery("a backbone serves", _draft(backbone, "register", {"champion": 1}, **new), "serve nobody"),
        Forgery(
            "a backbone is promoted",
            _draft(backbone, "promote", {"champion": 1}, promoted(1)),
            "serve nobody",
        ),
    ]


def _of_versions(entries: Sequence[Entry]) -> list[Forgery]:
    """Versions that are not there, are others, or in nobody's name."""
    one, _ = _registered(entries)
    up, said = {"champion": 3, "previous": 2}, promoted(3, 2)
    back, undone = {"champion": 1, "previous": 2}, {"from": 2, "to": 1}
    return [
        Forgery(
            "promote what was never registered",
            _draft(one, "promote", up, said, version=3),
            "version 3 was never registered",
        ),
        Forgery(
            "roll back to what was never registered",
            _draft(one, "rollback", up, {"from": 2, "to": 3}, version=3),
            "version 3 was never registered",
        ),
        Forgery(
            "promote another key",
            _draft(one, "promote", back, promoted(1, 2), key="f" * 64),
            "names key.json",
        ),
        Forgery(
            "promote another record",
            _draft(one, "promote", back, promoted(1, 2), record="f" * 64),
            "names record.json",
        ),
        Forgery("roll back to another key", _draft(one, "rollback", back, undone, key="f" * 64), "names key"),
        Forgery(
            "rebuild with another key",
            _draft(one, "rebuild", {"previous": 1}, key="f" * 64),
            "never registered",
        ),
        Forgery("rebuild what never was", _draft(one, "rebuild", {}, version=7), "never registered"),
        Forgery("retire what never was", _draft(one, "retire", {}, version=7), "never registered"),
        Forgery(
            "promote in nobody's name", _draft(one, "promote", back, promoted(1, 2), who=" "), "not say who"
        ),
        Forgery("roll back for no reason", _draft(one, "rollback", back, undone, why=""), "not say why"),
        Forgery(
            "promote the champion again",
            _draft(entries[2], "promote", {"champion": 2, "previous": 2}, promoted(2, 2)),
            "moves champion to its version",
        ),
    ]


def _of_rulings(entries: Sequence[Entry]) -> list[Forgery]:
    """Promotions past rules that failed, or that nobody asked."""
    one, _ = _registered(entries)
    aliases = {"champion": 1, "previous": 2}
    failed = _with("accuracy", passed=False, value="0.120")
    said = promoted(1, 2)

    def forged(name: str, named: str, details: dict[str, Any]) -> Forgery:
        return Forgery(name, _draft(one, "promote", aliases, details), named)

    return [
        forged("no rulings", "no rulings that can be read", {"from": 2, "to": 1}),
        forged("rulings of nothing", "no ruling on gate", said | {"rulings": []}),
        forged("a ruling left out", "no ruling on audit", promoted(1, 2, _without("audit"))),
        forged("retention left out", "no ruling on retention", promoted(1, 2, _without("retention"))),
        forged("a rule failed", "accuracy failed, and nobody overrode that", promoted(1, 2, failed)),
        forged(
            "an override that no ruling shows",
            "accuracy failed, and nobody overrode",
            promoted(1, 2, failed) | {"overrides": ["accuracy"]},
        ),
        forged(
            "an override that is not named",
            "overrides that it names are not",
            promoted(1, 2, _overridden("accuracy")) | {"overrides": []},
        ),
        forged("an override of nothing", "overrides that it names are not", said | {"overrides": ["ece"]}),
        forged(
            "a number beyond its bound",
            "accuracy passed with 0.120",
            promoted(1, 2, _with("accuracy", value="0.120")),
        ),
        forged(
            "an error beyond its bound", "ece passed with 0.990", promoted(1, 2, _with("ece", value="0.990"))
        ),
        forged("rulings of another type", "no rulings that can be read", said | {"rulings": "all passed"}),
        forged(
            "passed is a word",
            "no rulings that can be read",
            said | {"rulings": [{**said["rulings"][0], "passed": "yes"}, *said["rulings"][1:]]},
        ),
    ]


def _registered(entries: Sequence[Entry]) -> tuple[Entry, Entry]:
    """Return the registrations of versions 1 and 2."""
    found = [one for one in entries if one.kind == "register" and one.model == entries[-1].model]
    return found[0], found[1]


def _draft(of: Entry, kind: Any, aliases: dict[str, int | None], details=None, **changes: Any) -> Draft:
    return replace(
        Draft(
            kind=kind,
            model=of.model,
            version=of.version,
            key=of.document["key"],
            record=of.document["record"],
            who=ADA,
            why="reviewed",
            aliases=aliases,
            details=details or {},
        ),
        **changes,
    )


def _with(rule: str, **changes: Any):
    return tuple(replace(one, **changes) if one.rule == rule else one for one in PASSED)


def _without(rule: str):
    return tuple(one for one in PASSED if one.rule != rule)


def _overridden(rule: str):
    return _with(rule, passed=False, value="0.120", overridden=True)
