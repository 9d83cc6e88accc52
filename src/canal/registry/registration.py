"""A version's first entry in the ledger: its number, key and record, and the ``candidate`` alias it takes."""

import getpass
from typing import Any

from canal.core.errors import RegistryError
from canal.registry.ledger import Draft, Entry, Ledger, Sign, records_said
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

    Raises
    ------
    RegistryError
        If the ledger gave the number to another version.
    """
    known = records_said(ledger.entries()).get((version.model, version.number))
    if known is not None:
        _require_same(store, version, known)
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


def _require_same(store: Store, version: Version, known: Entry) -> None:
    if (known.document["key"], known.document["record"]) == (version.key, version.record):
        return
    ledger = store.layout.ledger.name
    raise RegistryError(
        f"{store.shown} has {version.model} {version.number} ({version.stage}), but {ledger} gave that "
        f"number to another one (entry {known.seq}): this store is not the one that the ledger was written "
        "with, such as an older copy of it. Bring that one back; or set this one aside (mlflow.db and "
        "mlartifacts/), then `canal registry rebuild`"
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
