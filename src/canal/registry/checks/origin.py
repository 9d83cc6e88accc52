"""An imported version against what came with it: its record, the ledger's word on it, and its manifest."""

from canal.core.digests import file_digest
from canal.registry.bundle import RECORD_FILE, Record, read_record
from canal.registry.checks.finding import Found
from canal.registry.checks.member import ORIGINS, Member
from canal.registry.ledger import read_entry


def check_origin_record(member: Member, record: Record, found: Found) -> None:
    """Check that an imported version is the one that was registered where it was learned."""
    about = record.get("imported_from")
    if about is None:
        return
    place = f"{ORIGINS}/{about['record']}"
    folder = member.folder / place
    names = {RECORD_FILE: about["record"], "manifest.json": about["manifest"]}
    for name, digest in names.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            found.wrong(member.name, "origin", f"{place}/{name} is not the one that record.json names")
            return
    before = read_record(folder)
    if before["key"] != member.digest:
        found.wrong(member.name, "origin", f"{place}/{RECORD_FILE} is about another key")
    path = folder / "ledger.jsonl"
    entries = [read_entry(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
    said = {
        (one.model, one.version, one.document["key"], one.document["record"])
        for one in entries
        if not isinstance(one, str)
    }
    if (about["model"], about["version"], member.digest, about["record"]) not in said:
        found.wrong(
            member.name, "origin", f"{place}/ledger.jsonl does not say that it was registered as claimed"
        )
    for name, digest in before["files"].items():
        kept = record["files"].get(name)
        if kept is not None and kept != digest and not _made_here(name):
            found.wrong(
                member.name, "origin", f"{name} is not the file that it was registered with elsewhere"
            )


def _made_here(name: str) -> bool:
    """Whether a file belongs to the pyfunc, which an import makes anew: nothing that runs is taken over."""
    return name.startswith("code/") or "/" not in name
