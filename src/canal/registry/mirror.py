"""The ledger of a tracking server: each entry also stands there, as tags of the registered model.

Two machines that use one server have a ledger file each. Who wants to write must have seen everything that
the server has; ``canal ledger --catch-up`` brings what is missing.
"""

import json

from canal.errors import LedgerError
from canal.registry.ledger import Entry, Ledger
from canal.registry.store import TAG, Store

_PREFIX = f"{TAG}ledger."
_MOST = 4500
"""Characters a tag: MLflow takes 5,000."""


def mirror(store: Store, entry: Entry) -> None:
    """Write an entry to the server, in as many tags as it needs; a local store needs none.

    Raises
    ------
    LedgerError
        If the server has another entry of this number: somebody was quicker.
    """
    if not store.remote:
        return
    there = {one.seq: one for one in mirrored(store)}.get(entry.seq)
    if there is not None and there.hash != entry.hash:
        raise LedgerError(
            f"{store.shown} has another entry {entry.seq}, by {there.document['who']}: "
            "nothing was moved; run `canal ledger --catch-up`, then try again"
        )
    parts = [entry.line[start : start + _MOST] for start in range(0, len(entry.line), _MOST)]
    for number, part in reversed(list(enumerate(parts))):  # the first part last: with it the entry is whole
        store.model_tag(entry.model, _name(entry.seq, number), part)


def mirrored(store: Store) -> list[Entry]:
    """Return the entries on the server, oldest first."""
    parts: dict[int, dict[int, str]] = {}
    for model in (store.names.model, store.names.backbone):
        for name, value in store.model_tags(model).items():
            if name.startswith(_PREFIX):
                seq, _, part = name.removeprefix(_PREFIX).partition(".")
                parts.setdefault(int(seq), {})[int(part or 0)] = value
    found = []
    for seq in sorted(parts):
        if 0 in parts[seq]:
            text = "".join(parts[seq][number] for number in sorted(parts[seq]))
            found.append(_entry(store, seq, text))
    return found


def refuse_behind(store: Store, ledger: Ledger) -> None:
    """Refuse where the server's ledger is not the same as this one, or the beginning of it.

    Raises
    ------
    LedgerError
        Saying how to catch up.
    """
    if not store.remote:
        return
    here, there = ledger.entries(), mirrored(store)
    for mine, other in zip(here, there, strict=False):
        if mine.hash != other.hash:
            raise LedgerError(
                f"{ledger.path} and {store.shown} differ from entry {mine.seq} on: this ledger belongs "
                "to another history; set it aside, then run `canal ledger --catch-up`"
            )
    if len(there) > len(here):
        raise LedgerError(
            f"{ledger.path} ends with entry {len(here)}, {store.shown} has {len(there)}: somebody else moved "
            "something; run `canal ledger --catch-up`, look at it with `canal ledger`, then try again"
        )
    for entry in here[len(there) :]:  # a server that was made anew
        mirror(store, entry)


def catch_up(store: Store, ledger: Ledger) -> list[Entry]:
    """Append the entries that the server has and this ledger has not; return them.

    Raises
    ------
    LedgerError
        If this ledger is not the beginning of the server's.
    """
    with store.lock("registry"):
        here, there = ledger.entries(), mirrored(store)
        if [entry.hash for entry in here] != [entry.hash for entry in there[: len(here)]]:
            raise LedgerError(
                f"{ledger.path} is not the beginning of the ledger of {store.shown}: set it aside, try again"
            )
        for entry in there[len(here) :]:
            ledger.append(entry)
        return there[len(here) :]


def _name(seq: int, part: int) -> str:
    return f"{_PREFIX}{seq}" + (f".{part}" if part else "")


def _entry(store: Store, seq: int, text: str) -> Entry:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise LedgerError(f"{store.shown}: the tag {_name(seq, 0)} is damaged")
    return Entry(document)
