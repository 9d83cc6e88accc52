"""Who serves: promotion past the policy, rollback, retirement. Nothing else moves ``champion``."""

from collections.abc import Mapping, Sequence
from typing import Any

from canal.core.errors import PolicyError, RegistryError
from canal.registry import words
from canal.registry.ledger import Draft, Entry, Kind, Ledger, Sign, aliases_said, records_said
from canal.registry.moves import CANDIDATE, CHAMPION, PREVIOUS, record
from canal.registry.policy import Ruling, failed
from canal.registry.store import Store, Version


def holder(store: Store, alias: str) -> Version | None:
    """Return the version that an alias points to, or None."""
    return next((version for version in store.versions() if alias in version.aliases), None)


def promote(
    store: Store,
    ledger: Ledger,
    version: Version,
    rulings: Sequence[Ruling],
    by: str,
    why: str,
    sign: Sign | None = None,
) -> Entry:
    """Make a version the champion; the one before becomes ``previous``. The caller is `moving`.

    Raises
    ------
    PolicyError
        If a rule fails that nobody overrode.
    RegistryError
        If it is the champion already, was retired, or who or why is not fit to be kept.
    """
    who, reason = words.name(by, "the person (--by)"), words.reason(why)
    champion = holder(store, CHAMPION)
    require_other(version, champion)
    standing = failed(rulings)
    if standing:
        names = ", ".join(ruling.rule for ruling in standing)
        raise PolicyError(
            f"version {version.number} was not promoted: {len(standing)} of {len(rulings)} rules fail "
            f"({names}). Learn a better one; or let it pass with --override RULE, which is kept on record "
            "with your reason"
        )
    details = {
        "rulings": [ruling.to_json() for ruling in rulings],
        "overrides": [ruling.rule for ruling in rulings if ruling.overridden],
    }
    return _serve(store, ledger, "promote", version, champion, who, reason, details, sign)


def rollback(
    store: Store, ledger: Ledger, to: Version | None, by: str, why: str, sign: Sign | None = None
) -> Entry:
    """Let an earlier version serve again, by default ``previous``, past no policy; the caller is `moving`.

    Raises
    ------
    RegistryError
        If there is no champion, nothing to go back to, or the version was retired.
    """
    who, reason = words.name(by, "the person (--by)"), words.reason(why)
    champion = holder(store, CHAMPION)
    if champion is None:
        raise RegistryError("there is no champion to roll back from; `canal promote` makes the first")
    target = to or holder(store, PREVIOUS)
    if target is None:
        raise RegistryError("there is no previous champion; name a version with --to")
    require_other(target, champion)
    return _serve(store, ledger, "rollback", target, champion, who, reason, {}, sign)


def retire(
    store: Store, ledger: Ledger, version: Version, by: str, why: str, sign: Sign | None = None
) -> Entry:
    """Let a version never serve again; its artifacts stay, and its stage is still restored, not retrained.

    Raises
    ------
    RegistryError
        If it is the champion, or was retired before.
    """
    who, reason = words.name(by, "the person (--by)"), words.reason(why)
    if version.retired:
        raise RegistryError(f"version {version.number} was retired before; `canal ledger` says by whom")
    if CHAMPION in version.aliases:
        raise RegistryError(
            f"version {version.number} is the champion: promote another one, or `canal rollback`, first"
        )
    aliases: dict[str, int | None] = {}
    if PREVIOUS in version.aliases:
        aliases[PREVIOUS] = None
    if CANDIDATE in version.aliases:
        others = [
            one.number
            for one in store.versions()
            if one.ready and not one.retired and one.number != version.number
        ]
        aliases[CANDIDATE] = max(others, default=None)
    return record(store, ledger, _draft("retire", version, who, reason, aliases, {}), sign)


def require_other(version: Version, champion: Version | None) -> None:
    """Refuse a version that serves already, or may not.

    Raises
    ------
    RegistryError
        Saying which.
    """
    if version.retired:
        raise RegistryError(f"version {version.number} ({version.stage}) was retired and serves no more")
    if champion is not None and champion.number == version.number:
        raise RegistryError(f"version {version.number} ({version.stage}) is the champion already")


def _serve(
    store: Store,
    ledger: Ledger,
    kind: Kind,
    version: Version,
    champion: Version | None,
    who: str,
    why: str,
    details: Mapping[str, Any],
    sign: Sign | None,
) -> Entry:
    aliases, served = {CHAMPION: version.number}, _served(ledger, version, champion)
    if served is not None:
        aliases[PREVIOUS] = served
    before = {"from": served, "to": version.number}
    return record(store, ledger, _draft(kind, version, who, why, aliases, {**before, **details}), sign)


def _served(ledger: Ledger, version: Version, champion: Version | None) -> int | None:
    """Return the champion of before: the ledger's, where that of MLflow was never registered."""
    entries = ledger.entries()
    if champion is None or (champion.model, champion.number) in records_said(entries):
        return champion.number if champion else None
    said = aliases_said(entries, champion.model).get(CHAMPION)
    return None if said == version.number else said


def _draft(
    kind: Kind,
    version: Version,
    who: str,
    why: str,
    aliases: Mapping[str, int | None],
    details: Mapping[str, Any],
) -> Draft:
    return Draft(
        kind=kind,
        model=version.model,
        version=version.number,
        key=version.key,
        record=version.record,
        who=who,
        why=why,
        aliases=aliases,
        details=details,
    )
