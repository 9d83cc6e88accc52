"""The ledger against itself, git, the aliases and tags of the registry, and the versions that are there.

And what its entries say: against what canal writes, who signed them, and the anchors with which it begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from canal.core.errors import CanalError, SigningError
from canal.registry.audit.chain import Family
from canal.registry.audit.past import check_past
from canal.registry.audit.version_files import LEDGER, Found, examples, version_name
from canal.registry.ledger.git_history import Anchor, GitFile, anchors, place
from canal.registry.ledger.ledger import Entry, Ledger, aliases_said, records_said, retired_said
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, LOST, PREVIOUS, Breach, breaches
from canal.registry.ledger.mirror import mirrored
from canal.registry.ledger.signing import Keyring, signature_findings
from canal.registry.promotion.moves import keyring_of, to_be_signed, unproven
from canal.registry.store.database import Version, foreign
from canal.registry.store.store import Store, half_rebuilt

STORE = "store"


@dataclass(frozen=True)
class Snapshot:
    """What ledger and store said at one moment.

    Attributes
    ----------
    entries : list of Entry
        The lines of the ledger that can be read and understood.
    wrong : list of str
        What is wrong with lines.
    content : bytes
        The ledger's file.
    versions : list of Version
        Of both registered models, ready or not.
    there : mapping of int to Entry, or str
        The entries that a shared store has, by number, or why they cannot be read; empty for another store.
    """

    entries: list[Entry]
    wrong: list[str]
    content: bytes
    versions: list[Version]
    there: Mapping[int, Entry] | str = field(default_factory=dict)

    @property
    def ready(self) -> list[Version]:
        """The versions that are whole."""
        return [version for version in self.versions if version.ready]

    @cached_property
    def records(self) -> dict[tuple[str, int], Entry]:
        """The ledger's last word on the manifests of each version, by model and number."""
        return records_said(self.known)

    @cached_property
    def known(self) -> list[Entry]:
        """The ledger's entries, and those by which a shared store goes on where the ledger ends.

        Where this folder is behind, which is a finding, what others moved is not held against them.
        """
        known = [*self.entries]
        there = {} if isinstance(self.there, str) else self.there
        while (one := there.get(len(known) + 1)) and known and one.document["previous"] == known[-1].hash:
            known.append(one)
        return known


def take_snapshot(store: Store, ledger: Ledger) -> Snapshot:
    """Return what ledger and store say; the caller holds the registry's lock."""
    entries, wrong = ledger.read()
    entries = [entry for entry in entries if _usable(entry)]
    content = ledger.path.read_bytes() if ledger.path.is_file() else b""
    versions = [version for name in store.models for version in store.versions(name)]
    there: Mapping[int, Entry] | str = {}
    try:
        there = mirrored(store) if store.remote else {}
    except CanalError as error:
        there = str(error)
    return Snapshot(entries, wrong, content, versions, there)


def _usable(entry: Entry) -> bool:
    """Whether an entry can be asked what it says; one that was edited by hand may hold anything."""
    kinds: dict[str, type] = {
        "seq": int,
        "kind": str,
        "model": str,
        "version": int,
        "key": str,
        "record": str,
        "aliases": dict,
        "details": dict,
    }
    return all(isinstance(entry.document[name], kind) for name, kind in kinds.items())


def check_ledger(ledger: Ledger, snapshot: Snapshot, store: Store, found: Found) -> None:
    """Check the chain of entries, and that what git and a server have of them is still there."""
    name = ledger.path.name
    found.counts["ledger entries"] = len(snapshot.entries)
    for what in snapshot.wrong:
        found.wrong(LEDGER, "ledger", f"{name}, {what}")
    if not snapshot.content.endswith(b"\n") and snapshot.content:
        found.note(LEDGER, "ledger", f"{name}: the last line is half written; it counts as not there")
    check_past(GitFile(ledger.path), snapshot.content, found)
    if store.remote:
        _check_mirror(store, snapshot, name, found)


def check_registered(snapshot: Snapshot, store: Store, found: Found) -> None:
    """Check that ledger and store know the same versions."""
    if half_rebuilt(store):
        what = "a rebuilding of it was interrupted, or is at work: `canal registry sync` goes on with it"
        found.wrong(STORE, "ledger", what)
    records = snapshot.records
    ready = {(version.model, version.number) for version in snapshot.ready}
    for version in snapshot.ready:
        if (version.model, version.number) not in records:
            name = version_name(store, version.model, version.number)
            again = "`canal import` the file again" if version.imported else "run `canal registry sync`"
            what = f"it is registered, but not in the ledger: if a kill left it so, {again}"
            found.wrong(name, "ledger", what)
    for (model, number), entry in sorted(records.items()):
        if (model, number) in ready:
            continue
        name = version_name(store, model, number)
        if entry.document["details"].get(LOST):
            found.note(name, "ledger", f"it could not be rebuilt (entry {entry.seq}) and is gone")
            continue
        what = f"the ledger has it (entry {entry.seq}, {entry.kind}), the registry has not"
        found.wrong(name, "ledger", what)


def check_places(store: Store, found: Found) -> None:
    """Check that the project's own database names no folder of another project."""
    if store.remote:
        return
    paths = foreign(store.layout, store.names)
    name = store.layout.database.name
    if moved := [one for one in paths if one.here is not None]:
        found.note(
            STORE,
            "places",
            f"{name} still names the folder that the project was moved or copied from, {len(moved)} times, "
            f"such as {moved[0].path}: canal reads what lies here; `canal registry sync` tells MLflow, too",
        )
    if others := [one for one in paths if one.here is None]:
        shown = examples([f"{one.path} ({one.table})" for one in others])
        found.wrong(STORE, "places", f"{name} names {len(others)} paths outside of this project: {shown}")


def check_aliases(snapshot: Snapshot, store: Store, found: Found) -> None:
    """Check aliases and retirements against the ledger's last word on each."""
    model = store.names.model
    said = aliases_said(snapshot.known, model)
    there = {alias: one.number for one in snapshot.versions if one.model == model for alias in one.aliases}
    ours = (CHAMPION, PREVIOUS, CANDIDATE)
    for alias in (*ours, *sorted(set(said) - {*ours})):
        if said.get(alias) != there.get(alias):
            what = (
                f"{alias} points to {_number(there.get(alias))} in MLflow, to {_number(said.get(alias))} by "
                "the ledger: it was moved behind the ledger's back"
            )
            found.wrong("aliases", "aliases", what)
    retired = {name: retired_said(snapshot.known, name) for name in store.models}
    for version in snapshot.ready:
        if version.retired != (version.number in retired[version.model]):
            what = (
                "MLflow says it is retired, the ledger does not"
                if version.retired
                else ("the ledger says it is retired, its tag in MLflow does not")
            )
            found.wrong(version_name(store, version.model, version.number), "aliases", what)


def _number(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"


def _check_mirror(store: Store, snapshot: Snapshot, name: str, found: Found) -> None:
    there = snapshot.there
    if isinstance(there, str):
        found.wrong(LEDGER, "ledger", f"the ledger of {store.shown} cannot be read: {there}")
        return
    for mine in snapshot.entries:
        if mine.seq in there and there[mine.seq].hash != mine.hash:
            found.wrong(LEDGER, "ledger", f"{name} and {store.shown} differ from entry {mine.seq} on")
            return
    if len(there) != len(snapshot.entries):
        what = f"{name} has {len(snapshot.entries)} entries, {store.shown} has {len(there)}"
        found.wrong(LEDGER, "ledger", f"{what}: canal ledger --catch-up")


def check_promotions(
    entries: Sequence[Entry], versions: Sequence[Version], family: Family, found: Found
) -> None:
    """Check that rulings passed with what the documents of the version say, where it is the same record."""
    there = {(version.model, version.number, version.record): version for version in versions}
    for entry in entries:
        version = there.get((entry.model, entry.version, entry.document["record"]))
        if entry.kind != "promote" or version is None or (member := family.member(version)) is None:
            continue
        for what in unproven(entry.document["details"], member.folder):
            found.wrong(LEDGER, "rules", str(Breach(entry, what)))


def check_entries(
    entries: Sequence[Entry], store: Store, keyring: Keyring | None, found: Found
) -> Keyring | None:
    """Check that each entry moves what its kind may move, and is signed by whom it has to be.

    Returns the keyring that was asked: the one given, or the project's own.

    Parameters
    ----------
    entries : sequence of Entry
        The lines of the ledger that can be read.
    store : Store
        Names the model of backbones, and the project's own keyring.
    keyring : Mapping or None
        Keys by which every entry has to be signed; None asks for no more than the project's keyring does.
    found : Found
    """
    for breach in breaches(entries, store.names.backbone):
        (found.wrong if breach.grave else found.note)(LEDGER, "rules", str(breach))
    if keyring is not None:
        for what in signature_findings(entries, keyring):
            found.wrong(LEDGER, "signature", what)
        return keyring
    try:
        own = keyring_of(store)
    except SigningError as error:
        found.wrong(LEDGER, "signature", str(error))
        return None
    if own is None:
        return None
    asked = to_be_signed(entries)
    for what in signature_findings(asked, own):
        found.wrong(LEDGER, "signature", what)
    if len(asked) < len(entries):
        what = f"{len(entries) - len(asked)} entries are of before the ledger was signed"
        found.note(LEDGER, "signature", f"{what}: {store.names.keyring} says nothing of them")
    return own


def check_anchors(git: GitFile, entries: Sequence[Entry], keyring: Keyring | None, found: Found) -> None:
    """Check the ledger's entries against every anchor in the repository, and who signed that."""
    by_seq = {entry.seq: entry for entry in entries}
    own = place(git)
    for anchor in anchors(git):
        if isinstance(anchor, str):
            found.wrong(LEDGER, "anchor", anchor)
            continue
        if anchor.document["path"] != own:
            other = anchor.document["path"][:200]
            what = f"the anchor {anchor.tag} is of another ledger ({other}): not compared"
            found.note(LEDGER, "anchor", what)
            continue
        found.counts["anchors"] += 1
        _compare(anchor, by_seq.get(anchor.entries), len(entries), found)
        _check_signer(git, anchor, keyring, found)
        if git.ask("merge-base", "--is-ancestor", f"refs/tags/{anchor.tag}", "HEAD") is None:
            what = (
                f"the commit of the anchor {anchor.tag} is not in the history of HEAD: it was rewritten since"
            )
            found.note(LEDGER, "anchor", what)


def _compare(anchor: Anchor, entry: Entry | None, number: int, found: Found) -> None:
    named = str(anchor.document["hash"])
    if entry is not None and entry.hash == named:
        return
    there = (
        f"it has {number} entries" if entry is None else f"entry {entry.seq} has hash {entry.hash[:12]}..."
    )
    found.wrong(
        LEDGER,
        "anchor",
        f"the ledger no longer begins with the {anchor.entries} entries that the anchor {anchor.tag} (by "
        f"{anchor.document['who'][:200]!r}) names, the last with hash {named[:12]}...: {there}. What it was: "
        f"git show {anchor.tag}^{{}}:./{anchor.document['path'].rpartition('/')[2]}",
    )


def _check_signer(git: GitFile, anchor: Anchor, keyring: Keyring | None, found: Found) -> None:
    """Check who signed an anchor, as far as this machine can tell."""
    if anchor.by_git and git.ask("verify-tag", f"refs/tags/{anchor.tag}") is None:
        what = f"git cannot verify the signature of the anchor {anchor.tag} here: git verify-tag {anchor.tag}"
        found.note(LEDGER, "anchor", what)
    signature = anchor.signature
    if signature is None or keyring is None:
        return
    key = keyring.get(signature["key"])
    if key is None:
        what = f"the anchor {anchor.tag} is signed with key {signature['key'][:16]}..., not in the keyring"
        found.note(LEDGER, "anchor", what)
    elif not key.anchored(anchor.digest, signature["value"]):
        what = f"the anchor {anchor.tag} was not signed with the key of {key.name!r}, which it names"
        found.wrong(LEDGER, "anchor", what)
    elif refused := key.refused("anchor"):
        found.wrong(LEDGER, "anchor", f"the anchor {anchor.tag} is signed by {key.name!r}, {refused}")
