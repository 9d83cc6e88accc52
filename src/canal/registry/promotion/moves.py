"""Moves of aliases as transactions: intent, alias, ledger; the next command finishes an interrupted move.

The ledger's entry is written to ``ledger.pending.json``, the intent, before anything changes. A command that
finds an intent checks it, repeats its idempotent moves and appends it. So ledger and aliases disagree at most
until the next command.

Anybody who may write the folder can write an intent with a valid hash, and the next command would carry it
out with its own rights. So an intent must follow the last entry, break no rule, name a version as the store
has it, and be signed where such entries are signed. The author of an unsigned intent cannot be proven; but it
does no more than a command of canal could do, is announced when it is finished, and is kept in the ledger.

No move is made on top of a ledger that breaks its rules (`canal.registry.ledger.ledger_rules`), or with a
signature that the keyring in params.yaml (`registry.keyring`) does not accept. From the first signed entry of
a group on, each entry of that group must be signed by a key of the keyring with the role, and so must every
new entry. The groups are decisions of people (promote, rollback, retire, erase, merge) and entries of
commands (register, rebuild, measure): a project may begin to sign at any time, one group first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from canal.core.errors import LedgerError, SigningError, tell
from canal.core.files import new_file
from canal.registry.ledger.joined import ERASE, MEASURE, entry_text, erased_versions, origin
from canal.registry.ledger.ledger import Draft, Entry, Ledger, Sign, checked_entry, follows
from canal.registry.ledger.ledger_rules import (
    CHAMPION,
    DECIDED,
    next_breaches,
    require_next,
    require_rules,
)
from canal.registry.ledger.mirror import OvertakenError, claimed, mirror, mirrored, missing, refuse_behind
from canal.registry.ledger.rulings import MEASURED_AGAIN, measurement_line
from canal.registry.ledger.signing import Keyring, read_keyring, role_of, signature_findings
from canal.registry.promotion.policy import unproven
from canal.registry.store.store import TAG, Store, require_rebuilt

RETIRED, ERASED = f"{TAG}retired", f"{TAG}erased"


def ledger_of(store: Store) -> Ledger:
    """Return the ledger of a project's registry."""
    return Ledger(store.layout.ledger)


@contextmanager
def moving(store: Store, rebuilding: bool = False) -> Iterator[Ledger]:
    """Hold the registry's lock, finish an interrupted move, and give the ledger to write into.

    A half rebuilt store is refused unless ``rebuilding``.

    Raises
    ------
    LedgerError
        If the ledger is damaged or breaks its rules, the shared store has further entries, or another
        folder is moving aliases there.
    SigningError
        If an entry lacks a signature that the keyring in params.yaml accepts.
    RegistryError
        If the store is half rebuilt.
    """
    with store.lock("registry"), claimed(store):
        if not rebuilding:
            require_rebuilt(store)
        ledger = ledger_of(store)
        require_sound(store, ledger.entries())
        recover(store, ledger)
        refuse_behind(store, ledger)
        yield ledger


def record(store: Store, ledger: Ledger, draft: Draft, sign: Sign | None = None) -> Entry:
    """Make a move: write the intent, move the aliases, append to the ledger; the caller is `moving`.

    Raises
    ------
    LedgerError
        If the entry would break a rule, or the intent cannot be written; nothing was moved.
    SigningError
        If the entry lacks a signature that the project's keyring accepts.
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
    """Finish an interrupted move with a notice, and return its entry; None where there was none.

    A shared store gets the entry before any alias moves: where it lacks the entry, nothing was moved, and the
    intent is dropped.

    Raises
    ------
    LedgerError
        If canal could not have written the intent, or the ledger before it: a file was changed by hand.
    """
    ledger.mend()
    path = store.layout.pending
    if not path.is_file():
        return None
    entry, head = read_intent(path), ledger.head()
    if head is not None and head.hash == entry.hash:
        path.unlink()
        return entry
    require_sound(store, ledger.entries())
    require_intent(store, ledger, entry)
    if store.remote and entry.seq not in mirrored(store):
        path.unlink()
        tell(
            f"{path.name}: {store.shown} has no entry of this move, so nothing was moved: {entry_text(entry)}"
        )
        return None
    if not store.remote:  # a shared store has the entry, and others may follow it
        require_possible(store, entry)
    tell(f"{path.name}: finishing an interrupted move: {entry_text(entry)}")
    _finish(store, ledger, entry)
    return entry


def adopt(store: Store, ledger: Ledger) -> Entry | None:
    """Append the entry of an interrupted move whose store is lost; see `recover`.

    The rebuild of the store sets the aliases.
    """
    ledger.mend()
    if not store.layout.pending.is_file():
        return None
    entry, head = read_intent(store.layout.pending), ledger.head()
    if head is None or head.hash != entry.hash:
        require_intent(store, ledger, entry)
        tell(f"{store.layout.pending.name}: the store is lost, the move counts as done: {entry_text(entry)}")
        ledger.append(entry)
    store.layout.pending.unlink()
    return entry


def catch_up(store: Store) -> list[Entry]:
    """Append the entries of a shared store that this folder's ledger lacks; return them.

    The aliases of the last entry are moved, in case its writer was killed before that.

    Raises
    ------
    LedgerError
        If this folder's ledger is not the beginning of the store's, or the store's breaks the rules.
    SigningError
        If an entry lacks a signature that the keyring in params.yaml accepts.
    """
    with store.lock("registry"), claimed(store):
        ledger = ledger_of(store)
        recover(store, ledger)
        new_entries = missing(store, ledger)
        require_sound(store, [*ledger.entries(), *new_entries])
        if new_entries:
            _move(store, new_entries[-1])
        for entry in new_entries:
            ledger.append(entry)
        return new_entries


def read_intent(path: Path) -> Entry:
    """Return the entry in an intent; the file is renamed into place, so it is complete.

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
        Naming the move, and the reasons.
    """
    path, entries = store.layout.pending, ledger.entries()
    head = entries[-1] if entries else None
    if not follows(entry, head):
        raise LedgerError(
            f"{path} holds a move that does not follow the last entry of {ledger.path} "
            f"({head.seq if head else 0}): bring the ledger back (git checkout -- {ledger.path.name}), or "
            f"delete {path.name} if the move is not to be made"
        )
    wrong = [one.what for one in next_breaches(entries, entry, store.names.backbone)]
    if what := intent_complaint(store, entries, entry):
        wrong.append(what)
    if wrong:
        _refuse(path, entry, wrong)


def require_possible(store: Store, entry: Entry) -> None:
    """Refuse an intent that contradicts the store.

    Raises
    ------
    LedgerError
        If the store lacks the version with this key and record, its documents contradict the rulings, or the
        champion is neither the former nor the new one.
    """
    versions = {one.number: one for one in store.versions(entry.model)}
    version, wrong = versions.get(entry.version), []
    if entry.kind == ERASE:
        for one in (one for one in erased_versions(entry) if one["model"] == entry.model):
            found = versions.get(one["version"])
            if found is None or (found.key, found.record) != (one["key"], one["record"]):
                wrong.append(f"{store.shown} has no version {one['version']} with this key and record")
    elif version is None or not version.ready:
        wrong.append(f"{store.shown} has no version {entry.version} of {entry.model}")
    elif (version.key, version.record) != (entry.document["key"], entry.document["record"]):
        wrong.append(f"version {entry.version} has another key or record in {store.shown}")
    elif entry.kind == "promote":
        entries = ledger_of(store).entries()
        wrong += unproven(entry, store.artifacts(version), entries)
    others = {number for number in entry.aliases.values() if number is not None} - {*versions, entry.version}
    wrong += [f"{store.shown} has no version {number}, to which an alias is to point" for number in others]
    if CHAMPION in entry.aliases and entry.kind not in ("rebuild", ERASE):
        serving = next((one.number for one in versions.values() if CHAMPION in one.aliases), None)
        before = entry.document["details"].get("from")
        if serving not in (before, entry.version):
            wrong.append(
                f"version {serving or 'none'} serves, neither {before or 'none'} nor {entry.version}"
            )
    if wrong:
        _refuse(store.layout.pending, entry, wrong)


def keyring_of(store: Store) -> Keyring | None:
    """Return the keyring in params.yaml; None where it names none.

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
        if "signature" in origin(entry).document:
            begun.add(_decided(entry))
        if _decided(entry) in begun:
            signed.append(entry)
    return signed


def require_signatures(store: Store, entries: Sequence[Entry]) -> None:
    """Refuse a ledger with entries whose signatures the project's keyring does not accept.

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
            f"the keyring {store.names.keyring} does not accept {len(wrong)} entries of the ledger; "
            "nothing was moved:\n  " + "\n  ".join(wrong[:10]) + "\nFind out who wrote them (git log -p -- "
            f"{store.layout.ledger.name}); bring back the ledger of before, or mend the keyring"
        )


def require_signature(store: Store, entry: Entry) -> None:
    """Refuse a new entry whose signature the project's keyring does not accept.

    Raises
    ------
    SigningError
        Saying how to sign.
    """
    keyring = keyring_of(store)
    if keyring is None:
        return
    if wrong := signature_findings([entry], keyring):
        role = role_of(entry.kind)
        raise SigningError(
            f"nothing was moved: {wrong[0]}. The keyring {store.names.keyring} (registry.keyring in "
            f"params.yaml) lists the accepted keys: sign with --sign FILE, a key with the role {role}"
        )


def intent_complaint(store: Store, entries: Sequence[Entry], entry: Entry) -> str | None:
    """Return why an intent's signature, or its absence, is not accepted; None where it is."""
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


def _finish(store: Store, ledger: Ledger, entry: Entry) -> None:
    try:
        followed = mirror(store, entry)
    except OvertakenError:
        store.layout.pending.unlink(missing_ok=True)
        raise
    if not followed:  # later entries have moved these aliases already
        _move(store, entry)
    ledger.append(entry)
    store.layout.pending.unlink(missing_ok=True)


def _move(store: Store, entry: Entry) -> None:
    """Move the aliases of an entry, and show it in MLflow; repeating it changes nothing."""
    for alias, number in entry.aliases.items():
        store.point(entry.model, alias, number)
    if entry.kind == "retire":
        store.tag(entry.model, entry.version, RETIRED, "true")
    if entry.kind == MEASURE:
        _describe(store, entry.model, entry.version, MEASURED_AGAIN, measurement_line(entry))
    for one in erased_versions(entry):
        for name in (RETIRED, ERASED):
            store.tag(one["model"], one["version"], name, "true")


def require_sound(store: Store, entries: list[Entry]) -> None:
    """Refuse a ledger with grave breaches of rules, or a signature that is not accepted."""
    require_rules(entries, store.names.backbone, store.layout.ledger.name)
    require_signatures(store, entries)


def _refuse(path: Path, entry: Entry, wrong: list[str]) -> None:
    raise LedgerError(
        f"{path} holds a move that canal does not finish: {entry_text(entry)}. {'; '.join(wrong)}. "
        f"Nothing was moved. Find out who wrote it; then delete {path.name}, and make the move again if it "
        "is meant"
    )


def _decided(entry: Entry) -> bool:
    return entry.kind in DECIDED


def _describe(store: Store, model: str, number: int, beginning: str, line: str) -> None:
    """Let a version's description in MLflow end with a line, in place of one that began the same."""
    client = store.client
    with store.translated_errors():
        before = client.get_model_version(model, str(number)).description or ""
        kept = [one for one in before.splitlines() if not one.startswith(beginning)]
        text = "\n".join([*kept, *([] if not kept or not kept[-1] else [""]), line])
        client.update_model_version(model, str(number), text)
