"""`canal audit`, `canal ledger --verify`, `canal ledger anchor`: what is proven, and witnessed elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

from canal.app.project import Project
from canal.core.errors import LedgerError
from canal.registry.audit.full_audit import Report, audit
from canal.registry.audit.ledger_entries import check_anchors, check_entries
from canal.registry.audit.past import check_past
from canal.registry.audit.version_files import Found
from canal.registry.ledger.git_history import GitFile
from canal.registry.promotion.moves import ledger_of

if TYPE_CHECKING:
    from canal.registry.ledger.git_history import Anchor
    from canal.registry.ledger.signing import SigningKey


def audit_project(
    project: Project, wanted: str | None = None, keyring: Path | None = None, recompute: bool = False
) -> Report:
    """Audit every version, or the one that a number or alias names.

    Parameters
    ----------
    project : Project
    wanted : str, optional
        Number or alias.
    keyring : Path, optional
        The keys that are trusted: a ledger entry that none of them signed, or may sign, is a finding.
    recompute : bool
        Whether sums are added up again from the prepared cells, where those are still there.

    Raises
    ------
    RegistryError
        If there is no such ready version, or the keyring cannot be read.
    """
    trusted = None
    if keyring is not None:
        from canal.registry.ledger.signing import read_keyring

        trusted = read_keyring(keyring)
    versions = None if wanted is None else [project.store.version(wanted)]
    return audit(project.store, project.layout, project.config, versions, recompute, trusted)


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


def anchor_ledger(project: Project, by: str | None, key: "SigningKey | None") -> "Anchor":
    """Anchor the ledger as it is, if it holds; see `canal.registry.ledger.git_history`.

    Raises
    ------
    LedgerError
        If something of it does not hold, it is not committed, or git refuses.
    """
    from canal.registry.ledger.git_history import make_anchor
    from canal.registry.ledger.ledger import plain_name
    from canal.registry.ledger.mirror import user

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
