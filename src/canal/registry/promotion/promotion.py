"""Registration, promotion, rollback and retirement of versions, each an entry of the ledger.

Only these move aliases: promotion and rollback move ``champion``, a registration moves ``candidate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from canal.core.errors import PolicyError, RegistryError
from canal.registry.ledger.joined import ledger_records
from canal.registry.ledger.ledger import (
    Draft,
    Entry,
    Kind,
    Ledger,
    Sign,
    ledger_aliases,
    plain_name,
    plain_reason,
)
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, PREVIOUS
from canal.registry.ledger.mirror import user
from canal.registry.ledger.rulings import POLICY, TOO_FEW
from canal.registry.manifest.stage_request import current_commit
from canal.registry.promotion.moves import record
from canal.registry.promotion.policy import Ruling, blocking_rulings
from canal.registry.store.database import Version, require_files
from canal.registry.store.store import Store


@dataclass(frozen=True)
class Decision:
    """The person and reason of a decision, and the signing function for its entry in the ledger.

    Raises
    ------
    RegistryError
        If person or reason is empty, or cannot be kept in a line of the ledger.
    """

    by: str
    why: str
    sign: Sign | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", plain_name(self.by, "the person (--by)"))
        object.__setattr__(self, "why", plain_reason(self.why))


def holder(store: Store, alias: str) -> Version | None:
    """Return the version that an alias points to, or None."""
    return next((version for version in store.versions() if alias in version.aliases), None)


def promote(
    store: Store,
    ledger: Ledger,
    version: Version,
    rulings: Sequence[Ruling],
    decision: Decision,
    too_few: str = "",
) -> Entry:
    """Make a version the champion; the one before becomes ``previous``. The caller is `moving`.

    ``too_few`` is the reason for which rulings on too few test cells were overridden, if they were.

    Raises
    ------
    PolicyError
        If a rule fails and is not overridden.
    RegistryError
        If it is the champion already, or was retired.
    """
    champion = holder(store, CHAMPION)
    require_other(version, champion)
    blocking = blocking_rulings(rulings)
    if blocking:
        names = ", ".join(ruling.rule for ruling in blocking)
        few = sum(ruling.value == TOO_FEW for ruling in blocking)
        failed, not_promoted = len(blocking) - few, f"version {version.number} was not promoted:"
        way = "--too-few REASON lets rules pass that had too few test cells to be judged, and no others"
        if not failed:
            raise PolicyError(
                f"{not_promoted} {few} of {len(rulings)} rules had too few test cells to be judged "
                f"({names}), all others hold: {way}"
            )
        raise PolicyError(
            f"{not_promoted} {len(blocking)} of {len(rulings)} rules fail or could not be judged ({names}). "
            "Learn a better version, or override a rule with --override RULE, which the ledger keeps with "
            f"your reason{f'; {way}' if few else ''}"
        )
    aliases, details = _serving(ledger, version, champion)
    details |= {
        "rulings": [ruling.to_json() for ruling in rulings],
        "overrides": [ruling.rule for ruling in rulings if ruling.overridden],
        "policy": POLICY,
    }
    if too_few:
        details["too_few"] = too_few
    return record(store, ledger, _draft("promote", version, decision, aliases, details), decision.sign)


def rollback(store: Store, ledger: Ledger, to: Version | None, decision: Decision) -> Entry:
    """Make an earlier version, by default ``previous``, the champion again; the caller is `moving`."""
    return record(store, ledger, rollback_draft(store, ledger, to, decision), decision.sign)


def rollback_draft(store: Store, ledger: Ledger, to: Version | None, decision: Decision) -> Draft:
    """Return what a rollback would record: the version, and where each alias would point.

    Raises
    ------
    RegistryError
        If there is no champion, no previous one, or the version was retired.
    """
    champion = holder(store, CHAMPION)
    if champion is None:
        raise RegistryError("there is no champion to roll back from; `canal promote` makes the first")
    target = to or holder(store, PREVIOUS)
    if target is None:
        raise RegistryError("there is no previous champion: nothing served before; name a version with --to")
    require_other(target, champion)
    aliases, details = _serving(ledger, target, champion)
    return _draft("rollback", target, decision, aliases, details)


def retire(store: Store, ledger: Ledger, version: Version, decision: Decision) -> Entry:
    """Retire a version: it never serves again; its artifacts stay, and its stage is still restored."""
    return record(store, ledger, retire_draft(store, version, decision), decision.sign)


def retire_draft(store: Store, version: Version, decision: Decision) -> Draft:
    """Return what a retirement would record: the version, and where each alias would point.

    Raises
    ------
    RegistryError
        If it is the champion, or was retired before.
    """
    require_files(version)
    if version.retired:
        raise RegistryError(f"version {version.number} was retired before; `canal ledger` says by whom")
    if CHAMPION in version.aliases:
        raise RegistryError(
            f"version {version.number} is the champion: promote another one first"
            + (", or `canal rollback`" if holder(store, PREVIOUS) else "")
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
    return _draft("retire", version, decision, aliases, {})


def register_entry(
    store: Store,
    ledger: Ledger,
    version: Version,
    sign: Sign | None = None,
    by: str = "canal registry sync",
    decision: Decision | None = None,
) -> None:
    """Write the registration of a ready version into the ledger, unless it is there.

    The newest version becomes ``candidate``. ``by`` is the command that made the version;
    ``decision`` says who decided to make it and why, if somebody did. A ready version that a kill left
    without an entry gets it from the next sync.

    Raises
    ------
    RegistryError
        If the ledger gave the number to another version.
    """
    known = ledger_records(ledger.entries()).get((version.model, version.number))
    if known is not None:
        if (known.document["key"], known.document["record"]) == (version.key, version.record):
            return
        raise RegistryError(
            f"{store.shown} has {version.model} {version.number} ({version.stage}), but "
            f"{store.layout.ledger.name} gave that number to another one (entry {known.seq}): this store is "
            "not the one that the ledger was written with, such as an older copy of it. Bring that one back; "
            "or set this one aside (mlflow.db and mlartifacts/), then `canal registry rebuild`"
        )
    newest = False
    if version.model == store.names.model:
        serving = [one.number for one in store.versions() if one.ready and not one.retired]
        newest = version.number == max(serving, default=None)
    record(
        store,
        ledger,
        Draft(
            kind="register",
            model=version.model,
            version=version.number,
            key=version.key,
            record=version.record,
            who=f"{by} ({user()})" if decision is None else decision.by,
            why="" if decision is None else decision.why,
            aliases={CANDIDATE: version.number} if newest else {},
            details=_details(version),
        ),
        sign,
    )


def measurement_entry(
    store: Store, ledger: Ledger, version: Version, novelty: Mapping[str, Any], sign: Sign | None = None
) -> Entry:
    """Write a further measurement of a registered version into the ledger; the caller is `moving`.

    What was registered stays as it is: record.json names the evaluation of that day, and the newest
    measurement in the ledger counts. ``novelty`` is what `canal.continual.exact_learner.summary` returns.
    """
    commit = current_commit(store.layout.root)
    draft = Draft(
        kind="measure",
        model=version.model,
        version=version.number,
        key=version.key,
        record=version.record,
        who=f"canal registry sync ({user()})",
        details={"novelty": novelty, "git_commit": commit.sha, "dirty": commit.dirty},
    )
    return record(store, ledger, draft, sign)


def require_other(version: Version, champion: Version | None) -> None:
    """Refuse a version that is the champion already, or was retired.

    Raises
    ------
    RegistryError
        Saying which of both.
    """
    require_files(version)
    if version.retired:
        raise RegistryError(f"version {version.number} ({version.stage}) was retired and serves no more")
    if champion is not None and champion.number == version.number:
        raise RegistryError(f"version {version.number} ({version.stage}) is the champion already")


def _serving(
    ledger: Ledger, version: Version, champion: Version | None
) -> tuple[dict[str, int | None], dict[str, Any]]:
    """Return the aliases that a new champion moves, and from which version to which it goes."""
    entries, served = ledger.entries(), champion.number if champion else None
    if champion is not None and (champion.model, champion.number) not in ledger_records(entries):
        # MLflow's champion is not a registered version: the ledger's champion counts.
        champion_said = ledger_aliases(entries, champion.model).get(CHAMPION)
        served = None if champion_said == version.number else champion_said
    aliases: dict[str, int | None] = {CHAMPION: version.number}
    if served is not None:
        aliases[PREVIOUS] = served
    return aliases, {"from": served, "to": version.number}


def _draft(
    kind: Kind,
    version: Version,
    decision: Decision,
    aliases: Mapping[str, int | None],
    details: Mapping[str, Any],
) -> Draft:
    return Draft(
        kind=kind,
        model=version.model,
        version=version.number,
        key=version.key,
        record=version.record,
        who=decision.by,
        why=decision.why,
        aliases=aliases,
        details=details,
    )


def _details(version: Version) -> dict[str, Any]:
    """Return the facts of a version that a rebuild of the registry needs."""
    details = {
        "stage": version.stage,
        "branch": version.branch,
        "parent": version.parent,
        "run": version.run_id,
        "git_commit": version.commit or None,
        "dirty": version.dirty,
    }
    return details | ({"imported": version.imported} if version.imported else {})
