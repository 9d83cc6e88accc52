"""Ledgers of two clones joined: the other's entries appended anew, and a ``merge`` entry with both heads.

An entry that is appended anew keeps what it said; the number, hash and signature that it had stand in its
details (``merged``), a level for each time. So the other ledger can be made again from the joined one, to the
byte, and the hash of its last entry proves that none of its entries is missing or was changed. Entries that
both ledgers hold, since one was merged into the other before, stand in the joined one once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.core.errors import LedgerError
from canal.registry.ledger.ledger import BEGINNING, Document, Entry, Ledger, entry_hash

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
LOST = "lost"
"""Field in the details of a rebuild entry: the version could not be rebuilt, its number stays free."""
MERGE = "merge"
"""Kind of the entry that closes the entries of another ledger."""
ERASE = "erase"
"""Kind of the entry that says which versions' files were removed."""
MEASURE = "measure"
"""Kind of the entry with a further measurement of a version: how well held-out cell types are noticed."""
MERGED = "merged"
"""Field in the details of an entry that was appended anew."""

Level = Mapping[str, Any]
_LEVEL = {"seq": int, "previous": str, "hash": str}
_REGISTERED = ("register", "rebuild")


class LedgerText(Ledger):
    """A ledger that git or another clone has; ``shown`` is what it is called."""

    def __init__(self, shown: str, content: bytes) -> None:
        super().__init__(Path(shown))
        self.content = content

    def _lines(self) -> list[bytes]:
        return self.content.split(b"\n")[:-1]


@dataclass(frozen=True)
class Join:
    """Two ledgers joined, short of the entry that says who joined them.

    Attributes
    ----------
    entries : list of Entry
        This ledger as it is, and the other's entries that it lacked, chained to it.
    new : list of Entry
        Those that were appended.
    details : dict
        What the merge entry has to say: number of common entries, both heads, what both hold.
    """

    entries: list[Entry]
    new: list[Entry]
    details: Document


def replayed(entry: Entry) -> bool:
    """Whether an entry was appended anew by a merge."""
    return MERGED in entry.document["details"]


def origin(entry: Entry) -> Entry:
    """Return an entry as it was first written, with its signature; one that was never merged as it is."""
    levels = _levels(entry.document["details"].get(MERGED))
    if not levels:
        return entry
    try:
        return _placed(entry.document, (), levels[0])
    except ValueError:  # a number that JSON cannot hold
        return entry


@dataclass
class ModelState:
    """The state of one registered model after the entries so far.

    ``kept`` and ``known`` are aliases and records from before the entries that a merge appended, while those
    are read.
    """

    aliases: dict[str, int] = field(default_factory=dict)
    records: dict[int, Entry] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    served: set[int] = field(default_factory=set)
    kept: dict[str, int] | None = None
    known: Mapping[int, Entry] = field(default_factory=dict)

    def begin(self) -> None:
        """Entries follow that a merge appended."""
        if self.kept is None:
            self.kept, self.known = dict(self.aliases), dict(self.records)

    def end(self) -> None:
        """The entries that a merge appended have ended."""
        self.kept, self.known = None, {}

    def aliases_after_merge(self) -> dict[str, int | None]:
        """Return where aliases stand after a merge: where they were, but on no version that was retired."""
        before = self.kept or {}
        after: dict[str, int | None] = {**dict.fromkeys(self.aliases), **before}
        if after.get(PREVIOUS) in self.retired:
            after[PREVIOUS] = None
        if after.get(CANDIDATE) in self.retired:
            lost = {n for n, one in self.records.items() if one.document["details"].get(LOST)}
            after[CANDIDATE] = max(self.records.keys() - self.retired - lost, default=None)
        return after

    def take(self, entry: Entry) -> None:
        """Take an entry about the model into the state."""
        for alias, number in entry.aliases.items():
            if number is None:
                self.aliases.pop(alias, None)
            else:
                self.aliases[alias] = number
        if entry.kind in _REGISTERED:
            if entry.version not in self.known:
                self.records[entry.version] = entry
        elif entry.kind == "retire":
            self.retired.add(entry.version)
        elif entry.kind == ERASE:
            self.retired |= {one["version"] for one in erased_versions(entry) if one["model"] == entry.model}
        elif entry.kind not in (MERGE, MEASURE):
            self.served.add(entry.version)


def merge_aliases(entries: Sequence[Entry], model: str) -> dict[str, int | None]:
    """Return the aliases of the merge entry that follows ``entries``, the last of which it appended."""
    state: dict[str, ModelState] = {}
    for entry in entries:
        step(state, entry)
    return state[model].aliases_after_merge() if model in state else {}


def step(state: dict[str, ModelState], entry: Entry) -> None:
    """Take an entry into the state of its model."""
    own = state.setdefault(entry.model, ModelState())
    for one in state.values():
        (one.begin if replayed(entry) else one.end)()
    own.take(entry)


def ledger_records(entries: Sequence[Entry]) -> dict[tuple[str, int], Entry]:
    """Return the last registration (or rebuild) of each version, by model and number.

    What a merge appended tells of another store: it counts for versions alone that were unknown before.
    """
    records: dict[tuple[str, int], Entry] = {}
    before: frozenset[tuple[str, int]] | None = None
    for entry in entries:
        name = (entry.model, entry.version)
        if not replayed(entry):
            before = None
        elif before is None:
            before = frozenset(records)
        if entry.kind in _REGISTERED and (before is None or name not in before):
            records[name] = entry
    return records


def ledger_retired(entries: Sequence[Entry], model: str) -> set[int]:
    """Return the numbers of the versions of ``model`` that were retired, or whose files were erased."""
    retired = {entry.version for entry in entries if entry.kind == "retire" and entry.model == model}
    return retired | {number for name, number in ledger_erased(entries) if name == model}


def ledger_erased(entries: Sequence[Entry]) -> dict[tuple[str, int], Entry]:
    """Return the entry by which the files of each version were first erased, by model and number."""
    erased: dict[tuple[str, int], Entry] = {}
    for entry in entries:
        for one in erased_versions(entry):
            erased.setdefault((one["model"], one["version"]), entry)
    return erased


def erased_versions(entry: Entry) -> list[Document]:
    """Return the versions that an entry erased, each with model, version, key and record; else none.

    Versions that are not named as canal names them are left out: `ledger_rules` reports them.
    """
    named = entry.document["details"].get("versions") if entry.kind == "erase" else None
    shapes = {"model": str, "version": int, "key": str, "record": str}
    return [
        one
        for one in (named if isinstance(named, list) else ())
        if isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in shapes.items())
    ]


def entry_text(entry: Entry) -> str:
    """Return a sentence about an entry: kind, version, person, reason and moved aliases."""
    document = entry.document
    moved = [f"{alias} to {'nothing' if to is None else to}" for alias, to in entry.aliases.items()]
    signed = ", signed" if "signature" in document else ", not signed"
    why = f": {document['why'][:200]!r}" if document["why"] else ""
    numbers = ", ".join(str(one["version"]) for one in erased_versions(entry)) or entry.version
    return (
        f"{entry.kind} of {entry.model} {numbers} by {document['who'][:200]!r}{why} "
        f"({', '.join(moved) or 'no alias moves'}{signed})"
    )


def join(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Join:
    """Append the entries of ``theirs`` that ``ours`` lacks anew, in their order.

    Neither may hold the other (`holds`); their chains are valid.
    """
    pairs = enumerate(zip(ours, theirs, strict=False))
    base = next((at for at, (one, other) in pairs if one.hash != other.hash), min(len(ours), len(theirs)))
    here = {origin(entry).hash: entry.seq for entry in ours}
    entries, held = [*ours], []
    for entry in theirs[base:]:
        at = here.get(origin(entry).hash)
        if at is not None:
            levels = entry.document["details"].get(MERGED, [])
            held.append({"seq": entry.seq, "at": at, MERGED: levels})
            continue
        document = entry.document
        level = {name: document[name] for name in (*_LEVEL, "signature") if name in document}
        levels = [*document["details"].get(MERGED, ()), level]
        previous = entries[-1].hash if entries else BEGINNING
        entries.append(_placed(document, levels, {"seq": len(entries) + 1, "previous": previous}))
    details = {"base": base, "ours": _head(ours), "theirs": _head(theirs), "held": held}
    return Join(entries, entries[len(ours) :], details)


def other_ledger(entries: Sequence[Entry], merge: Entry) -> list[Entry]:
    """Return the ledger that a merge entry joined, made again from the entries before it.

    Raises
    ------
    LedgerError
        Saying what is not as a merge writes it.
    """
    try:
        return _other_ledger(entries, merge.document["details"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError("it does not say which ledger it joined, and where") from error


def _other_ledger(entries: Sequence[Entry], details: Document) -> list[Entry]:
    if set(details) != {"base", "ours", "theirs", "held"}:
        raise KeyError("details")
    base, ours, theirs = int(details["base"]), details["ours"], details["theirs"]
    held = {int(one["seq"]): one for one in details["held"]}
    first = len(entries)
    while first and replayed(entries[first - 1]):
        first -= 1
    if ours != _head(entries[:first]) or not 0 <= base <= first:
        raise LedgerError(
            f"it names {_head_text(ours)} as this ledger's last entry before what it joined, which is "
            f"{_head_text(_head(entries[:first]))}"
        )
    other, left = [*entries[:base]], list(reversed(entries[first:]))
    for seq in range(base + 1, int(theirs["seq"]) + 1):
        previous = other[-1].hash if other else BEGINNING
        if seq in held:
            made = _held(entries[:first], held[seq], previous)
        elif left:
            made = _before(left.pop())
        else:
            raise LedgerError(f"entry {seq} of the ledger that it joined is missing")
        if (made.seq, made.document["previous"]) != (seq, previous):
            raise LedgerError(f"entry {seq} of the ledger that it joined is missing, or was changed")
        other.append(made)
    if _head(other) != theirs:
        raise LedgerError(
            f"what it joined ends with {_head_text(_head(other))}, and it names {_head_text(theirs)}"
        )
    if left:
        raise LedgerError(f"{len(left)} entries before it are not of the ledger that it joined")
    if first == len(entries) or base in (first, len(other)) or other[base].hash == entries[base].hash:
        raise LedgerError("one of the two ledgers that it joined was the beginning of the other")
    return other


def _held(ours: Sequence[Entry], one: Mapping[str, Any], previous: str) -> Entry:
    """Return an entry that both ledgers hold as it stands in the other one."""
    entry = origin(ours[int(one["at"]) - 1])
    levels = _levels(one[MERGED])
    if not levels:
        return entry
    return _placed(entry.document, levels, {"seq": one["seq"], "previous": previous})


def histories(entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[Entry], int]]:
    """Yield the ledgers that merges joined, and those joined into these: each once, from its first entry.

    With each come the merge entry of ``entries`` that brought it, and how many entries it has in common with
    the ledger into which it was joined. A merge that does not hold is passed over.
    """
    seen: set[str] = set()
    left: list[tuple[Entry | None, Sequence[Entry], int]] = [(None, entries, 0)]
    while left:
        top, ledger, start = left.pop()
        for at in range(len(ledger) - 1, start - 1, -1):  # the newest is mostly the one that is looked for
            entry = ledger[at]
            if entry.kind != MERGE or replayed(entry) or entry.hash in seen:
                continue
            seen.add(entry.hash)
            try:
                other = other_ledger(ledger[:at], entry)
            except LedgerError:
                continue
            base = int(entry.document["details"]["base"])
            yield top or entry, other, base
            left.append((top or entry, other, base))


def holds(entries: Sequence[Entry], content: bytes) -> bool:
    """Whether a ledger with this content is the beginning of ``entries``, or of a ledger joined into them."""
    if ledger_bytes(entries).startswith(content):
        return True
    return any(ledger_bytes(other).startswith(content) for _, other, _ in histories(entries))


def ledger_bytes(entries: Sequence[Entry]) -> bytes:
    """Return the content of a ledger's file."""
    return "".join(entry.line for entry in entries).encode()


def _before(entry: Entry) -> Entry:
    """Return an entry as it stood in the ledger from which it was appended."""
    levels = _levels(entry.document["details"][MERGED])
    if not levels:
        raise LedgerError(f"entry {entry.seq} does not say where it stood in the ledger that it came from")
    made = _placed(entry.document, levels[:-1], levels[-1])
    if made.hash != levels[-1]["hash"]:
        raise LedgerError(
            f"entry {entry.seq} is not what it was: its content had hash {made.hash[:12]}... there, it says "
            f"{levels[-1]['hash'][:12]}..."
        )
    return made


def _placed(document: Document, levels: Sequence[Level], place: Level) -> Entry:
    """Return the entry with this content at another place: number, hash before, signature if any."""
    details = {name: value for name, value in document["details"].items() if name != MERGED}
    made = {**document, "details": details | ({MERGED: [*levels]} if levels else {})}
    made |= {"seq": place["seq"], "previous": place["previous"]}
    made.pop("signature", None)
    made["hash"] = entry_hash(made)
    if "signature" in place:
        made["signature"] = place["signature"]
    return Entry(made)


def _levels(value: Any) -> list[Level]:
    """Return the levels in the details of an entry; none where they are not as a merge writes them."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return []
    typed = all(isinstance(one.get(name), kind) for one in value for name, kind in _LEVEL.items())
    signed = all(isinstance(one.get("signature", {}), dict) for one in value)
    return value if typed and signed and all(set(one) <= {*_LEVEL, "signature"} for one in value) else []


def _head(entries: Sequence[Entry]) -> Document:
    return {"seq": len(entries), "hash": entries[-1].hash if entries else BEGINNING}


def _head_text(head: Mapping[str, Any]) -> str:
    return f"entry {str(head['seq'])[:12]} ({str(head['hash'])[:12]}...)"
