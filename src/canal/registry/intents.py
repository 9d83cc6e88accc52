"""What lies in ``ledger.pending.json``: whether canal could have written it, and what it would do.

Anybody who may write the folder can write that file, with a hash that fits, and the next command would do
what it says with its own rights. What can be told: it follows the last entry, breaks no rule, names a version
that is there as the store knows it, and is signed where such entries are. What cannot: who wrote one that is
not signed and keeps to all of this. It does no more than a command of canal could do, is told when it is
finished, and stands in the ledger.
"""

from pathlib import Path

from canal.core.errors import LedgerError
from canal.registry.ledger import Entry, Ledger, checked_entry, follows
from canal.registry.rules import CHAMPION, next_breaches
from canal.registry.rulings import unproven
from canal.registry.store import Store
from canal.registry.trust import intent_complaint


def read_intent(path: Path) -> Entry:
    """Return the entry that is under way; the file is renamed into place, so it is whole.

    Raises
    ------
    LedgerError
        If it holds no entry whose hash fits.
    """
    try:
        (line,) = path.read_bytes().splitlines()
        return checked_entry(line, None)
    except (LedgerError, ValueError, OSError) as error:
        what = f" ({error})" if isinstance(error, LedgerError) else ""
        raise LedgerError(f"{path} is damaged{what}: delete it, then make the move again") from error


def require_intent(store: Store, ledger: Ledger, entry: Entry) -> None:
    """Refuse an intent that canal would not have written after the ledger's last entry.

    Raises
    ------
    LedgerError
        Saying what it would do, and why it is not done.
    """
    path, entries = store.layout.pending, ledger.entries()
    head = entries[-1] if entries else None
    if not follows(entry, head):
        raise LedgerError(
            f"{path} notes a move that does not follow the last entry of {ledger.path} "
            f"({head.seq if head else 0}): bring the ledger back (git checkout -- {ledger.path.name}), or "
            f"delete {path.name} if the move is not to be made"
        )
    wrong = [one.what for one in next_breaches(entries, entry, store.names.backbone)]
    if what := intent_complaint(store, entries, entry):
        wrong.append(what)
    if wrong:
        _refuse(path, entry, wrong)


def require_possible(store: Store, entry: Entry) -> None:
    """Refuse an intent that no move of this store can have left.

    Raises
    ------
    LedgerError
        If the version is not there as the entry names it, did not pass as it says, or one serves that did
        neither before nor after.
    """
    versions = {one.number: one for one in store.versions(entry.model)}
    version, wrong = versions.get(entry.version), []
    if version is None or not version.ready:
        wrong.append(f"{store.shown} has no version {entry.version} of {entry.model}")
    elif (version.key, version.record) != (entry.document["key"], entry.document["record"]):
        wrong.append(f"version {entry.version} has another key or record in {store.shown}")
    elif entry.kind == "promote":
        wrong += unproven(entry.document["details"], store.artifacts(version))
    others = {number for number in entry.aliases.values() if number is not None} - {*versions, entry.version}
    wrong += [f"{store.shown} has no version {number}, to which an alias is to point" for number in others]
    if CHAMPION in entry.aliases and entry.kind != "rebuild":
        serving = next((one.number for one in versions.values() if CHAMPION in one.aliases), None)
        before = entry.document["details"].get("from")
        if serving not in (before, entry.version):
            wrong.append(
                f"version {serving or 'none'} serves, neither {before or 'none'} nor {entry.version}"
            )
    if wrong:
        _refuse(store.layout.pending, entry, wrong)


def told(entry: Entry) -> str:
    """Return what an entry does, for a person."""
    document = entry.document
    moved = [f"{alias} to {'nothing' if to is None else to}" for alias, to in entry.aliases.items()]
    signed = ", signed" if "signature" in document else ", not signed"
    why = f": {document['why'][:200]!r}" if document["why"] else ""
    return (
        f"{entry.kind} of {entry.model} {entry.version} by {document['who'][:200]!r}{why} "
        f"({', '.join(moved) or 'no alias moves'}{signed})"
    )


def _refuse(path: Path, entry: Entry, wrong: list[str]) -> None:
    raise LedgerError(
        f"{path} notes a move that canal would not finish: {told(entry)}. {'; '.join(wrong)}. Nothing was "
        f"moved. Find out who wrote it; then delete {path.name}, and make the move again if it is meant"
    )
