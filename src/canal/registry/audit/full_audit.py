"""The complete audit of a registry: every check of this room, on all versions or some, in one report.

Nothing here imports torch, nor MLflow where the registry is a local database.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from canal.config.layout import Layout
from canal.config.params import Config
from canal.core.errors import CanalError, LedgerError
from canal.core.progress import doing, each
from canal.registry.audit.cells_used import check_cells, check_exclusions
from canal.registry.audit.chain import VersionReader, check_chain, check_unlearned, check_verdict
from canal.registry.audit.earlier_audits import EarlierAudits
from canal.registry.audit.kept_cells import CellFiles, check_sums, check_values, recompute
from canal.registry.audit.ledger_entries import (
    Snapshot,
    check_aliases,
    check_anchors,
    check_entries,
    check_ledger,
    check_places,
    check_promotions,
    check_registered,
    take_snapshot,
)
from canal.registry.audit.merged import check_merged
from canal.registry.audit.opening import Opening
from canal.registry.audit.shown_runs import CheckedVersion, check_runs
from canal.registry.audit.shown_versions import check_others, check_shown, expected_page
from canal.registry.audit.version_files import (
    LEDGER,
    MANIFESTS,
    AuditLog,
    Finding,
    check_files,
    check_origin_record,
    examples,
    unlisted,
    version_name,
)
from canal.registry.audit.workspace import check_origin, check_workspace
from canal.registry.ledger import tombstones
from canal.registry.ledger.git_history import GitFile
from canal.registry.ledger.joined import ERASE, ledger_erased
from canal.registry.ledger.ledger import Entry, Ledger
from canal.registry.ledger.mirror import movements
from canal.registry.ledger.signing import Keyring
from canal.registry.manifest.version_folder import Record
from canal.registry.promotion.moves import ledger_of, recover
from canal.registry.provenance.registered import RegisteredVersion
from canal.registry.store.database import Version
from canal.registry.store.shown import read_shown
from canal.registry.store.store import Store, fresh_copies

_PATIENCE_S, _GLANCE_S = 60.0, 0.2
"""How long an audit waits until no other folder moves aliases in a shared store."""


@dataclass(frozen=True)
class Report:
    """The result of an audit.

    Attributes
    ----------
    findings : tuple of Finding
        The faults.
    notes : tuple of Finding
        What is no fault, or cannot be checked, but should be known.
    versions : tuple of str
        The versions that were audited.
    counts : Mapping
        How many files, cells, ledger entries ... were checked.
    seconds : float
        Duration.
    """

    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...] = ()
    versions: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "passed": not self.findings,
            "versions": list(self.versions),
            "findings": [finding.to_json() for finding in self.findings],
            "notes": [note.to_json() for note in self.notes],
            "counts": dict(self.counts),
            "seconds": round(self.seconds, 3),
        }


Depth = Literal["files", "changed", "opened", "recomputed"]
"""How far an audit goes: files, ledger and pages; a child process opens each version, too (by default), or
each that has changed since an audit found nothing in it; the sums of each stage whose cells still exist are
computed again, too."""


def audit(
    store: Store,
    layout: Layout,
    config: Config,
    versions: Sequence[Version] | None = None,
    depth: Depth = "opened",
    keyring: Keyring | None = None,
) -> Report:
    """Audit versions (default: all) with their ancestors, the ledger and the aliases.

    Of an ancestor that is not among ``versions``, only the files that its key covers are audited. The caller
    does not hold the registry's lock. ``keyring`` holds the keys that every entry has to be signed by.
    """
    began, log = time.monotonic(), AuditLog()
    with fresh_copies(store) as fetch:
        snapshot = _checked_ledger(store, keyring, log)
        with doing("reading what MLflow shows"):
            shown = read_shown(store)
        check_others(shown, snapshot, store, log)
        reader = VersionReader(store, snapshot.ready, snapshot.records, log, fetch)
        every = snapshot.ready if versions is None else list(versions)
        earlier = EarlierAudits(store, layout, [] if depth == "files" else every)
        unchanged = earlier.unchanged(every) if depth == "changed" else []
        earlier.tell(unchanged, log)
        wanted = [one for one in every if one not in unchanged]
        chains, checked = [], []
        for version in each(wanted, lambda one: f"checking version {one.number} ({one.stage})"):
            if version.erased and (member := reader.member(version)) is not None:
                check_erased(member, ledger_erased(snapshot.known), log)
                continue
            chain, record = _audit_version(reader, version, (layout, config), log)
            if chain:
                chains.append(chain)
            if record is not None:
                page = expected_page(chain[-1], record)
                check_shown(shown, chain[-1], record, page, log, snapshot.known)
                entry = snapshot.records.get((version.model, version.number))
                checked.append(
                    CheckedVersion(chain[-1], record, page, entry is not None and entry.kind == "register")
                )
        opening = Opening([] if depth == "files" else [chain[-1] for chain in chains]).start()
        check_runs(shown, checked, versions is None and not unchanged, log)
        check_promotions(snapshot.entries, every, reader, log)
        _check_chains(chains, layout, depth == "recomputed", log)

        def all_members() -> Iterator[RegisteredVersion]:
            others = VersionReader(store, snapshot.ready, snapshot.records, AuditLog(), fetch)
            versions = (one for one in snapshot.ready if not one.erased)
            return (member for one in versions if (member := others.member(one)))

        check_exclusions(chains, all_members, config, log)
        check_tombstones(layout, snapshot.known, log)
        check_workspace(layout, config, _stages(chains, config, everything=versions is None), log)
        with doing("opening each version as MLflow does"):
            opening.report(log)
    if depth != "files":
        earlier.keep(wanted, log)
    log.counts["versions"], log.counts["versions not read again"] = len(wanted), len(unchanged)
    return Report(
        findings=tuple(log.findings),
        notes=tuple(log.notes),
        versions=tuple(version_name(store, version.model, version.number) for version in wanted),
        counts=dict(log.counts),
        seconds=time.monotonic() - began,
    )


@doing("checking the ledger, its entries and the aliases")
def _checked_ledger(store: Store, keyring: Keyring | None, log: AuditLog) -> Snapshot:
    """Check the ledger against itself, git, the store and its aliases; return the snapshot of both."""
    snapshot = _snapshot(store, log)
    ledger = ledger_of(store)
    check_ledger(ledger, snapshot, store, log)
    keyring = check_entries(snapshot.entries, store, keyring, log)
    check_anchors(GitFile(ledger.path), snapshot.entries, keyring, log)
    check_registered(snapshot, store, log)
    check_aliases(snapshot, store, log)
    check_places(store, log)
    return snapshot


def _check_chains(
    chains: Sequence[Sequence[RegisteredVersion]], layout: Layout, again: bool, log: AuditLog
) -> None:
    """Check ancestors, cells, sums and values of each chain; shared files are read once."""
    _check_ancestors(chains, log)
    files = CellFiles(layout)
    for chain in each(chains, lambda one: f"checking the cells of version {one[-1].version.number}"):
        check_cells(chain, log)
        check_sums(chain, log)
        if again:
            recompute(chain, files, log)
        check_values(chain, files, log)


def _audit_version(
    reader: VersionReader, version: Version, project: tuple[Layout, Config], log: AuditLog
) -> tuple[list[RegisteredVersion], Record | None]:
    """Check a version by itself; return its chain, and its record if that is valid."""
    member = reader.member(version)
    if member is None:
        return [], None
    check_files(member, log)
    record = reader.record(member)
    if record is not None:
        check_origin_record(member, record, log)
    check_origin(member, *project, log)
    chain = reader.chain(member)
    check_verdict(chain, log)
    check_unlearned(chain, reader, log)
    check_merged(chain, reader.others(chain), log)
    return chain, record


def _check_ancestors(chains: Sequence[Sequence[RegisteredVersion]], log: AuditLog) -> None:
    """Check each chain's links, and the files of ancestors that are not audited themselves."""
    audited = {id(chain[-1]) for chain in chains}
    for chain in chains:
        for member in chain:
            if id(member) not in audited:
                audited.add(id(member))
                check_files(member, log)
        check_chain(chain, log)


def _stages(chains: Sequence[Sequence[RegisteredVersion]], config: Config, everything: bool) -> list[str]:
    """Return the stages of params.yaml whose files are compared with dvc.lock."""
    learned = {member.stage for chain in chains for member in chain}
    return [stage for stage in config.stages if everything or stage in learned]


def _snapshot(store: Store, log: AuditLog) -> Snapshot:
    """Finish an interrupted move, then read ledger and store while no other folder moves aliases."""
    ledger = ledger_of(store)
    with store.lock("registry", needed=False) as writing:
        if store.layout.pending.is_file():
            _settle(store, ledger, writing, log)
        end = time.monotonic() + _PATIENCE_S
        while True:
            before, snapshot = movements(store), take_snapshot(store, ledger)
            if before is not None and movements(store) == before:
                return snapshot
            if time.monotonic() > end:
                what = "another folder was moving aliases all the while: audit again when it has finished"
                log.note(LEDGER, "ledger", what)
                return snapshot
            time.sleep(_GLANCE_S)


def _settle(store: Store, ledger: Ledger, writing: bool, log: AuditLog) -> None:
    """Finish an interrupted move; in a read-only folder, report it instead."""
    if not writing:
        what = f"{store.layout.pending.name} holds an interrupted move, and this folder is read-only"
        log.finding(
            LEDGER, "ledger", f"{what}: `canal registry sync`, run by a user who may write, finishes it"
        )
        return
    try:
        recover(store, ledger)
    except CanalError as error:
        log.finding(LEDGER, "ledger", str(error))


# What was erased. A version whose files were erased is no damaged one: its two manifests name what it had,
# and the ledger says who erased it and when. Everything else of it has to be gone.

_ERASED = "erased"


def check_erased(member: RegisteredVersion, erased: Mapping[tuple[str, int], Entry], log: AuditLog) -> None:
    """Check that nothing is left of an erased version but its manifests, and say who erased it."""
    entry = erased.get((member.version.model, member.version.number))
    if entry is None:
        return  # a tag without an entry: the check of tags reports it
    log.counts["erased versions"] += 1
    if left := unlisted(member.folder, set(MANIFESTS)):
        what = f"entry {entry.seq} says that its files were erased, but there are {examples(left)}"
        log.finding(member.name, _ERASED, f"{what}: call canal erase again")
        return
    log.note(member.name, _ERASED, f"its files were {said(entry)}")


def said(entry: Entry) -> str:
    """Return when, by whom and why something was erased."""
    document = entry.document
    return (
        f"erased on {document['time'][:10]} by {document['who'][:80]}: {document['why'][:200]!r} "
        f"(entry {entry.seq})"
    )


def check_tombstones(layout: Layout, entries: Sequence[Entry], log: AuditLog) -> None:
    """Check the lists of what was erased: each is named by an entry, unchanged, and its files are gone."""
    folder = layout.tombstones
    begun, done = tombstones.unfinished(folder), tombstones.finished(folder)
    for path in begun:
        entry = tombstones.entry_of(path, entries)
        what = (
            "was prepared, and nothing removed yet"
            if entry is None
            else f"of entry {entry.seq} is not finished"
        )
        log.finding(
            LEDGER, _ERASED, f"an erasing {what}: call canal erase again, as it was called ({path.name})"
        )
    for path in done:
        name = f"{folder.name}/{path.name}"
        entry = tombstones.entry_of(path, entries)
        if entry is None:
            what = f"{name} is not what an entry of the ledger names: it was changed or added"
            log.finding(LEDGER, _ERASED, f"{what}; git checkout -- {folder.name}")
            continue
        try:
            back = tombstones.read(path).left(layout.root)
        except LedgerError as error:
            log.finding(LEDGER, _ERASED, str(error))
            continue
        if back:
            shown = examples([one.path for one in back])
            log.finding("workspace", _ERASED, f"{shown}: {said(entry)}, and back: call canal erase again")
    names = {path.name.partition(".")[0] for path in (*begun, *done)}
    for entry in (one for one in entries if one.kind == ERASE):
        if str(entry.document["details"].get("token")) not in names:
            what = f"entry {entry.seq} names a list of what was erased, and {folder.name}/ lacks it"
            log.finding(LEDGER, _ERASED, f"{what}: git checkout -- {folder.name}")
