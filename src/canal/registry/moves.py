"""How an alias moves: intent, alias, ledger; a kill in between is finished by the next command.

The ledger's entry is made whole before anything changes and lies in ``ledger.pending.json`` while the move
is under way. Whoever finds it does what it says again, which changes nothing that was done already, and
appends it, if it is what canal could have written there (`canal.registry.intents`). So the ledger and the
aliases cannot disagree for longer than the next command takes to start.

No move is made on top of a ledger that breaks the rules (`canal.registry.rules`), nor where the keyring that
params.yaml names does not know who signed (`canal.registry.trust`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from canal.core.errors import LedgerError
from canal.core.files import new_file
from canal.core.messages import tell
from canal.registry import rules
from canal.registry.intents import read_intent, require_intent, require_possible, told
from canal.registry.ledger import Draft, Entry, Ledger, Sign
from canal.registry.mirror import OvertakenError, claimed, mirror, mirrored, missing, refuse_behind
from canal.registry.rebuilding import require_rebuilt
from canal.registry.rules import require_next, require_rules
from canal.registry.store import TAG, Store
from canal.registry.trust import require_signature, require_signatures

CANDIDATE, CHAMPION, PREVIOUS = rules.CANDIDATE, rules.CHAMPION, rules.PREVIOUS
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
        If the ledger does not hold or says what canal never writes, the server's goes on where this one
        ends, or another folder moves something there at this moment.
    SigningError
        If the keyring that params.yaml names does not know who signed an entry that has to be signed.
    RegistryError
        If the store is half rebuilt.
    """
    with store.lock("registry"), claimed(store):
        if not rebuilding:
            require_rebuilt(store)
        ledger = ledger_of(store)
        _require_sound(store, ledger.entries())
        recover(store, ledger)
        refuse_behind(store, ledger)
        yield ledger


def record(store: Store, ledger: Ledger, draft: Draft, sign: Sign | None = None) -> Entry:
    """Make a move: note the intent, move the aliases, write the ledger; the caller is `moving`.

    Raises
    ------
    LedgerError
        If the entry would break a rule, or the intent cannot be written; nothing was moved.
    SigningError
        If the project's keyring asks for a signature that the entry has not.
    """
    entry = ledger.next(draft, sign)
    require_next(ledger.entries(), entry, store.names.backbone)
    require_signature(store, entry)
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

    What it does is told. A store that other folders use hears of a move before any alias does: where it has
    not, nothing was moved, and nothing is.

    Raises
    ------
    LedgerError
        If the intent is not what canal could have written, or follows a ledger that is not: one of the two
        files was changed by hand.
    """
    ledger.mend()
    path = store.layout.pending
    if not path.is_file():
        return None
    entry, head = read_intent(path), ledger.head()
    if head is not None and head.hash == entry.hash:
        path.unlink()
        return entry
    _require_sound(store, ledger.entries())
    require_intent(store, ledger, entry)
    if store.remote and entry.seq not in mirrored(store):
        path.unlink()
        tell(f"{path.name}: {store.shown} never heard of this move, so nothing was moved: {told(entry)}")
        return None
    if not store.remote:  # elsewhere the store has the entry, and others may have gone on from it
        require_possible(store, entry)
    tell(f"{path.name}: finishing what was cut off: {told(entry)}")
    _finish(store, ledger, entry)
    return entry


def adopt(store: Store, ledger: Ledger) -> Entry | None:
    """Take an interrupted move as made, where the store that it was made in is lost; see `recover`.

    What it says of aliases is done by whoever makes the store again.
    """
    ledger.mend()
    if not store.layout.pending.is_file():
        return None
    entry, head = read_intent(store.layout.pending), ledger.head()
    if head is None or head.hash != entry.hash:
        require_intent(store, ledger, entry)
        tell(f"{store.layout.pending.name}: taken as made, though the store is lost: {told(entry)}")
        ledger.append(entry)
    store.layout.pending.unlink()
    return entry


def catch_up(store: Store) -> list[Entry]:
    """Append the entries that a shared store has and this folder's ledger has not; return them.

    Whoever wrote the last of them may have been killed before the aliases moved: that is done here.

    Raises
    ------
    LedgerError
        If this folder's ledger is not the beginning of the store's, or that says what canal never writes.
    SigningError
        If the keyring that params.yaml names does not know who signed.
    """
    with store.lock("registry"), claimed(store):
        ledger = ledger_of(store)
        recover(store, ledger)
        found = missing(store, ledger)
        _require_sound(store, [*ledger.entries(), *found])
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


def _require_sound(store: Store, entries: list[Entry]) -> None:
    require_rules(entries, store.names.backbone, store.layout.ledger.name)
    require_signatures(store, entries)
