"""The rules that every entry of the ledger keeps: which kind moves which alias, of which version.

A valid hash proves that an entry was not changed after it was written, not who wrote it: anybody who may
write the file can compute one. So each entry is also checked against what canal would have written, given the
entries before it. Audits report breaches; no move is made on top of a ledger with one. A promotion holds the
rulings of the policy on its version: each passed, or is overridden by name. Entries that a merge appended are
held against the entries before them in the ledger that they came from.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal.core.errors import LedgerError
from canal.registry.ledger.joined import CANDIDATE as CANDIDATE
from canal.registry.ledger.joined import CHAMPION as CHAMPION
from canal.registry.ledger.joined import (
    ERASE,
    MEASURE,
    MERGE,
    ModelState,
    erased_versions,
    histories,
    other_ledger,
    replayed,
    step,
)
from canal.registry.ledger.joined import LOST as LOST
from canal.registry.ledger.joined import PREVIOUS as PREVIOUS
from canal.registry.ledger.ledger import Entry
from canal.registry.ledger.rulings import is_ruling as is_ruling
from canal.registry.ledger.rulings import measurement_breaches, ruling_breaches

DECIDED = ("promote", "rollback", "retire", MERGE, ERASE)
"""Kinds of entry that a person decides on; the others are written by commands."""
KINDS = ("register", *DECIDED, "rebuild", MEASURE)

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Breach:
    """A content of an entry that canal would not have written.

    Attributes
    ----------
    entry : Entry
    what : str
        What the entry holds, and what is allowed.
    grave : bool
        False where an older canal wrote it honestly after somebody had moved an alias with plain MLflow.
    """

    entry: Entry
    what: str
    grave: bool = True

    def __str__(self) -> str:
        return (
            f"entry {self.entry.seq} ({self.entry.kind} by {_short(self.entry.document['who'])}): {self.what}"
        )


def breaches(entries: Sequence[Entry], backbone: str) -> list[Breach]:
    """Return the breaches of rules, in the order of the ledger.

    Parameters
    ----------
    entries : sequence of Entry
        The ledger from its first entry on; each has the fields and types of an entry.
    backbone : str
        Name of the registered model of backbones, whose versions serve nobody.
    """
    checked: set[str] = set()
    broken = _broken(entries, backbone, checked)
    for merge, other, _ in histories(entries):
        broken += [
            Breach(merge, f"the ledger that it joined does not hold: {one}", one.grave)
            for one in _broken(other, backbone, checked)
            if one.grave
        ]
    return sorted(broken, key=lambda one: one.entry.seq)


def _broken(entries: Sequence[Entry], backbone: str, checked: set[str]) -> list[Breach]:
    """Return the breaches of a ledger itself, without those of the ledgers joined into it.

    Hashes of entries that were ``checked`` are added: a hash stands for all entries before it, too.
    """
    state: dict[str, ModelState] = {}
    later = {
        (entry.model, entry.version, entry.document["key"]): entry.seq
        for entry in entries
        if entry.kind == "register"
    }
    broken: list[Breach] = []
    closed = _closed(entries)
    for at, entry in enumerate(entries):
        if entry.hash in checked:
            step(state, entry)
            continue
        checked.add(entry.hash)
        own = state.setdefault(entry.model, ModelState())
        complaints: list[tuple[str, bool]] = []

        def complain(what: str, grave: bool = True, to: list[tuple[str, bool]] = complaints) -> None:
            to.append((what, grave))

        check = _CHECKS.get(entry.kind)
        if check is None and entry.kind != MERGE:
            complain(f"there is no such kind of entry; canal writes {', '.join(KINDS)}")
        elif replayed(entry):
            if at not in closed:
                complain("it says that a merge appended it, and no merge follows")
        elif entry.model == backbone and (entry.aliases or entry.kind in DECIDED):
            complain(f"it is about {backbone}, whose versions serve nobody and have no alias")
        elif entry.kind == MERGE:
            _check_merge(entry, entries[:at], state, complain)
        elif check is not None:
            check(entry, own, later, complain)
        broken += [Breach(entry, what, grave) for what, grave in complaints]
        step(state, entry)
    return broken


def _closed(entries: Sequence[Entry]) -> set[int]:
    """Return the places of the entries behind which a merge follows that appended them."""
    closed: set[int] = set()
    merge = False
    for at in range(len(entries) - 1, -1, -1):
        if not replayed(entries[at]):
            merge = entries[at].kind == MERGE
        elif merge:
            closed.add(at)
    return closed


def _check_merge(
    entry: Entry, before: Sequence[Entry], state: Mapping[str, ModelState], complain: Callable[..., None]
) -> None:
    """Check a merge: the other ledger is whole, no number is two versions', aliases are where they were."""
    for name in ("who", "why"):
        if not str(entry.document[name]).strip():
            complain(f"it does not say {name}")
    if (entry.version, entry.document["key"], entry.document["record"]) != (0, "", ""):
        complain("a merge is about no version")
    try:
        other = other_ledger(before, entry)
    except LedgerError as error:
        complain(str(error))
        return
    for one in other[int(entry.document["details"]["base"]) :]:
        known = state[one.model].known.get(one.version) if one.model in state else None
        if one.kind in ("register", "rebuild") and known and known.document["key"] != one.document["key"]:
            complain(f"both ledgers gave {one.model} {one.version} to different versions (entry {known.seq})")
    for model, found in state.items():
        wanted = found.aliases_after_merge()
        given = dict(entry.aliases) if model == entry.model else {}
        if given != wanted:
            complain(f"aliases stay where this ledger had them; this one says {_moves(entry)}")
        if found.retired and wanted.get(CHAMPION) in found.retired:
            complain(f"version {wanted[CHAMPION]} is the champion, and the ledger that it joined retired it")


def require_rules(entries: Sequence[Entry], backbone: str, name: str) -> None:
    """Refuse a ledger with grave breaches.

    Raises
    ------
    LedgerError
        Naming each such entry, and how to restore the ledger.
    """
    grave = [one for one in breaches(entries, backbone) if one.grave]
    if not grave:
        return
    shown = "\n  ".join(str(one) for one in grave[:10])
    raise LedgerError(
        f"{name} holds {len(grave)} things that canal does not write, though hashes fit; nothing was moved:\n"
        f"  {shown}\nFind out who wrote that: git log -p -- {name}. Then bring back the ledger of before "
        f"(git checkout COMMIT -- {name}); `canal audit` names the aliases that are another's by then, and "
        "`canal promote` or `canal rollback` moves them, on record"
    )


def next_breaches(entries: Sequence[Entry], entry: Entry, backbone: str) -> list[Breach]:
    """Return the grave breaches of an entry as the next one after ``entries``."""
    return [one for one in breaches([*entries, entry], backbone) if one.grave and one.entry is entry]


def require_next(entries: Sequence[Entry], entry: Entry, backbone: str) -> None:
    """Refuse to write an entry that would break a rule.

    Raises
    ------
    LedgerError
        Naming the rules.
    """
    if wrong := next_breaches(entries, entry, backbone):
        raise LedgerError(
            f"nothing was moved, for the ledger would not hold: {'; '.join(str(one) for one in wrong)}. Does "
            "`canal audit` find something? A version without an entry is entered by `canal registry sync`"
        )


Later = Mapping[tuple[str, int, str], int]
Complain = Callable[..., None]


def check_registration(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a version's first entry: the number is new, and only ``candidate`` moves."""
    if entry.version in state.records:
        complain(
            f"version {entry.version} was registered before, by entry {state.records[entry.version].seq}"
        )
    if entry.aliases not in ({}, {CANDIDATE: entry.version}):
        what = f"a registration moves {CANDIDATE} to the version that it registers, and no other alias"
        complain(f"{what}; this one says {_moves(entry)}")


def check_promotion(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a promotion: who serves, and the rulings of the policy."""
    _serve(entry, state, later, complain)
    for what in ruling_breaches(entry.document["details"]):
        complain(what)


def check_rollback(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a rollback: to a version that served before."""
    _serve(entry, state, later, complain)
    if entry.document["details"].get("from") is None and state.aliases.get(CHAMPION) != entry.version:
        complain("it names no champion to go back from")
    if entry.version not in state.served:
        complain(f"version {entry.version} never served: it was let serve past every rule", False)


def _serve(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check an entry that makes a version the champion, and the former champion ``previous``."""
    details, before = entry.document["details"], state.aliases.get(CHAMPION)
    _decided(entry, state, later, complain)
    if entry.version in state.retired:
        complain(f"version {entry.version} was retired and serves no more")
    former = details.get("from")
    wanted = {CHAMPION: entry.version} | ({} if former is None else {PREVIOUS: former})
    if entry.aliases != wanted or details.get("to") != entry.version or former == entry.version:
        complain(
            f"it moves {CHAMPION} to its version, and {PREVIOUS} to the champion of before; this one says "
            f"{_moves(entry)}, from {_short(former)} to {_short(details.get('to'))}"
        )
    if former == before or (former is not None and not isinstance(former, int)):
        return
    named = "no version" if former is None else f"version {former}"
    known = former is None or former in state.records or _registered_later(entry, former, later)
    complain(
        f"it says that {named} served before, by the ledger it was {before or 'none'}"
        + (": the alias had been moved without an entry" if known else ", and that was never registered"),
        not known,
    )


def check_retirement(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a retirement: never of the champion, and whose aliases move."""
    _decided(entry, state, later, complain)
    if entry.version in state.retired:
        complain(f"version {entry.version} was retired before")
    if state.aliases.get(CHAMPION) == entry.version:
        complain(f"version {entry.version} is the champion, which is never retired")
    _check_handed_on(entry, {entry.version}, state, later, complain)


def check_erasure(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check an erasing: of registered versions, never of the champion; and that no alias stays on them."""
    details = entry.document["details"]
    for name in ("who", "why"):
        if not str(entry.document[name]).strip():
            complain(f"it does not say {name}")
    if (entry.version, entry.document["key"], entry.document["record"]) != (0, "", ""):
        complain("an erasing names its versions in its details")
    versions = erased_versions(entry)
    digests = [details.get(name) for name in ("cells", "token", "tombstones")]
    if versions != details.get("versions") or not all(
        isinstance(one, str) and _SHA256.fullmatch(one) for one in digests
    ):
        complain("it does not name by digest which cells, of which versions, it erased by which plan")
        return
    mine = {one["version"]: one for one in versions if one["model"] == entry.model}
    for number, one in sorted(mine.items()):
        before = state.records.get(number)
        if before is None:
            complain(f"version {number} was never registered")
        elif (before.document["key"], before.document["record"]) != (one["key"], one["record"]):
            complain(f"version {number} was registered with another key or record (entry {before.seq})")
    if state.aliases.get(CHAMPION) in mine:
        complain(f"version {state.aliases[CHAMPION]} is the champion, whose files are never erased")
    _check_handed_on(entry, set(mine), state, later, complain)
    if left := [alias for alias, at in state.aliases.items() if at in mine and alias not in entry.aliases]:
        complain(f"{', '.join(sorted(map(str, left)))} stays on a version that it erased")


def _check_handed_on(
    entry: Entry, gone: Collection[int], state: ModelState, later: Later, complain: Complain
) -> None:
    """Check that ``previous`` is taken off versions that serve no more, and ``candidate`` handed on."""
    what = "a retirement" if entry.kind == "retire" else "an erasing"
    numbers = " or ".join(map(str, sorted(gone))) or "none"
    for alias, number in entry.aliases.items():
        may_serve = number not in state.retired and (
            number in state.records or _registered_later(entry, number, later)
        )
        if alias == CANDIDATE and (number is None or may_serve):
            held = state.aliases.get(CANDIDATE) in gone and number not in gone
        elif alias == PREVIOUS and number is None:
            held = state.aliases.get(PREVIOUS) in gone
        else:
            complain(
                f"{what} takes {PREVIOUS} off its version and hands {CANDIDATE} to another that may "
                f"serve; this one says {_moves(entry)}"
            )
            break
        if not held:
            grave = entry.kind == ERASE or number in gone
            complain(f"by the ledger, {alias} did not point to version {numbers}", grave)


def _registered_later(entry: Entry, number: int | None, later: Later) -> bool:
    """Whether a later entry registers a version, which a kill had left without one."""
    return any((model, one) == (entry.model, number) for model, one, _ in later)


def check_rebuild(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a version that was rebuilt: registered before, aliases where they were."""
    before = state.records.get(entry.version)
    if before is None or before.document["key"] != entry.document["key"]:
        complain(
            f"version {entry.version} with this key was never registered, so there was nothing to rebuild"
        )
    held = {alias for alias, number in state.aliases.items() if number == entry.version}
    there = None if entry.document["details"].get(LOST) is True else entry.version
    if entry.aliases != dict.fromkeys(held, there):
        what = (
            "takes off the aliases of a version that is lost"
            if there is None
            else "leaves aliases where they were"
        )
        held_now = ", ".join(sorted(held)) or "no alias"
        complain(f"rebuilding {what}; version {entry.version} has {held_now}, this one says {_moves(entry)}")


def check_measurement(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check a further measurement: of a registered version, figures that fit each other, no alias moves."""
    _of_version(entry, state, later, complain)
    if entry.aliases:
        complain(f"a measurement moves no alias; this one says {_moves(entry)}")
    for what in measurement_breaches(entry.document["details"]):
        complain(what)


def _decided(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check that an entry names person and reason, and a registered version with its digests."""
    for name in ("who", "why"):
        if not str(entry.document[name]).strip():
            complain(f"it does not say {name}")
    _of_version(entry, state, later, complain)


def _of_version(entry: Entry, state: ModelState, later: Later, complain: Complain) -> None:
    """Check that an entry names a registered version with its digests."""
    before = state.records.get(entry.version)
    if before is None:
        seq = later.get((entry.model, entry.version, entry.document["key"]))
        at = "never registered" if seq is None else f"registered only later (entry {seq})"
        complain(f"version {entry.version} was {at}", seq is None)
    elif before.document["details"].get(LOST) is True:
        complain(f"version {entry.version} was lost (entry {before.seq})")
    else:
        for name in ("key", "record"):
            if before.document[name] != entry.document[name]:
                digests = f"{_short(entry.document[name], 12)}, registered (entry {before.seq}) is another"
                complain(f"it names {name}.json with digest {digests}")


_CHECKS = {
    "register": check_registration,
    "promote": check_promotion,
    "rollback": check_rollback,
    "retire": check_retirement,
    "rebuild": check_rebuild,
    MEASURE: check_measurement,
    ERASE: check_erasure,
}


def _moves(entry: Entry) -> str:
    moved = [f"{_short(alias)} to {'nothing' if to is None else to}" for alias, to in entry.aliases.items()]
    return ", ".join(moved[:5]) or "nothing"


def _short(value: Any, longest: int = 60) -> str:
    text = value if isinstance(value, str) and longest < 60 else repr(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
