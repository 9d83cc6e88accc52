"""How an alias moves: intent, alias, ledger; a kill in between is finished by the next command.

The ledger's entry is made whole before anything changes and lies in ``ledger.pending.json`` while the move
is under way. Whoever finds it does what it says again, which changes nothing that was done already, and
appends it, if it is what canal could have written there. So the ledger and the aliases cannot disagree for
longer than the next command takes to start.

Anybody who may write the folder can write that file, with a hash that fits, and the next command would do
what it says with its own rights. What can be told: it follows the last entry, breaks no rule, names a version
that is there as the store knows it, and is signed where such entries are. What cannot: who wrote one that is
not signed and keeps to all of this. It does no more than a command of canal could do, is told when it is
finished, and stands in the ledger.

No move is made on top of a ledger that breaks its rules (`canal.registry.ledger.ledger_rules`), nor where the
keyring that params.yaml names (`registry.keyring`) does not know who signed. From the first signed entry of a
group on, each entry of that group must be signed by a key of the keyring whose roles allow it, and whatever
is written now must be. Groups are what people decide (promote, rollback, retire) and what commands note
(register, rebuild): a project may begin to sign at any time, one group first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canal.config.sections import Policy
from canal.core.errors import LedgerError, SigningError, tell
from canal.core.files import new_file, read_json
from canal.registry.ledger.ledger import Draft, Entry, Ledger, Sign, checked_entry, follows
from canal.registry.ledger.ledger_rules import (
    CHAMPION,
    DECIDED,
    is_ruling,
    next_breaches,
    require_next,
    require_rules,
)
from canal.registry.ledger.mirror import OvertakenError, claimed, mirror, mirrored, missing, refuse_behind
from canal.registry.ledger.signing import Keyring, read_keyring, signature_findings
from canal.registry.promotion.policy import Evidence, judge
from canal.registry.store.store import TAG, Store, require_rebuilt

_MEASURED = ("gate", "clean", "accuracy", "h_score", "ece")
"""Rules whose value stands in the version's documents; the others need the champion of that time."""
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
        tell(
            f"{path.name}: {store.shown} never heard of this move, so nothing was moved: {entry_text(entry)}"
        )
        return None
    if not store.remote:  # elsewhere the store has the entry, and others may have gone on from it
        require_possible(store, entry)
    tell(f"{path.name}: finishing what was cut off: {entry_text(entry)}")
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
        tell(f"{store.layout.pending.name}: taken as made, though the store is lost: {entry_text(entry)}")
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
        new_entries = missing(store, ledger)
        _require_sound(store, [*ledger.entries(), *new_entries])
        if new_entries:
            _move(store, new_entries[-1])
        for entry in new_entries:
            ledger.append(entry)
        return new_entries


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


def unproven(details: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the rulings that passed with another value than the version's own documents say.

    ``folder`` holds the version with the record that the promotion names; what it lacks cannot be compared.
    """
    rulings = details.get("rulings")
    if not isinstance(rulings, list) or not all(is_ruling(one) for one in rulings):
        return
    passed = {one["rule"]: one["value"] for one in rulings if one["passed"]}
    try:
        evidence = Evidence(
            evaluation=read_json(folder / "metrics" / "evaluation.json"),
            verdict=read_json(folder / "validation" / "verdict.json"),
            record=read_json(folder / "record.json"),
            key=read_json(folder / "key.json"),
            findings=(),
            comparison=None,
        )
        measured = {one.rule: one.value for one in judge(Policy(), evidence)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # a document that is not there or not as canal writes it is a finding of its own
    for rule in _MEASURED:
        if rule in passed and passed[rule] != measured[rule]:
            yield f"{rule} passed with {passed[rule][:60]}, the version's documents say {measured[rule]}"


def keyring_of(store: Store) -> Keyring | None:
    """Return the keys that params.yaml trusts; None where it names no keyring.

    Raises
    ------
    SigningError
        If the keyring cannot be read.
    """
    name = store.names.keyring
    return None if name is None else read_keyring(store.layout.root / name)


def to_be_signed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of each group from its first signed one on."""
    begun: set[bool] = set()
    signed = []
    for entry in entries:
        if "signature" in entry.document:
            begun.add(_decided(entry))
        if _decided(entry) in begun:
            signed.append(entry)
    return signed


def require_signatures(store: Store, entries: Sequence[Entry]) -> None:
    """Refuse to build on entries that the project's keyring does not stand for.

    Raises
    ------
    SigningError
        Naming them.
    """
    keyring = keyring_of(store)
    if keyring is None:
        return
    if wrong := signature_findings(to_be_signed(entries), keyring):
        raise SigningError(
            f"the keyring {store.names.keyring} does not stand for {len(wrong)} entries of the ledger; "
            "nothing was moved:\n  " + "\n  ".join(wrong[:10]) + "\nFind out who wrote them (git log -p -- "
            f"{store.layout.ledger.name}); bring back the ledger of before, or mend the keyring"
        )


def require_signature(store: Store, entry: Entry) -> None:
    """Refuse an entry that is to be written and that the project's keyring does not stand for.

    Raises
    ------
    SigningError
        Saying how to sign.
    """
    keyring = keyring_of(store)
    if keyring is None:
        return
    if wrong := signature_findings([entry], keyring):
        raise SigningError(
            f"nothing was moved: {wrong[0]}. The keyring {store.names.keyring} (registry.keyring in "
            f"params.yaml) says who signs what: sign with --sign FILE, by a key with the role {entry.kind}"
        )


def intent_complaint(store: Store, entries: Sequence[Entry], entry: Entry) -> str | None:
    """Return why the signature of an intent, or its lack, does not do; None where it does."""
    keyring = keyring_of(store)
    if keyring is not None:
        wrong = signature_findings([entry], keyring)
        return wrong[0] if wrong else None
    signed = [one for one in entries if "signature" in one.document and _decided(one) == _decided(entry)]
    if signed and "signature" not in entry.document:
        return f"it is not signed, though entry {signed[-1].seq} ({signed[-1].kind}) is"
    keys = {one.document["signature"]["key"] for one in signed}
    if signed and entry.document["signature"]["key"] not in keys:
        return "it is signed with a key that signed none of the entries before"
    return None


def entry_text(entry: Entry) -> str:
    """Return what an entry does, for a person."""
    document = entry.document
    moved = [f"{alias} to {'nothing' if to is None else to}" for alias, to in entry.aliases.items()]
    signed = ", signed" if "signature" in document else ", not signed"
    why = f": {document['why'][:200]!r}" if document["why"] else ""
    return (
        f"{entry.kind} of {entry.model} {entry.version} by {document['who'][:200]!r}{why} "
        f"({', '.join(moved) or 'no alias moves'}{signed})"
    )


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


def _refuse(path: Path, entry: Entry, wrong: list[str]) -> None:
    raise LedgerError(
        f"{path} notes a move that canal would not finish: {entry_text(entry)}. {'; '.join(wrong)}. "
        f"Nothing was moved. Find out who wrote it; then delete {path.name}, and make the move again if it "
        "is meant"
    )


def _decided(entry: Entry) -> bool:
    return entry.kind in DECIDED
