"""What the ledger says of a version for ever: who let it serve, why, past which rules; who retired it."""

from collections.abc import Sequence
from typing import Any

from canal.registry.ledger import Entry
from canal.registry.store import Version

Document = dict[str, Any]


def standing(entries: Sequence[Entry], version: Version) -> Document:
    """Return what was decided about a version, oldest first, as a JSON document.

    ``served`` holds each promotion and rollback to it, with the rules that were overridden; ``overrides`` all
    rules that ever were; ``retirement`` who retired it and why, or None. A version is found by its key: it
    keeps what was decided about it where a rebuilt registry gave it another number.
    """
    mine = [
        entry for entry in entries if entry.model == version.model and entry.document["key"] == version.key
    ]
    served = [
        {**_decided(entry), "overrides": list(entry.document["details"].get("overrides", ()))}
        for entry in mine
        if entry.kind in ("promote", "rollback")
    ]
    retired = [_decided(entry) for entry in mine if entry.kind == "retire"]
    return {
        "served": served,
        "overrides": sorted({rule for one in served for rule in one["overrides"]}),
        "retired": version.retired or bool(retired),
        "retirement": retired[-1] if retired else None,
    }


def _decided(entry: Entry) -> Document:
    document = entry.document
    return {
        "entry": entry.seq,
        "kind": entry.kind,
        "time": document["time"],
        "who": document["who"],
        "why": document["why"],
    }
