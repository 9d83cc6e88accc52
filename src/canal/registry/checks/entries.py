"""What entries of the ledger say, against what canal writes, and who signed them against the keyrings."""

from collections.abc import Sequence

from canal.core.errors import SigningError
from canal.registry.checks.family import Family
from canal.registry.checks.finding import LEDGER, Found
from canal.registry.keyring import keyring_of, to_be_signed
from canal.registry.ledger import Entry
from canal.registry.rules import Breach, breaches, unproven
from canal.registry.signing import Keyring, signature_findings
from canal.registry.store import Store, Version


def check_promotions(
    entries: Sequence[Entry], versions: Sequence[Version], family: Family, found: Found
) -> None:
    """Check that rulings passed with what the documents of the version say, where it is the same record."""
    there = {(version.model, version.number, version.record): version for version in versions}
    for entry in entries:
        version = there.get((entry.model, entry.version, entry.document["record"]))
        if entry.kind != "promote" or version is None or (member := family.member(version)) is None:
            continue
        for what in unproven(entry.document["details"], member.folder):
            found.wrong(LEDGER, "rules", str(Breach(entry, what)))


def check_entries(
    entries: Sequence[Entry], store: Store, keyring: Keyring | None, found: Found
) -> Keyring | None:
    """Check that each entry moves what its kind may move, and is signed by whom it has to be.

    Returns the keyring that was asked: the one given, or the project's own.

    Parameters
    ----------
    entries : sequence of Entry
        The lines of the ledger that can be read.
    store : Store
        Names the model of backbones, and the project's own keyring.
    keyring : Mapping or None
        Keys by which every entry has to be signed; None asks for no more than the project's keyring does.
    found : Found
    """
    for breach in breaches(entries, store.names.backbone):
        (found.wrong if breach.grave else found.note)(LEDGER, "rules", str(breach))
    if keyring is not None:
        for what in signature_findings(entries, keyring):
            found.wrong(LEDGER, "signature", what)
        return keyring
    try:
        own = keyring_of(store)
    except SigningError as error:
        found.wrong(LEDGER, "signature", str(error))
        return None
    if own is None:
        return None
    asked = to_be_signed(entries)
    for what in signature_findings(asked, own):
        found.wrong(LEDGER, "signature", what)
    if len(asked) < len(entries):
        what = f"{len(entries) - len(asked)} entries are of before the ledger was signed"
        found.note(LEDGER, "signature", f"{what}: {store.names.keyring} says nothing of them")
    return own
