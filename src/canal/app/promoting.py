"""`canal promote`, `compare`, `rollback`, `retire`, `diff`, `ledger merge`: judge versions, move aliases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.annotation.annotate import label_h5ad
from canal.annotation.options import Options as Options
from canal.annotation.summary import Changes, label_changes
from canal.app.hooks import Event, announce
from canal.app.models import LoadedModels, load_annotator
from canal.app.project import Project as Project
from canal.app.scoring import Gathered, gather_evidence, parent_of
from canal.app.scoring import compare as compare
from canal.config.decisions import Action
from canal.core.errors import LedgerError, RegistryError
from canal.registry.ledger.git_history import GitFile
from canal.registry.ledger.ledger import Draft, Entry, plain_reason
from canal.registry.ledger.ledger_rules import CHAMPION, PREVIOUS
from canal.registry.ledger.mirror import refuse_behind
from canal.registry.promotion import promotion
from canal.registry.promotion.merging import Merging, finish_merge, merged, other_side, resolved_side
from canal.registry.promotion.moves import ledger_of, moving, recover
from canal.registry.promotion.policy import Ruling, blocking_rulings, judge, override, power_text
from canal.registry.promotion.promotion import Decision as Decision
from canal.registry.provenance.diff import difference
from canal.registry.store.database import Version
from canal.registry.store.store import require_rebuilt
from canal.registry.versions.history import verified


@dataclass(frozen=True)
class Judgement:
    """The policy's rulings about a version.

    Attributes
    ----------
    version, rulings : Version, sequence of Ruling
    champion : Version or None
        The version that serves.
    compared : Version or None
        The version that it was compared with: the champion, or its parent where none serves yet.
    too_few : str
        Why stages and types with too few test cells were let pass; empty where they were not.
    power : str
        What the power in a ruling's note means, in words; empty where no ruling has one.
    gathered : Gathered or None
        What it was judged by.
    """

    version: Version
    champion: Version | None
    rulings: Sequence[Ruling]
    compared: Version | None = None
    too_few: str = ""
    power: str = ""
    gathered: Gathered | None = None

    @property
    def passed(self) -> bool:
        """Whether no ruling blocks promotion."""
        return not blocking_rulings(self.rulings)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        other = self.compared and {"version": self.compared.number, "stage": self.compared.stage}
        return {
            "version": self.version.number,
            "stage": self.version.stage,
            "champion": self.champion.number if self.champion else None,
            "compared_with": other,
            "rulings": [ruling.to_json() for ruling in self.rulings],
            **({"power": self.power} if self.power else {}),
        }


def judge_version(
    project: Project, wanted: str, overrides: Sequence[str] = (), too_few: str = ""
) -> Judgement:
    """Apply every rule of the policy to a version; nothing is changed.

    Parameters
    ----------
    wanted
        Number or alias.
    overrides
        Names or patterns of rules that pass though they fail.
    too_few
        The reason for which stages and types with too few test cells pass; empty: they do not.

    Raises
    ------
    RegistryError
        If there is no such ready version, it was retired, or it is the champion already; or if the registry
        is read-only for this user.
    PolicyError
        If an override names no rule.
    """
    too_few = plain_reason(too_few, "the reason (--too-few)") if too_few else ""
    store = project.store
    # Checked before minutes of judging: an outdated ledger or a read-only registry rules promotion out.
    refuse_behind(store, ledger_of(store))
    with store.lock("registry"):
        pass
    version = store.serving(wanted)
    champion = promotion.holder(store, CHAMPION)
    promotion.require_other(version, champion)
    other = champion or parent_of(project, version)
    gathered = gather_evidence(LoadedModels(project), version, other)
    rulings = override(judge(project.config.policy, gathered.evidence), overrides, too_few=bool(too_few))
    power = power_text(project.config.policy, rulings)
    return Judgement(version, champion, rulings, other, too_few, power, gathered)


def promote(project: Project, judgement: Judgement, decision: Decision) -> Entry:
    """Make a judged version the champion, unless somebody moved it since it was judged.

    Raises
    ------
    RegistryError
        If a rule fails and was not overridden, or the champion has changed.
    """
    with moving(project.store) as ledger:
        now = promotion.holder(project.store, CHAMPION)
        before = judgement.champion
        if (now.number if now else None) != (before.number if before else None):
            raise RegistryError(
                f"the champion has changed to version {now.number if now else 'none'} meanwhile: promote "
                "again, to compare the version with the new champion"
            )
        rulings, too_few = judgement.rulings, judgement.too_few
        entry = promotion.promote(project.store, ledger, judgement.version, rulings, decision, too_few)
    _announce(project, "promote", judgement.version, entry)
    return entry


def rollback(project: Project, to: str | None, decision: Decision) -> Entry:
    """Let ``previous``, or any other ready version, serve again, after checking its bytes."""
    with moving(project.store) as ledger:
        entry = promotion.rollback(project.store, ledger, target := _proven(project, to), decision)
    _announce(project, "rollback", target, entry)
    return entry


def _proven(project: Project, to: str | None) -> Version | None:
    """Return a version that is to serve again, by default ``previous``, after checking its bytes."""
    store = project.store
    if target := store.serving(to) if to else promotion.holder(store, PREVIOUS):
        verified(store, target)
    return target


def retire(project: Project, wanted: str, decision: Decision) -> Entry:
    """Let a version never serve again; its artifacts stay."""
    with moving(project.store) as ledger:
        version = project.store.version(wanted)
        entry = promotion.retire(project.store, ledger, version, decision)
    _announce(project, "retire", version, entry)
    return entry


def planned_move(project: Project, action: Action, wanted: str | None, decision: Decision) -> Draft:
    """Return what a rollback or a retirement would record; nothing is moved."""
    store = project.store
    if action == "retire":
        return promotion.retire_draft(store, store.version(wanted or ""), decision)
    return promotion.rollback_draft(store, ledger_of(store), _proven(project, wanted), decision)


def _announce(project: Project, action: Action, version: Version | None, entry: Entry) -> None:
    """Tell the hooks of a move that is complete."""
    document, stage = entry.document, version.stage if version else ""
    announce(project, Event(action, document["who"], document["why"], stage, [entry]))


def merge_ledgers(project: Project, other: str | None, decision: Decision | None, dry_run: bool) -> Merging:
    """Join another clone's ledger to this folder's, which stays as it is up to its head.

    Parameters
    ----------
    project : Project
    other : str or None
        A git revision, or the path of a ledger or of a folder with one; None for the other side of a merge
        that git left unsettled.
    decision : Decision or None
        Who merges, and why; needed where entries are appended anew.
    dry_run : bool
        Whether to say only what would come of it.

    Raises
    ------
    LedgerError
        If the store is shared, there is no such ledger, or the two cannot be joined; nothing is written.
    """
    store = project.store
    if store.remote:
        raise LedgerError(
            f"each entry also stands in {store.shown}, which lets a folder write only behind its last one: "
            "two ledgers of it never part. `canal ledger --catch-up` brings what is missing here; of "
            f"two sides that git left, take either first (git checkout --ours {store.layout.ledger.name})"
        )
    with store.lock("registry"):
        require_rebuilt(store)
        git = GitFile(store.layout.ledger)
        sides = git.unmerged
        ours = ledger_of(store) if sides is None else resolved_side(git, sides)
        if store.layout.pending.is_file() and not dry_run:
            if ours.path != store.layout.ledger:
                raise LedgerError(
                    f"{store.layout.pending.name} holds a move that was interrupted: git merge --abort, let "
                    "`canal registry sync` finish it, then merge again"
                )
            recover(store, ours)
        found = merged(store, ours, other_side(git, other, sides), decision)
        if decision is None and found.outcome == "merged" and not dry_run:
            raise LedgerError("a merge goes on record: say who merges (--by), and why (--why)")
        if not dry_run:
            finish_merge(store, found)
            if sides is not None:
                git.mark_resolved()
        return found


@dataclass(frozen=True)
class Difference:
    """The differences of two versions: a JSON document, and a file's label changes where one was given."""

    document: dict[str, Any]
    cells: Changes | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {**self.document, "file": None if self.cells is None else self.cells.to_json()}


def diff(
    project: Project,
    before: str,
    after: str,
    file: Path | None = None,
    options: Options | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> Difference:
    """Return the differences between two versions, and the cells of a file that they label differently.

    Raises
    ------
    RegistryError
        If there is no such ready version, both are one, or a version is damaged.
    DataError
        If the file cannot be labelled; see `canal.annotation.annotate`.
    """
    old, new = project.store.version(before), project.store.version(after)
    if old.number == new.number:
        raise RegistryError(f"{before} and {after} are both version {old.number}: name two versions")
    document = difference(project.store, old, new)
    if file is None:
        return Difference(document)

    tables = []
    for version in (old, new):
        notice(f"version {version.number} ({version.stage}) labels {file.name}")
        tables.append(label_h5ad(load_annotator(project, version), file, options, notice))
    return Difference(document, label_changes(file.name, *tables))
