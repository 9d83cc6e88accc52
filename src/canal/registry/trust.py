"""The keyring that params.yaml names (`registry.keyring`): who has to sign what is written into the ledger.

From the first signed entry of a group on, each entry of that group must be signed by a key of the keyring
whose roles allow it, and whatever is written now must be. Groups are what people decide (promote, rollback,
retire) and what commands note (register, rebuild): a project may begin to sign at any time, one group first.
"""

from collections.abc import Sequence

from canal.core.errors import SigningError
from canal.registry.keyring import read_keyring
from canal.registry.ledger import Entry
from canal.registry.rules import DECIDED
from canal.registry.signing import Keyring, signature_findings
from canal.registry.store import Store


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
    found = []
    for entry in entries:
        if "signature" in entry.document:
            begun.add(_decided(entry))
        if _decided(entry) in begun:
            found.append(entry)
    return found


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


def _decided(entry: Entry) -> bool:
    return entry.kind in DECIDED
