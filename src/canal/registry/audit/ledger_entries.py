"""Audit of the ledger: its chain, its rules, its signatures and anchors, git, and the registry's aliases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from canal.core.errors import CanalError, SigningError
from canal.registry.audit.chain import VersionReader
from canal.registry.audit.committed_ledger import check_committed
from canal.registry.audit.version_files import LEDGER, AuditLog, examples, version_name
from canal.registry.ledger.git_history import Anchor, GitFile, anchors, place
from canal.registry.ledger.joined import histories, ledger_erased, ledger_records, ledger_retired
from canal.registry.ledger.ledger import Entry, Ledger, ledger_aliases
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, LOST, PREVIOUS, Breach, breaches
from canal.registry.ledger.mirror import mirrored
from canal.registry.ledger.signing import Keyring, signature_findings
from canal.registry.promotion.moves import keyring_of, to_be_signed
from canal.registry.promotion.policy import unproven
from canal.registry.store.database import Version, foreign
from canal.registry.store.store import Store, half_rebuilt

STORE = "store"

_READ_FIELDS: dict[str, type] = {
    "seq": int,
    "kind": str,
    "model": str,
    "version": int,
    "key": str,
    "record": str,
    "aliases": dict,
    "details": dict,
}
"""The fields that checks read; an entry that was edited by hand may hold any other type."""


@dataclass(frozen=True)
class Snapshot:
    """The state of ledger and store at one moment.

    Attributes
    ----------
    entries : list of Entry
        The readable entries of the ledger.
    wrong : list of str
        The faults of its lines.
    content : bytes
        The ledger's file.
    versions : list of Version
        Of both registered models, ready or not.
    mirror : mapping of int to Entry, or str
        The entries that a shared store has, by number, or why they cannot be read; empty for another store.
    """

    entries: list[Entry]
    wrong: list[str]
    content: bytes
    versions: list[Version]
    mirror: Mapping[int, Entry] | str = field(default_factory=dict)

    @property
    def ready(self) -> list[Version]:
        """The versions whose registration is complete."""
        return [version for version in self.versions if version.ready]

    @cached_property
    def records(self) -> dict[tuple[str, int], Entry]:
        """The last registration of each version, by model and number."""
        return ledger_records(self.known)

    @cached_property
    def known(self) -> list[Entry]:
        """The ledger's entries, and those by which a shared store continues it.

        A folder that is behind is a finding; the moves of other folders are none.
        """
        known = [*self.entries]
        mirror = {} if isinstance(self.mirror, str) else self.mirror
        while (one := mirror.get(len(known) + 1)) and known and one.document["previous"] == known[-1].hash:
            known.append(one)
        return known


def take_snapshot(store: Store, ledger: Ledger) -> Snapshot:
    """Return the state of ledger and store; the caller holds the registry's lock."""
    entries, wrong = ledger.read()
    entries = [
        entry
        for entry in entries
        if all(isinstance(entry.document[name], kind) for name, kind in _READ_FIELDS.items())
    ]
    content = ledger.path.read_bytes() if ledger.path.is_file() else b""
    versions = [version for name in store.models for version in store.versions(name)]
    mirror: Mapping[int, Entry] | str = {}
    try:
        mirror = mirrored(store) if store.remote else {}
    except CanalError as error:
        mirror = str(error)
    return Snapshot(entries, wrong, content, versions, mirror)


def check_ledger(ledger: Ledger, snapshot: Snapshot, store: Store, log: AuditLog) -> None:
    """Check the chain of entries, and that the ledger begins with what git and a server have of it."""
    name = ledger.path.name
    log.counts["ledger entries"] = len(snapshot.entries)
    for what in snapshot.wrong:
        log.finding(LEDGER, "ledger", f"{name}, {what}")
    if not snapshot.content.endswith(b"\n") and snapshot.content:
        log.note(LEDGER, "ledger", f"{name}: the last line is half written; it counts as not there")
    check_committed(GitFile(ledger.path), snapshot.content, log)
    if store.remote:
        _check_mirror(store, snapshot, name, log)


def check_registered(snapshot: Snapshot, store: Store, log: AuditLog) -> None:
    """Check that ledger and store know the same versions."""
    if half_rebuilt(store):
        what = "a rebuild of the store was interrupted, or is under way: `canal registry sync` continues it"
        log.finding(STORE, "ledger", what)
    records = snapshot.records
    ready = {(version.model, version.number) for version in snapshot.ready}
    for version in snapshot.ready:
        if (version.model, version.number) not in records:
            name = version_name(store, version.model, version.number)
            again = "`canal import` the file again" if version.imported else "run `canal registry sync`"
            what = f"it is registered, but has no entry in the ledger: if a kill is the cause, {again}"
            log.finding(name, "ledger", what)
    for (model, number), entry in sorted(records.items()):
        if (model, number) in ready:
            continue
        name = version_name(store, model, number)
        if entry.document["details"].get(LOST):
            log.note(name, "ledger", f"it could not be rebuilt (entry {entry.seq}) and is gone")
            continue
        what = f"the ledger has it (entry {entry.seq}, {entry.kind}), the registry has not"
        log.finding(name, "ledger", what)


def check_places(store: Store, log: AuditLog) -> None:
    """Check that the paths in the project's own database are in this project."""
    if store.remote:
        return
    paths = foreign(store.layout, store.names)
    name = store.layout.database.name
    if moved := [one for one in paths if one.here is not None]:
        log.note(
            STORE,
            "places",
            f"{name} still names the folder that the project was moved or copied from, {len(moved)} times, "
            f"such as {moved[0].path}: canal reads the files in this folder; `canal registry sync` updates "
            "the paths for MLflow",
        )
    if others := [one for one in paths if one.here is None]:
        shown = examples([f"{one.path} ({one.table})" for one in others])
        log.finding(STORE, "places", f"{name} names {len(others)} paths outside of this project: {shown}")


def check_aliases(snapshot: Snapshot, store: Store, log: AuditLog) -> None:
    """Check aliases and retirements in MLflow against the ledger."""
    model = store.names.model
    recorded = ledger_aliases(snapshot.known, model)
    actual = {alias: one.number for one in snapshot.versions if one.model == model for alias in one.aliases}
    ours = (CHAMPION, PREVIOUS, CANDIDATE)
    for alias in (*ours, *sorted(set(recorded) - {*ours})):
        if recorded.get(alias) != actual.get(alias):
            what = (
                f"{alias} points to {_number(actual.get(alias))} in MLflow, to "
                f"{_number(recorded.get(alias))} by the ledger: it was moved without an entry"
            )
            log.finding("aliases", "aliases", what)
    retired = {name: ledger_retired(snapshot.known, name) for name in store.models}
    for version in snapshot.ready:
        if version.retired != (version.number in retired[version.model]):
            what = (
                "MLflow says it is retired, the ledger does not"
                if version.retired
                else ("the ledger says it is retired, its tag in MLflow does not")
            )
            log.finding(version_name(store, version.model, version.number), "aliases", what)
        if version.erased != ((version.model, version.number) in ledger_erased(snapshot.known)):
            says = "MLflow says it was erased, the ledger does not"
            what = says if version.erased else "the ledger says it was erased, its tag in MLflow does not"
            log.finding(version_name(store, version.model, version.number), "aliases", what)


def _number(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"


def _check_mirror(store: Store, snapshot: Snapshot, name: str, log: AuditLog) -> None:
    mirror = snapshot.mirror
    if isinstance(mirror, str):
        log.finding(LEDGER, "ledger", f"the ledger of {store.shown} cannot be read: {mirror}")
        return
    for mine in snapshot.entries:
        if mine.seq in mirror and mirror[mine.seq].hash != mine.hash:
            log.finding(LEDGER, "ledger", f"{name} and {store.shown} differ from entry {mine.seq} on")
            return
    if len(mirror) != len(snapshot.entries):
        what = f"{name} has {len(snapshot.entries)} entries, {store.shown} has {len(mirror)}"
        log.finding(LEDGER, "ledger", f"{what}: canal ledger --catch-up")


def check_promotions(
    entries: Sequence[Entry], versions: Sequence[Version], reader: VersionReader, log: AuditLog
) -> None:
    """Check that the values in rulings are those in the version's documents, for the same record.

    Documents are the version's evaluation as it was registered, and its later measurements in the ledger.
    """
    by_record = {(version.model, version.number, version.record): version for version in versions}
    for at, entry in enumerate(entries):
        version = by_record.get((entry.model, entry.version, entry.document["record"]))
        if entry.kind != "promote" or version is None or (member := reader.member(version)) is None:
            continue
        for what in unproven(entry, member.folder, entries[:at]):
            log.finding(LEDGER, "rules", str(Breach(entry, what)))


def check_entries(
    entries: Sequence[Entry], store: Store, keyring: Keyring | None, log: AuditLog
) -> Keyring | None:
    """Check that each entry keeps the rules of its kind and has the signature that it needs.

    Returns the keyring that was used: the given one, or the project's own.

    Parameters
    ----------
    entries : sequence of Entry
        The lines of the ledger that can be read.
    store : Store
        Names the model of backbones, and the project's own keyring.
    keyring : Mapping or None
        Keys by which every entry has to be signed; None asks for no more than the project's keyring does.
    log : AuditLog
    """
    for breach in breaches(entries, store.names.backbone):
        (log.finding if breach.grave else log.note)(LEDGER, "rules", str(breach))
    if keyring is not None:
        for what in signature_findings(entries, keyring):
            log.finding(LEDGER, "signature", what)
        return keyring
    try:
        own = keyring_of(store)
    except SigningError as error:
        log.finding(LEDGER, "signature", str(error))
        return None
    if own is None:
        return None
    to_sign = to_be_signed(entries)
    for what in signature_findings(to_sign, own):
        log.finding(LEDGER, "signature", what)
    if len(to_sign) < len(entries):
        what = f"{len(entries) - len(to_sign)} entries are of before the ledger was signed"
        log.note(LEDGER, "signature", f"{what}: they are not checked against {store.names.keyring}")
    return own


def check_anchors(git: GitFile, entries: Sequence[Entry], keyring: Keyring | None, log: AuditLog) -> None:
    """Check the ledger's entries against every anchor in the repository, and the anchors' signatures."""
    by_seq = {entry.seq: entry for entry in entries}
    joined = {(one.seq, one.hash) for _, other, base in histories(entries) for one in other[base:]}
    own = place(git)
    for anchor in anchors(git):
        if isinstance(anchor, str):
            log.finding(LEDGER, "anchor", anchor)
            continue
        if anchor.document["path"] != own:
            other = anchor.document["path"][:200]
            what = f"the anchor {anchor.tag} is of another ledger ({other}): not compared"
            log.note(LEDGER, "anchor", what)
            continue
        log.counts["anchors"] += 1
        if (anchor.entries, anchor.document["hash"]) not in joined:
            _compare(anchor, by_seq.get(anchor.entries), len(entries), log)
        _check_signer(git, anchor, keyring, log)
        if git.ask("merge-base", "--is-ancestor", f"refs/tags/{anchor.tag}", "HEAD") is None:
            what = (
                f"the commit of the anchor {anchor.tag} is not in the history of HEAD: it was rewritten since"
            )
            log.note(LEDGER, "anchor", what)


def _compare(anchor: Anchor, entry: Entry | None, number: int, log: AuditLog) -> None:
    named = str(anchor.document["hash"])
    if entry is not None and entry.hash == named:
        return
    described = (
        f"it has {number} entries" if entry is None else f"entry {entry.seq} has hash {entry.hash[:12]}..."
    )
    log.finding(
        LEDGER,
        "anchor",
        f"the ledger no longer begins with the {anchor.entries} entries that the anchor {anchor.tag} (by "
        f"{anchor.document['who'][:200]!r}) names, the last with hash {named[:12]}...: {described}. What "
        f"it was: git show {anchor.tag}^{{}}:./{anchor.document['path'].rpartition('/')[2]}",
    )


def _check_signer(git: GitFile, anchor: Anchor, keyring: Keyring | None, log: AuditLog) -> None:
    """Check the signature of an anchor, as far as this machine can verify it."""
    if anchor.by_git and git.ask("verify-tag", f"refs/tags/{anchor.tag}") is None:
        what = f"git cannot verify the signature of the anchor {anchor.tag} here: git verify-tag {anchor.tag}"
        log.note(LEDGER, "anchor", what)
    signature = anchor.signature
    if signature is None or keyring is None:
        return
    key = keyring.get(signature["key"])
    if key is None:
        what = f"the anchor {anchor.tag} is signed with key {signature['key'][:16]}..., not in the keyring"
        log.note(LEDGER, "anchor", what)
    elif not key.anchored(anchor.digest, signature["value"]):
        what = f"the anchor {anchor.tag} was not signed with the key of {key.name!r}, which it names"
        log.finding(LEDGER, "anchor", what)
    elif refused := key.refused("anchor"):
        log.finding(LEDGER, "anchor", f"the anchor {anchor.tag} is signed by {key.name!r}, {refused}")
