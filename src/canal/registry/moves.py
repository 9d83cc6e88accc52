"""How an alias moves: intent, alias, ledger; a kill in between is finished by the next command.

The ledger's entry is made whole before anything changes and lies in ``ledger.pending.json`` while the move
is under way. Whoever finds it does what it says again, which changes nothing that was done already, and
appends it. So the ledger and the aliases cannot disagree for longer than the next command takes to start.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from canal.errors import LedgerError
from canal.files import new_file
from canal.registry.ledger import BEGINNING, Draft, Entry, Ledger, Sign, entry_hash
from canal.registry.mirror import OvertakenError, claimed, mirror, missing, refuse_behind
from canal.registry.rebuilding import require_rebuilt
from canal.registry.store import TAG, Store

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
RETIRED = f"{TAG}retired"


def ledger_of(store: Store) -> Ledger:
    """Return the ledger of a project's registry."""
    return Ledger(store.layout.ledger)


@contextmanager
def moving(store: Store, rebuilding: bool = False) -> Iterator[Ledger]:
    """Hold the registry's lock, finish what a kill left, and give the ledger to write into.

    Only the ``rebuilding`` of a lost store may write into one that is half rebuilt.

    Raises
    ------
    LedgerError
        If the ledger does not hold, the server's goes on where this one ends, or another folder moves
        something there at this moment.
    RegistryError
        If the store is half rebuilt.
    """
    with store.lock("registry"), claimed(store):
        if not rebuilding:
            require_rebuilt(store)
        ledger = ledger_of(store)
        recover(store, ledger)
        refuse_behind(store, ledger)
        yield ledger


def record(store: Store, ledger: Ledger, draft: Draft, sign: Sign | None = None) -> Entry:
    """Make a move: note the intent, move the aliases, write the ledger; the caller is `moving`."""
    entry = ledger.next(draft, sign)
    try:
        with new_file(store.layout.pending) as temporary:
            temporary.write_text(entry.line, encoding="utf-8")
    except OSError as error:
        raise LedgerError(
            f"cannot write {store.layout.pending}: {error.strerror or error}; nothing was moved"
        ) from error
    _finish(store, ledger, entry)
    return entry


def recover(store: Store, ledger: Ledger) -> Entry | None:
    """Finish the move that a kill interrupted, and return its entry; None where there was none.

    Raises
    ------
    LedgerError
        If the intent does not follow the ledger's last entry: one of the two files was changed by hand.
    """
    ledger.mend()
    path = store.layout.pending
    if not path.is_file():
        return None
    entry = _intent(path)
    head = ledger.head()
    if head is not None and head.hash == entry.hash:
        path.unlink()
        return entry
    if entry.document["previous"] != (head.hash if head else BEGINNING):
        raise LedgerError(
            f"{path} notes a move that does not follow the last entry of {ledger.path} "
            f"({head.seq if head else 0}): bring the ledger back (git checkout -- {ledger.path.name}), or "
            f"delete {path.name} if the move is not to be made"
        )
    _finish(store, ledger, entry)
    return entry


def adopt(store: Store, ledger: Ledger) -> Entry | None:
    """Take an interrupted move as made, where the store that it was made in is lost; see `recover`.

    What it says of aliases is done by whoever makes the store again.
    """
    ledger.mend()
    if not store.layout.pending.is_file():
        return None
    entry, head = _intent(store.layout.pending), ledger.head()
    if head is None or head.hash != entry.hash:
        ledger.append(entry)
    store.layout.pending.unlink()
    return entry


def catch_up(store: Store) -> list[Entry]:
    """Append the entries that a shared store has and this folder's ledger has not; return them.

    Whoever wrote the last of them may have been killed before the aliases moved: that is done here.

    Raises
    ------
    LedgerError
        If this folder's ledger is not the beginning of the store's.
    """
    with store.lock("registry"), claimed(store):
        ledger = ledger_of(store)
        recover(store, ledger)
        found = missing(store, ledger)
        if found:
            _move(store, found[-1])
        for entry in found:
            ledger.append(entry)
        return found


def _finish(store: Store, ledger: Ledger, entry: Entry) -> None:
    try:
        followed = mirror(store, entry)
    except OvertakenError:
        store.layout.pending.unlink(missing_ok=True)
        raise
    if not followed:  # where others went on from it, they have moved what it moves, and perhaps moved it on
        _move(store, entry)
    ledger.append(entry)
    store.layout.pending.unlink(missing_ok=True)


def _move(store: Store, entry: Entry) -> None:
    """Do what an entry says; doing it again changes nothing."""
    for alias, number in entry.aliases.items():
        store.point(entry.model, alias, number)
    if entry.kind == "retire":
        store.tag(entry.model, entry.version, RETIRED, "true")


def _intent(path: Path) -> Entry:
    """Return the entry that is under way; the file is renamed into place, so it is whole."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entry = Entry(document)
        whole = entry_hash(document) == entry.hash
    except (ValueError, KeyError, TypeError, OSError):
        whole = False
    if not whole:
        raise LedgerError(f"{path} is damaged: delete it, then make the move again")
    return entry
