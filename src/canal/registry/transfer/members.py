"""The members of a bundle: a version, its ancestors, and the other lineages that were merged into them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from canal.core.digests import file_digest
from canal.registry.audit.chain import ancestor
from canal.registry.audit.version_files import (
    MANIFESTS,
    AuditLog,
    check_files,
    check_key,
    unlisted,
)
from canal.registry.ledger.ledger import Entry, read_entry
from canal.registry.manifest.version_folder import RECORD_FILE
from canal.registry.provenance.registered import ANCESTORS, ORIGINS, RegisteredVersion
from canal.registry.transfer.bundle import LEDGER, VERSION

REGISTERED = ("register", "rebuild")
"""Kinds of entries of the ledger that name the record of a version."""


def registered_elsewhere(chain: Sequence[RegisteredVersion], keys: Collection[str]) -> list[str]:
    """Return the registrations of members that came along with an imported version of another lineage."""
    came = [one.folder.parent.parent for one in chain if one.elsewhere]
    homes = sorted({home for home in came if home != chain[-1].folder})
    ledgers = (path for home in homes for path in sorted((home / ORIGINS).glob(f"*/{LEDGER}")))
    entries = (read_entry(line) for path in ledgers for line in path.read_bytes().splitlines())
    return [
        one.line
        for one in entries
        if not isinstance(one, str) and one.kind in REGISTERED and one.document["key"] in keys
    ]


def chain_in(
    member: RegisteredVersion, folder: Path, withheld: Collection[str], log: AuditLog
) -> list[RegisteredVersion]:
    """Return the version's ancestors in the bundle, oldest first, and the version.

    ``withheld`` names the files that were left out of the bundle; see `canal.registry.transfer.bundle`.
    """
    chain = [member]
    while (parent := chain[0].parent) is not None:
        if (older := _in_bundle(parent, folder, withheld, log)) is None:
            log.finding(chain[0].name, "chain", f"its parent {parent[:12]}... is not in the bundle")
            break
        chain.insert(0, older)
    return chain


def left_out(place: str, withheld: Collection[str]) -> frozenset[str]:
    """Return which files of one folder in the bundle were left out of it, by their names there."""
    return frozenset(name.removeprefix(f"{place}/") for name in withheld if name.startswith(f"{place}/"))


def _in_bundle(key: str, folder: Path, withheld: Collection[str], log: AuditLog) -> RegisteredVersion | None:
    for place in (f"{ANCESTORS}/{key}", f"{VERSION}/{ANCESTORS}/{key}"):
        if (one := ancestor(folder / place, key, VERSION, log)) is not None:
            one.withheld = left_out(place, withheld)
            return one
    return None


def others_in(
    chain: Sequence[RegisteredVersion], folder: Path, withheld: Collection[str], log: AuditLog
) -> list[RegisteredVersion]:
    """Return the versions in the bundle of other lineages that were merged into members of a chain."""
    found, places = dict[str, RegisteredVersion](), list(chain)
    for member in places:  # which grows
        if (key := member.merged_with) is None or key in found:
            continue
        if (other := _in_bundle(key, folder, withheld, log)) is None:
            log.finding(member.name, "chain", f"its other parent {key[:12]}... is not in the bundle")
            continue
        for one in chain_in(other, folder, withheld, log):
            check_key(one, log)
            check_files(one, log)
            found.setdefault(one.digest, one)
            places.append(one)
    return list(found.values())


def check_ancestors(
    chain: list[RegisteredVersion], folder: Path, entries: list[Entry], log: AuditLog
) -> None:
    """Check that the folder of ancestors holds only files of the chain's members, with their records."""
    known = {f"{member.digest}/{name}" for member in chain for name in (*member.files, *MANIFESTS)}
    for name in unlisted(folder, known):
        what = "it belongs to nothing that the version was learned on"
        log.finding(f"{ANCESTORS}/{ascii(name)}", "files", what)
    registered = {(entry.document["key"], entry.document["record"]) for entry in entries}
    for member in chain[:-1]:
        path = folder / member.digest / RECORD_FILE
        if path.is_file() and (member.digest, file_digest(path)) not in registered:
            log.finding(member.name, "files", f"{RECORD_FILE} is not the one that the ledger's entries name")
