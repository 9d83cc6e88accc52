"""`canal ledger`, `canal keys`: read, update, verify and anchor the ledger; manage the keys that sign it."""

from typing import Any

from canal.app.project import Project
from canal.core.errors import LedgerError
from canal.registry import words
from canal.registry.anchors import Anchor, make_anchor
from canal.registry.checks.entries import check_anchors, check_entries
from canal.registry.checks.finding import Found
from canal.registry.checks.past import check_past
from canal.registry.gitted import GitFile
from canal.registry.keyring import add_to_keyring
from canal.registry.moves import catch_up, ledger_of
from canal.registry.registration import user
from canal.registry.signing import SigningKey, default_key_file, new_key, open_key

__all__ = [
    "SigningKey",
    "add_to_keyring",
    "anchor_ledger",
    "fetch_entries",
    "default_key_file",
    "entries",
    "new_key",
    "open_key",
    "verify_ledger",
]


def entries(project: Project) -> list[dict[str, Any]]:
    """Return the ledger's entries, oldest first, as JSON documents."""
    return [entry.document for entry in ledger_of(project.store).entries()]


def fetch_entries(project: Project) -> int:
    """Fetch ledger entries that the tracking server has and this folder lacks; return how many."""
    return len(catch_up(project.store))


def verify_ledger(project: Project) -> Found:
    """Verify the ledger alone: chain, rules, committed states, anchors; versions are not checked.

    Raises
    ------
    LedgerError
        If the chain is broken; the message names every line.
    """
    ledger, found = ledger_of(project.store), Found()
    entries, git = ledger.entries(), GitFile(ledger.path)
    check_past(git, ledger.path.read_bytes() if ledger.path.is_file() else b"", found)
    keyring = check_entries(entries, project.store, None, found)
    check_anchors(git, entries, keyring, found)
    return found


def anchor_ledger(project: Project, by: str | None, key: SigningKey | None) -> Anchor:
    """Anchor the ledger if it is valid; see `canal.registry.anchors`.

    Raises
    ------
    LedgerError
        If verification has findings, the ledger is not committed, or git fails.
    """
    if by is not None and key is not None:
        key.signer(by)
    who = words.name(by or (key.name if key else "") or user(), "the person (--by)")
    found = verify_ledger(project)
    if found.findings:
        raise LedgerError(
            f"nothing was anchored, because the ledger does not hold: "
            f"{'; '.join(map(str, found.findings[:5]))}"
        )
    ledger = ledger_of(project.store)
    return make_anchor(GitFile(ledger.path), ledger.entries(), who, key)
