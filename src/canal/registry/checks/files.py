"""Every file of a version against its two manifests, and the manifests against tags and ledger."""

from pathlib import Path

from canal.digests import file_digest, json_digest
from canal.errors import CanalError
from canal.registry.bundle import RECORD_FILE, Record, read_record
from canal.registry.checks.finding import Found, examples
from canal.registry.checks.member import PANEL, SPLIT, TEACHER, VERDICT, Member
from canal.registry.key import KEY_FILE, Key, read_key
from canal.registry.ledger import Entry
from canal.registry.schema import schema_complaints
from canal.registry.store import Version

MANIFESTS = (KEY_FILE, RECORD_FILE)


def read_manifest_key(
    name: str, folder: Path, version: Version, entry: Entry | None, found: Found
) -> Key | None:
    """Return key.json if it is the one that was registered; None, and a finding, where it is not."""
    path = folder / KEY_FILE
    if not _registered(name, path, version.key, _said(entry, "key"), found):
        return None
    try:
        key = read_key(folder)
    except CanalError as error:
        found.wrong(name, "schema", str(error))
        return None
    broken = schema_complaints("key", key)
    for what in broken:
        found.wrong(name, "schema", f"{KEY_FILE} breaks its schema: {what}")
    return None if broken else key


def check_key(member: Member, found: Found) -> None:
    """Check what key.json says of itself: the same digest stands in several places."""
    key, files = member.key, member.files
    pairs = {
        "request_digest": (key["request_digest"], json_digest(key["request"])),
        "split": (key.get("split"), files.get(SPLIT)) if member.taught else None,
        "verdict": (key.get("verdict"), files.get(VERDICT)) if member.taught else None,
        "teacher": (key.get("teacher"), files.get(TEACHER)) if member.taught else None,
        "panel": (key.get("panel"), files.get(PANEL)) if member.stage == "backbone" else None,
    }
    for field, pair in pairs.items():
        if pair is not None and pair[0] != pair[1]:
            found.wrong(
                member.name,
                "key",
                f"{KEY_FILE}: {field} is {_short(pair[0])}, but what it names has {_short(pair[1])}",
            )


def check_files(member: Member, found: Found) -> None:
    """Check every file that key.json names; of an imported ancestor only those that came with it."""
    for name, digest in sorted(member.files.items()):
        there = member.sum(name)
        if there is None and member.version is None:
            continue
        found.counts["files"] += 1
        if there != digest:
            found.wrong(member.name, "files", _differs(name, there, digest))


def check_record(member: Member, version: Version, entry: Entry | None, found: Found) -> Record | None:
    """Check record.json, all files that it names, and that nothing else lies there; return it if it holds."""
    path = member.folder / RECORD_FILE
    if not _registered(member.name, path, version.record, _said(entry, "record"), found):
        return None
    try:
        record = read_record(member.folder)
    except CanalError as error:
        found.wrong(member.name, "schema", str(error))
        return None
    broken = schema_complaints("record", record)
    for what in broken:
        found.wrong(member.name, "schema", f"{RECORD_FILE} breaks its schema: {what}")
    if broken:
        return None
    if record["key"] != member.digest:
        what = f"{RECORD_FILE} is about key {_short(record['key'])}, {KEY_FILE} has {_short(member.digest)}"
        found.wrong(member.name, "record", what)
    for name, digest in sorted(record["files"].items()):
        found.counts["files"] += 1
        if (there := member.sum(name)) != digest:
            found.wrong(member.name, "files", _differs(name, there, digest))
    for name in unlisted(member.folder, {*member.files, *record["files"], *MANIFESTS}):
        found.wrong(member.name, "files", f"{name} lies there, but neither key.json nor record.json knows it")
    return record


def check_tags(member: Member, version: Version, record: Record, found: Found) -> None:
    """Check what the version's tags say against its manifests; every command believes the tags."""
    key = member.key
    pairs = {
        "stage": (version.stage, key["stage"]),
        "branch": (version.branch, key["branch"]),
        "request": (version.request, key["request_digest"]),
        "git_commit": (version.commit, record["git_commit"] or "") if version.commit else None,
        "dirty": (version.dirty, record["dirty"]) if version.commit else None,
        "parent": (version.parent, str(record["parent"]["version"]) if record["parent"] else ""),
        "imported_from": (bool(version.imported), "imported_from" in record),
    }
    for name, pair in pairs.items():
        if pair is not None and pair[0] != pair[1]:
            what = f"the tag canal.{name} says {pair[0]!r}, key.json and record.json say {pair[1]!r}"
            found.wrong(member.name, "tags", what)


def unlisted(folder: Path, known: set[str]) -> list[str]:
    """Return the files (and links) below a folder that are not among the known ones, sorted."""
    there = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in there} - known)


def _registered(name: str, path: Path, tag: str, said: str | None, found: Found) -> bool:
    """Whether a manifest is the one that tag or ledger name; says so where one of them does not."""
    if not path.is_file():
        found.wrong(name, "files", f"{path.name}: missing ({path})")
        return False
    there = file_digest(path)
    found.counts["files"] += 1
    names = {"the tag": tag, "the ledger": said}
    wrong = {who: digest for who, digest in names.items() if digest is not None and digest != there}
    if not wrong:
        return True
    registered = examples([f"{who} says {_short(digest)}" for who, digest in wrong.items()])
    found.wrong(name, "files", f"{path.name} has sha256 {_short(there)}, but {registered}")
    return len(wrong) < len([digest for digest in names.values() if digest is not None])


def _said(entry: Entry | None, field: str) -> str | None:
    return None if entry is None else str(entry.document[field])


def _differs(name: str, there: str | None, digest: str) -> str:
    if there is None:
        return f"{name}: missing"
    return f"{name} has sha256 {_short(there)} instead of {_short(digest)}"


def _short(digest: object) -> str:
    text = str(digest)
    return f"{text[:12]}..." if len(text) > 12 else text
