"""What entries of the ledger say, against what canal writes, who signed them, and the anchors that name them.

The ledger has to begin with what each anchor names.
"""

from collections.abc import Sequence

from canal.core.errors import SigningError
from canal.registry.anchors import Anchor, anchors, place
from canal.registry.checks.family import Family
from canal.registry.checks.finding import LEDGER, Found
from canal.registry.gitted import GitFile
from canal.registry.keyring import keyring_of, to_be_signed
from canal.registry.ledger import Entry
from canal.registry.ledger_rules import Breach, breaches, unproven
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


def check_anchors(git: GitFile, entries: Sequence[Entry], keyring: Keyring | None, found: Found) -> None:
    """Check the ledger's entries against every anchor in the repository, and who signed that."""
    by_seq = {entry.seq: entry for entry in entries}
    own = place(git)
    for anchor in anchors(git):
        if isinstance(anchor, str):
            found.wrong(LEDGER, "anchor", anchor)
            continue
        if anchor.document["path"] != own:
            other = anchor.document["path"][:200]
            what = f"the anchor {anchor.tag} is of another ledger ({other}): not compared"
            found.note(LEDGER, "anchor", what)
            continue
        found.counts["anchors"] += 1
        _compare(anchor, by_seq.get(anchor.entries), len(entries), found)
        _check_signer(git, anchor, keyring, found)
        if git.ask("merge-base", "--is-ancestor", f"refs/tags/{anchor.tag}", "HEAD") is None:
            what = (
                f"the commit of the anchor {anchor.tag} is not in the history of HEAD: it was rewritten since"
            )
            found.note(LEDGER, "anchor", what)


def _compare(anchor: Anchor, entry: Entry | None, number: int, found: Found) -> None:
    named = str(anchor.document["hash"])
    if entry is not None and entry.hash == named:
        return
    there = (
        f"it has {number} entries" if entry is None else f"entry {entry.seq} has hash {entry.hash[:12]}..."
    )
    found.wrong(
        LEDGER,
        "anchor",
        f"the ledger no longer begins with the {anchor.entries} entries that the anchor {anchor.tag} (by "
        f"{anchor.document['who'][:200]!r}) names, the last with hash {named[:12]}...: {there}. What it was: "
        f"git show {anchor.tag}^{{}}:./{anchor.document['path'].rpartition('/')[2]}",
    )


def _check_signer(git: GitFile, anchor: Anchor, keyring: Keyring | None, found: Found) -> None:
    """Check who signed an anchor, as far as this machine can tell."""
    if anchor.by_git and git.ask("verify-tag", f"refs/tags/{anchor.tag}") is None:
        what = f"git cannot verify the signature of the anchor {anchor.tag} here: git verify-tag {anchor.tag}"
        found.note(LEDGER, "anchor", what)
    signature = anchor.signature
    if signature is None or keyring is None:
        return
    key = keyring.get(signature["key"])
    if key is None:
        what = f"the anchor {anchor.tag} is signed with key {signature['key'][:16]}..., not in the keyring"
        found.note(LEDGER, "anchor", what)
    elif not key.anchored(anchor.digest, signature["value"]):
        what = f"the anchor {anchor.tag} was not signed with the key of {key.name!r}, which it names"
        found.wrong(LEDGER, "anchor", what)
    elif refused := key.refused("anchor"):
        found.wrong(LEDGER, "anchor", f"the anchor {anchor.tag} is signed by {key.name!r}, {refused}")
