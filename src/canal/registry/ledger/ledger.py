"""ledger.jsonl: what was registered, and who moved which alias and why, in a chain of hashed entries.

Each entry is a line of canonical JSON. Its hash covers everything in it but the hash and the signature, and
so, through ``previous``, every entry before it. Lines are only appended, and are on disk (fsync) before a
command reports success. Names and reasons stay for ever, so they hold printable characters alone.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import LedgerError, RegistryError
from canal.core.files import append_line, parse_json

FORMAT = 1
BEGINNING = "0" * 64
"""``previous`` of the first entry."""

Kind = Literal["register", "promote", "rollback", "retire", "rebuild", "merge", "erase", "measure"]
Document = dict[str, Any]

_MOST_WRONG = 1000
"""Reading stops after so many faulty lines: the file is no ledger, and naming each would take minutes."""

_LONGEST = 60

_UNHASHED = ("hash", "signature")
_FIELDS = {
    "format": int,
    "seq": int,
    "time": str,
    "kind": str,
    "model": str,
    "version": int,
    "key": str,
    "record": str,
    "who": str,
    "why": str,
    "aliases": dict,
    "details": dict,
    "previous": str,
    "hash": str,
}
"""Fields of an entry and their types; values of a hand-made entry with a valid hash are not trusted."""

Sign = Callable[[str], Mapping[str, str]]
"""Turns a hash into ``{"key": ..., "value": ...}``; see `canal.registry.ledger.signing`."""

LONGEST_NAME = 200
LONGEST_REASON = 2000

_CONTROL = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories that could break a line, turn the writing direction, or not be written at all."""


@dataclass(frozen=True)
class Draft:
    """The content of an entry to be written.

    Attributes
    ----------
    kind : str
        register, promote, rollback, retire, rebuild, merge, erase or measure.
    model, version : str, int
        The registered model, and the version that the entry is about; 0 for a merge or an erasing.
    key, record : str
        Digests of the version's key.json and record.json.
    who, why : str
        The person and the reason; a registration is made by sync and names no reason.
    aliases : dict
        The aliases that move, each with the number it points to afterwards; None removes it.
    details : dict
        Rulings and overrides of a promotion, the parent of a registration, the runs of a rebuilt version, the
        figures of a measurement.
    """

    kind: Kind
    model: str
    version: int
    key: str
    record: str
    who: str
    why: str = ""
    aliases: Mapping[str, int | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    document: Document

    @property
    def seq(self) -> int:
        """Number of the entry, from 1 without a gap."""
        return int(self.document["seq"])

    @property
    def kind(self) -> str:
        """Kind of the entry, such as register or promote."""
        return str(self.document["kind"])

    @property
    def version(self) -> int:
        """Number of the version that the entry is about."""
        return int(self.document["version"])

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return str(self.document["model"])

    @property
    def aliases(self) -> dict[str, int | None]:
        """Aliases that the entry moved, with their new numbers; None for a removed alias."""
        return dict(self.document["aliases"])

    @property
    def hash(self) -> str:
        """SHA-256 of everything in the entry but this hash and the signature."""
        return str(self.document["hash"])

    @property
    def line(self) -> str:
        """The entry as it stands in the file."""
        return canonical_json(self.document) + "\n"


def entry_hash(document: Mapping[str, Any]) -> str:
    """Return the hash that an entry's content must have."""
    return json_digest({name: value for name, value in document.items() if name not in _UNHASHED})


class Ledger:
    """The ledger in ``path``; a missing file is an empty ledger.

    Writers hold the registry's lock (`canal.registry.store.store.Store.lock`); readers need none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first, after checking format, numbers, hashes and the chain.

        Raises
        ------
        LedgerError
            Naming every line that does not hold.
        """
        entries, wrong = self.read()
        if wrong:
            shown = "\n  ".join(wrong[:20])
            name = self.path.name
            back = f"Bring it back: git checkout -- {name}"
            if any(line.startswith(b"<<<<<<< ") for line in self._lines()):
                back = (
                    "It holds two sides of an unsettled merge: `canal ledger merge` joins them into one "
                    "chain (undo a rebase first: git rebase --abort, then git merge)"
                )
            raise LedgerError(
                f"{self.path} does not hold: it was changed after it was written "
                f"({len(wrong)} findings)\n  {shown}\n{back}"
            )
        return entries

    def read(self) -> tuple[list[Entry], list[str]]:
        """Return the readable entries, and one sentence for each fault of a line.

        A last line without its line break was being written when the machine stopped; no command reported it
        as written, so it is skipped, and `mend` removes it.
        """
        entries: list[Entry] = []
        wrong: list[str] = []
        previous = BEGINNING
        for number, line in enumerate(self._lines(), start=1):
            if len(wrong) > _MOST_WRONG:
                wrong.append(f"line {number} and those behind it are not looked at: too much does not hold")
                break
            document = _parse(line)
            if isinstance(document, str):
                wrong.append(f"line {number}: {document}")
                continue
            wrong += [f"line {number}: {what}" for what in _complaints(document, number, previous)]
            previous = str(document["hash"])
            entries.append(Entry(document))
        return entries, wrong

    def head(self) -> Entry | None:
        """Return the last entry, or None; raises `LedgerError` for a damaged ledger."""
        entries = self.entries()
        return entries[-1] if entries else None

    def next(self, draft: Draft, sign: Sign | None = None) -> Entry:
        """Return the entry of a draft, chained to the last one; nothing is written."""
        head = self.head()
        document: Document = {
            "format": FORMAT,
            "seq": head.seq + 1 if head else 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "kind": draft.kind,
            "model": draft.model,
            "version": draft.version,
            "key": draft.key,
            "record": draft.record,
            "who": draft.who,
            "why": draft.why,
            "aliases": dict(draft.aliases),
            "details": json.loads(canonical_json(draft.details)),
            "previous": head.hash if head else BEGINNING,
        }
        document["hash"] = entry_hash(document)
        if sign is not None:
            document["signature"] = dict(sign(document["hash"]))
        return Entry(document)

    def append(self, entry: Entry) -> None:
        """Append an entry made by `next`, atomically.

        Raises
        ------
        LedgerError
            If the entry does not follow the last one, or cannot be written; the file is as it was.
        """
        head = self.head()
        if entry.document["previous"] != (head.hash if head else BEGINNING):
            raise LedgerError(
                f"{self.path} ends with entry {head.seq if head else 0}; entry {entry.seq} does not follow it"
            )
        self.mend()
        try:
            append_line(self.path, entry.line.removesuffix("\n"))
        except OSError as error:
            raise LedgerError(
                f"cannot write {self.path}: {error.strerror or error}; it is as it was"
            ) from error

    def mend(self) -> bool:
        """Remove a half-written last line; return whether there was one."""
        if not self.path.is_file():
            return False
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return False
        with self.path.open("rb+") as stream:
            stream.truncate(whole)
            os.fsync(stream.fileno())
        return True

    def _lines(self) -> list[bytes]:
        if not self.path.is_file():
            return []
        *whole, _torn = self.path.read_bytes().split(b"\n")
        return whole


def checked_entry(line: str | bytes, seq: int | None) -> Entry:
    """Return the entry of a line from elsewhere, checked by itself; `Ledger.append` checks the chain.

    Raises
    ------
    LedgerError
        If it is not the line of entry ``seq`` (None: of any), or was changed.
    """
    document = _parse(line.encode() if isinstance(line, str) else line)
    if isinstance(document, str):
        raise LedgerError(document)
    if wrong := _complaints(document, document["seq"] if seq is None else seq, str(document["previous"])):
        raise LedgerError("; ".join(wrong))
    return Entry(document)


def follows(entry: Entry, head: Entry | None) -> bool:
    """Whether an entry is the next one after ``head``, or the first where that is None."""
    if head is None:
        return entry.document["previous"] == BEGINNING and entry.seq == 1
    return entry.document["previous"] == head.hash and entry.seq == head.seq + 1


def ledger_aliases(entries: list[Entry], model: str) -> dict[str, int]:
    """Return the version numbers of a model's aliases, by the last entry about each alias."""
    pointed: dict[str, int | None] = {}
    for entry in entries:
        if entry.model == model:
            pointed |= entry.aliases
    return {alias: number for alias, number in pointed.items() if number is not None}


def read_entry(line: bytes) -> Entry | str:
    """Return the entry in a single line, or its fault; its place in the chain is not checked."""
    document = _parse(line)
    if isinstance(document, str):
        return document
    try:
        holds = document["hash"] == entry_hash(document)
    except ValueError:
        holds = False
    return Entry(document) if holds else "its content does not have the hash that it names"


def plain_name(text: str, what: str) -> str:
    """Return the name of a person, a team or a program, without outer spaces.

    Raises
    ------
    RegistryError
        If it is empty, longer than 200 characters, or holds characters that cannot be seen.
    """
    return _checked(text, what, LONGEST_NAME)


def plain_reason(text: str, what: str = "the reason (--why)") -> str:
    """Return a reason of at most 2,000 characters; see `plain_name`."""
    return _checked(text, what, LONGEST_REASON)


def _parse(line: bytes) -> Document | str:
    """Return the document of a line, or its fault."""
    try:
        document = parse_json(line)
    except ValueError:
        return "not JSON"
    if not isinstance(document, dict):
        return f"expected an object, found {type(document).__name__}"
    if document.get("format") != FORMAT:
        return f"this canal reads ledger format {FORMAT}, found {_shown(document.get('format'))}"
    missing = sorted(_FIELDS.keys() - document.keys())
    unknown = sorted(document.keys() - _FIELDS.keys() - {"signature"})
    if missing or unknown:
        return (
            f"fields missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown)[:200] or 'none'}"
        )
    wrong = [name for name, shape in _FIELDS.items() if not isinstance(document[name], shape)]
    if not wrong and not all(one is None or isinstance(one, int) for one in document["aliases"].values()):
        wrong = ["aliases"]
    signature = document.get("signature", {"key": "", "value": ""})
    if not isinstance(signature, dict) or not all(
        isinstance(signature.get(n), str) for n in ("key", "value")
    ):
        wrong.append("signature")
    return f"{', '.join(wrong)}: not what is expected there" if wrong else document


def _shown(value: Any) -> str:
    """Return a value shortened for a message."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _complaints(document: Document, number: int, previous: str) -> list[str]:
    wrong = []
    if document["seq"] != number:
        wrong.append(f"entry number {_shown(document['seq'])}, expected {number}")
    if document["previous"] != previous:
        wrong.append(
            f"follows {str(document['previous'])[:12]}..., but the entry before is {previous[:12]}..."
        )
    try:
        expected = entry_hash(document)
    except ValueError:
        expected = ""
    if document["hash"] != expected:
        wrong.append(f"content has hash {expected[:12]}..., the entry says {str(document['hash'])[:12]}...")
    return wrong


def _checked(text: str, what: str, longest: int) -> str:
    stripped = text.strip()
    if not stripped:
        raise RegistryError(f"{what} is empty: it is kept on record, so say it in a few words")
    if len(stripped) > longest:
        raise RegistryError(f"{what} has {len(stripped):,} characters; at most {longest:,} are kept")
    hidden = sorted({ascii(one) for one in stripped if unicodedata.category(one) in _CONTROL})
    if hidden:
        raise RegistryError(
            f"{what} holds characters that cannot be seen ({', '.join(hidden[:5])}): write it on one line "
            "in plain text"
        )
    return stripped
