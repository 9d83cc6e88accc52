"""Audit of what was erased: by which entry, whether it is really gone, and whether its list was changed.

A version whose files were erased is no damaged one: its two manifests name what it had, and the ledger says
who erased it and when. Everything else of it has to be gone.
"""

from collections.abc import Mapping, Sequence

from canal.config.layout import Layout
from canal.core.errors import LedgerError
from canal.registry.audit.version_files import LEDGER, MANIFESTS, AuditLog, examples, unlisted
from canal.registry.ledger import tombstones
from canal.registry.ledger.joined import ERASE
from canal.registry.ledger.ledger import Entry
from canal.registry.provenance.registered import RegisteredVersion

_CHECK = "erased"


def check_erased(member: RegisteredVersion, erased: Mapping[tuple[str, int], Entry], log: AuditLog) -> None:
    """Check that nothing is left of an erased version but its manifests, and say who erased it."""
    entry = erased.get((member.version.model, member.version.number))
    if entry is None:
        return  # a tag without an entry: the check of tags reports it
    log.counts["erased versions"] += 1
    if left := unlisted(member.folder, set(MANIFESTS)):
        what = f"entry {entry.seq} says that its files were erased, but there are {examples(left)}"
        log.finding(member.name, _CHECK, f"{what}: call canal erase again")
        return
    log.note(member.name, _CHECK, f"its files were {said(entry)}")


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
            LEDGER, _CHECK, f"an erasing {what}: call canal erase again, as it was called ({path.name})"
        )
    for path in done:
        name = f"{folder.name}/{path.name}"
        entry = tombstones.entry_of(path, entries)
        if entry is None:
            what = f"{name} is not what an entry of the ledger names: it was changed or added"
            log.finding(LEDGER, _CHECK, f"{what}; git checkout -- {folder.name}")
            continue
        try:
            back = tombstones.read(path).left(layout.root)
        except LedgerError as error:
            log.finding(LEDGER, _CHECK, str(error))
            continue
        if back:
            shown = examples([one.path for one in back])
            log.finding("workspace", _CHECK, f"{shown}: {said(entry)}, and back: call canal erase again")
    names = {path.name.partition(".")[0] for path in (*begun, *done)}
    for entry in (one for one in entries if one.kind == ERASE):
        if str(entry.document["details"].get("token")) not in names:
            what = f"entry {entry.seq} names a list of what was erased, and {folder.name}/ lacks it"
            log.finding(LEDGER, _CHECK, f"{what}: git checkout -- {folder.name}")
