"""A version's first entry in the ledger: its number, key and record, and the ``candidate`` alias it takes."""

import getpass
from typing import Any

from canal.registry.ledger import Draft, Ledger, Sign, records_said
from canal.registry.moves import CANDIDATE, record
from canal.registry.store import Store, Version


def enter(
    store: Store,
    ledger: Ledger,
    version: Version,
    sign: Sign | None = None,
    by: str = "canal registry sync",
) -> None:
    """Note a ready version in the ledger unless it is there; the newest one becomes ``candidate``.

    ``by`` is the command that made the version.

    A kill between the version and its entry leaves a ready version without one: the next sync writes it.
    """
    if (version.model, version.number) in records_said(ledger.entries()):
        return
    record(
        store,
        ledger,
        Draft(
            kind="register",
            model=version.model,
            version=version.number,
            key=version.key,
            record=version.record,
            who=f"{by} ({user()})",
            aliases={CANDIDATE: version.number} if _newest(store, version) else {},
            details=_details(version),
        ),
        sign,
    )


def _details(version: Version) -> dict[str, Any]:
    """Return what a rebuilt registry would not know of the version otherwise."""
    details = {
        "stage": version.stage,
        "branch": version.branch,
        "parent": version.parent,
        "run": version.run_id,
        "git_commit": version.commit or None,
        "dirty": version.dirty,
    }
    return details | ({"imported": version.imported} if version.imported else {})


def user() -> str:
    """Return the name of who runs this process, as the system has it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _newest(store: Store, version: Version) -> bool:
    """Whether a version of the annotator is the newest that may serve."""
    if version.model != store.names.model:
        return False
    serving = [one.number for one in store.versions() if one.ready and not one.retired]
    return bool(serving) and version.number == max(serving)
