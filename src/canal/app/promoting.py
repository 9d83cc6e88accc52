"""A version judged and moved: what `canal promote`, `compare`, `rollback` and `retire` call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.app.comparing import compare_versions
from canal.app.project import Project
from canal.core.errors import RegistryError
from canal.core.files import read_json
from canal.registry import promotion
from canal.registry.comparison import Comparison
from canal.registry.ledger import Entry
from canal.registry.mirror import refuse_behind
from canal.registry.moves import CHAMPION, PREVIOUS, ledger_of, moving
from canal.registry.policy import Evidence, Ruling, judge, override
from canal.registry.store import Version

if TYPE_CHECKING:
    from canal.registry.ledger import Sign


@dataclass(frozen=True)
class Judgement:
    """What the policy says of a version, and against which champion."""

    version: Version
    champion: Version | None
    rulings: Sequence[Ruling]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "version": self.version.number,
            "stage": self.version.stage,
            "champion": self.champion.number if self.champion else None,
            "rulings": [ruling.to_json() for ruling in self.rulings],
        }


@dataclass(frozen=True)
class Move:
    """Who moves the champion, why, and with which signature."""

    by: str
    why: str
    sign: "Sign | None" = None


def judge_version(project: Project, wanted: str, overrides: Sequence[str] = ()) -> Judgement:
    """Ask every rule of the policy about a version; nothing is changed.

    Raises
    ------
    RegistryError
        If there is no such ready version, it was retired, or it is the champion already; or if this user may
        only read here.
    PolicyError
        If an override names no rule.
    """
    from canal.registry.audit import audit

    store = project.store
    # Before minutes are spent on judging: who is behind, or may only read here, cannot promote.
    refuse_behind(store, ledger_of(store))
    with store.lock("registry"):
        pass
    version = store.serving(wanted)
    champion = promotion.holder(store, CHAMPION)
    promotion.require_other(version, champion)
    folder = store.artifacts(version)
    findings = [str(one) for one in audit(store, project.layout, project.config, [version]).findings]
    evidence = Evidence(
        evaluation=read_json(folder / "metrics" / "evaluation.json"),
        verdict=read_json(folder / "validation" / "verdict.json"),
        record=read_json(folder / "record.json"),
        key=read_json(folder / "key.json"),
        findings=findings,
        comparison=compare_versions(project, champion, version) if champion else None,
    )
    return Judgement(version, champion, override(judge(project.config.policy, evidence), overrides))


def promote(project: Project, judgement: Judgement, move: Move) -> Entry:
    """Make a judged version the champion, unless somebody moved it since it was judged.

    Raises
    ------
    RegistryError
        If a rule fails that nobody overrode, or another champion serves by now.
    """
    with moving(project.store) as ledger:
        now = promotion.holder(project.store, CHAMPION)
        before = judgement.champion
        if (now.number if now else None) != (before.number if before else None):
            raise RegistryError(
                f"the champion is version {now.number if now else 'none'} by now: somebody else was quicker; "
                "promote again, and the version is judged against that one"
            )
        return promotion.promote(
            project.store, ledger, judgement.version, judgement.rulings, move.by, move.why, move.sign
        )


def rollback(project: Project, to: str | None, move: Move) -> Entry:
    """Let ``previous``, or any other ready version, serve again, after checking its bytes."""
    from canal.registry.history import verified

    with moving(project.store) as ledger:
        target = project.store.serving(to) if to else promotion.holder(project.store, PREVIOUS)
        if target is not None:
            verified(project.store, target)
        return promotion.rollback(project.store, ledger, target, move.by, move.why, move.sign)


def retire(project: Project, wanted: str, move: Move) -> Entry:
    """Let a version never serve again; its artifacts stay."""
    with moving(project.store) as ledger:
        version = project.store.version(wanted)
        return promotion.retire(project.store, ledger, version, move.by, move.why, move.sign)


def compare(
    project: Project, wanted: str, against: str = CHAMPION, file: Path | None = None, stage: str | None = None
) -> Comparison:
    """Score a version and the champion (or another version) on the same cells."""
    candidate, champion = project.store.version(wanted), project.store.version(against)
    if candidate.number == champion.number:
        raise RegistryError(
            f"version {candidate.number} cannot be compared with itself; name another with --with"
        )
    return compare_versions(project, champion, candidate, file, stage)
