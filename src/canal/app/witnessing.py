"""The ledger read, brought up to date, verified and anchored; and the keys that sign it.

What `canal ledger` and `canal keys` call.
"""

from typing import Any

from canal.app.project import Project
from canal.core.errors import LedgerError
from canal.registry.audit.ledger_entries import check_anchors, check_entries
from canal.registry.audit.past import check_past
from canal.registry.audit.version_files import Found
from canal.registry.ledger.git_history import Anchor, GitFile, make_anchor
from canal.registry.ledger.ledger import plain_name
from canal.registry.ledger.mirror import user
from canal.registry.ledger.signing import SigningKey, add_to_keyring, default_key_file, new_key, open_key
from canal.registry.promotion.moves import catch_up, ledger_of

__all__ = [
    "SigningKey",
    "add_to_keyring",
    "anchor_ledger",
    "brought",
    "default_key_file",
    "entries",
    "new_key",
    "open_key",
    "verify_ledger",
]


def entries(project: Project) -> list[dict[str, Any]]:
    """Return the ledger's entries, oldest first, as JSON documents."""
    return [entry.document for entry in ledger_of(project.store).entries()]


def brought(project: Project) -> int:
    """Bring the entries that the tracking server has and this folder has not; return how many."""
    return len(catch_up(project.store))


def verify_ledger(project: Project) -> Found:
    """Check the ledger by itself: chain, rules, committed states, anchors; no version is looked at.

    Raises
    ------
    LedgerError
        If the chain does not hold; names every line.
    """
    ledger, found = ledger_of(project.store), Found()
    entries, git = ledger.entries(), GitFile(ledger.path)
    check_past(git, ledger.path.read_bytes() if ledger.path.is_file() else b"", found)
    keyring = check_entries(entries, project.store, None, found)
    check_anchors(git, entries, keyring, found)
    return found


def anchor_ledger(project: Project, by: str | None, key: SigningKey | None) -> Anchor:
    """Anchor the ledger as it is, if it holds; see `canal.registry.ledger.git_history`.

    Raises
    ------
    LedgerError
        If something of it does not hold, it is not committed, or git refuses.
    """
    if by is not None and key is not None:
        key.signer(by)
    who = plain_name(by or (key.name if key else "") or user(), "the person (--by)")
    found = verify_ledger(project)
    if found.findings:
        raise LedgerError(
            f"nothing was anchored, for the ledger does not hold: {'; '.join(map(str, found.findings[:5]))}"
        )
    ledger = ledger_of(project.store)
    return make_anchor(GitFile(ledger.path), ledger.entries(), who, key)
