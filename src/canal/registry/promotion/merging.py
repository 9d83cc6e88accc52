"""A ledger merged with that of another clone, whose entries are appended anew.

Aliases stay where this folder's ledger has them, but on no version that the other retired. Refused is what no
order of entries could make true: one number for two versions, and versions that this store does not hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from canal.core.errors import LedgerError
from canal.core.files import new_file, regular_file
from canal.registry.ledger.git_history import GitFile
from canal.registry.ledger.joined import (
    Join,
    LedgerText,
    holds,
    join,
    ledger_bytes,
    ledger_erased,
    ledger_records,
    ledger_retired,
    merge_aliases,
    origin,
)
from canal.registry.ledger.ledger import Draft, Entry, Ledger, ledger_aliases
from canal.registry.ledger.ledger_rules import CANDIDATE, CHAMPION, LOST, PREVIOUS, require_rules
from canal.registry.ledger.mirror import user
from canal.registry.promotion.moves import (
    ERASED,
    RETIRED,
    require_signature,
    require_signatures,
    require_sound,
)
from canal.registry.promotion.promotion import Decision
from canal.registry.store.store import Store


@dataclass(frozen=True)
class Merging:
    """What a merge of two ledgers comes to.

    Attributes
    ----------
    outcome : str
        merged; continued, where the other holds this one and is taken as it is; nothing, where this one holds
        the other.
    base : int
        How many entries both begin with.
    entries : list of Entry
        The ledger afterwards.
    new : list of Entry
        What is appended to this folder's ledger, or differs from it, the merge entry last.
    aliases, retired : Mapping, tuple
        What has to be put right in the store: aliases with their versions, and versions to be retired.
    """

    outcome: str
    base: int
    entries: list[Entry]
    new: list[Entry]
    aliases: Mapping[str, int | None]
    retired: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "outcome": self.outcome,
            "base": self.base,
            "entries": len(self.entries),
            "new": [entry.document for entry in self.new],
            "aliases": dict(self.aliases),
            "retired": list(self.retired),
        }


def merged(store: Store, ours: Ledger, theirs: Ledger, decision: Decision | None) -> Merging:
    """Return what merging another clone's ledger into this folder's comes to; nothing is written.

    Without a decision it is a trial, whose merge entry is nobody's and not signed.

    Raises
    ------
    LedgerError
        If one of them does not hold, both gave a number to different versions, the other retired what serves
        here, or the store lacks a version that it registered.
    SigningError
        If an entry lacks a signature that the keyring in params.yaml accepts.
    """
    here, there = ours.entries(), theirs.entries()
    require_sound(store, here)
    require_rules(there, store.names.backbone, theirs.path.name)
    found = combined(here, there, store.names.model, decision or Decision(user(), "a trial"))
    require_rules(found.entries, store.names.backbone, ours.path.name)
    closed = found.outcome == "merged"
    require_signatures(store, found.entries[:-1] if closed else found.entries)
    if closed and decision is not None:
        require_signature(store, found.new[-1])
    return _settling(store, here, found)


def combined(here: list[Entry], there: list[Entry], model: str, decision: Decision) -> Merging:
    """Return what two ledgers come to, whatever the store holds; ``model`` has the aliases.

    Raises
    ------
    LedgerError
        If both gave a number to different versions, or the other retired what serves here.
    """
    same = sum(1 for one, other in zip(here, there, strict=False) if one.hash == other.hash)
    if holds(here, ledger_bytes(there)):
        return Merging("nothing", same, here, [], {}, ())
    if holds(there, ledger_bytes(here)):
        return Merging("continued", same, there, there[same:], {}, ())
    both = join(here, there)
    _require_joinable(here, both)
    draft = Draft(
        kind="merge", model=model, version=0, key="", record="", who=decision.by, why=decision.why,
        aliases=merge_aliases(both.entries, model), details=both.details,
    )  # fmt: skip
    closing = LedgerText("ledger.jsonl", ledger_bytes(both.entries)).next(draft, decision.sign)
    return Merging("merged", same, [*both.entries, closing], [*both.new, closing], {}, ())


def finish_merge(store: Store, merging: Merging) -> None:
    """Write the ledger of a merge, whole or not at all, then put the store's aliases right.

    A kill between the two leaves the new ledger; the same merge again finds nothing to append, and goes on.
    """
    path, content = store.layout.ledger, ledger_bytes(merging.entries)
    try:
        if content != (path.read_bytes() if path.is_file() else b""):
            with new_file(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise LedgerError(
            f"cannot write {path}: {error.strerror or error}; it is as it was, nothing was merged"
        ) from error
    for alias, number in merging.aliases.items():
        store.point(store.names.model, alias, number)
    for number in merging.retired:
        store.tag(store.names.model, number, RETIRED, "true")
    for model, number in ledger_erased(merging.entries):
        if any(one.number == number and not one.erased for one in store.versions(model)):
            for name in (RETIRED, ERASED):
                store.tag(model, number, name, "true")


def resolved_side(git: GitFile, sides: tuple[bytes, bytes]) -> Ledger:
    """Return this branch's ledger in an unsettled merge: the file as it lies there, if it is one.

    Raises
    ------
    LedgerError
        If it is not git merge that left it unsettled, or the file is neither git's nor this branch's.
    """
    name = git.path.name
    if git.at("MERGE_HEAD") is None:
        raise LedgerError(
            f"{name} is unsettled, but not by git merge: rebase and cherry-pick leave commits behind that a "
            "merged ledger names. git rebase --abort (git cherry-pick --abort), then git merge"
        )
    content = git.path.read_bytes() if git.path.is_file() else b""
    if not content or content in sides or b"\n<<<<<<< " in b"\n" + content:
        return LedgerText(name, sides[0])
    if content.startswith(sides[0]) or holds(Ledger(git.path).entries(), sides[0]):
        return Ledger(git.path)
    raise LedgerError(
        f"{git.path} is neither this branch's ledger nor the other's: take this one's (git checkout --ours "
        f"{name}), then merge again"
    )


def other_side(git: GitFile, other: str | None, sides: tuple[bytes, bytes] | None) -> Ledger:
    """Return the other ledger."""
    name = git.path.name
    if other is None:
        if sides is None:
            raise LedgerError(
                "git has no unsettled merge of the ledger: name the other one, a branch (canal ledger merge "
                f"origin/main) or a file (canal ledger merge ../other/{name})"
            )
        return LedgerText(f"MERGE_HEAD:{name}", sides[1])
    path = Path(other)
    path = path / name if path.is_dir() and (path / name).exists() else path
    if path.is_file():
        content, shown = regular_file(path).read_bytes(), str(path)
    elif other.startswith("-") or (found := git.at(other)) is None:
        raise LedgerError(
            f"{other[:200]!r} is neither a file nor a revision whose {name} git has: name a branch, a commit "
            f"or another clone's {name} (git fetch brings what is missing)"
        )
    else:
        content, shown = found, f"{other}:{name}"
    if sides is not None and content != sides[1]:
        raise LedgerError(
            f"git merges with another ledger than that of {other[:200]!r}: `canal ledger merge` alone takes "
            "the one that git merges; merge the other afterwards"
        )
    return LedgerText(shown, content)


def _require_joinable(here: Sequence[Entry], both: Join) -> None:
    """Refuse where a number is of two versions, or the other ledger retired what serves here."""
    known = ledger_records(here)
    for entry in both.new:
        before = known.get((entry.model, entry.version))
        if entry.kind not in ("register", "rebuild"):
            before = None
        if before is not None and before.document["key"] != entry.document["key"]:
            number = entry.version
            raise LedgerError(
                f"nothing was merged: {entry.model} {number} is another version in each ledger (key "
                f"{before.document['key'][:12]}... by {before.document['who'][:80]!r} here, "
                f"{entry.document['key'][:12]}... by {entry.document['who'][:80]!r} there), and a number is "
                f"one version's for good. In the other clone: `canal export {number} -o other.zip`; here "
                "`canal import other.zip`, which gives it a number of its own, and `canal promote` it if it "
                "is to serve. Then there: put that branch on top of this one (git rebase, git checkout "
                "--ours ledger.jsonl), set its mlflow.db and mlartifacts/ aside, `canal registry rebuild "
                "--also` this folder"
            )
        champion = ledger_aliases([*here], entry.model).get(CHAMPION)
        if champion in ledger_retired([entry], entry.model):
            raise LedgerError(
                f"nothing was merged: version {champion} serves here, and the other ledger retired it "
                f"(its entry {origin(entry).seq}, by {entry.document['who'][:80]!r}): `canal promote` "
                "another or `canal rollback` first, then merge again"
            )


def _settling(store: Store, here: Sequence[Entry], merging: Merging) -> Merging:
    """Add what has to be put right in the store; refuse one that lacks a version."""
    model, entries = store.names.model, merging.entries
    versions = {
        (one.model, one.number): one for name in store.models for one in store.versions(name) if one.ready
    }
    known = ledger_records(here)
    for name, entry in ledger_records(entries).items():
        version, document = versions.get(name), entry.document
        before = known.get(name)
        if (before and before.hash == entry.hash) or document["details"].get(LOST):
            continue
        if version is None or (version.key, version.record) != (document["key"], document["record"]):
            held = "does not hold it" if version is None else "has another record of it"
            raise LedgerError(
                f"nothing was merged: the other ledger registered {name[0]} {name[1]} "
                f"({str(document['details'].get('stage'))[:60]}, key {document['key'][:12]}...), and "
                f"{store.shown} {held}. Bring it: in the other clone `canal export {name[1]} -o other.zip`, "
                "here `canal import other.zip`; or `dvc pull`, then `canal registry sync`. Then merge again"
            )
    wanted = ledger_aliases(entries, model)
    if gone := sorted(n for n in wanted.values() if (model, n) not in versions):
        raise LedgerError(
            f"nothing was merged: by the ledger an alias points to version {gone[0]}, which {store.shown} "
            "does not hold: `canal audit` says more"
        )
    actual = {alias: one.number for one in versions.values() if one.model == model for alias in one.aliases}
    names = (CHAMPION, PREVIOUS, CANDIDATE)
    aliases = {name: wanted.get(name) for name in names if wanted.get(name) != actual.get(name)}
    retired = ledger_retired(entries, model)
    todo = (n for n in sorted(retired) if (model, n) in versions and not versions[model, n].retired)
    return replace(merging, aliases=aliases, retired=tuple(todo))
