"""Findings and notes of an audit, and the audit of a version's files against its two manifests.

A finding is a fault, a note is something to know. The manifests are compared with their digests in tags and
ledger; an imported version also with the record, ledger entries and manifest that came along.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import source_from_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from canal.core.digests import file_digest, json_digest
from canal.core.errors import CanalError
from canal.registry.ledger.ledger import Entry, read_entry
from canal.registry.manifest.version_folder import (
    KEY_FILE,
    LOADED_FILE,
    RECORD_FILE,
    Key,
    Record,
    corpus_tables,
    read_key,
    read_record,
    schema_complaints,
)
from canal.registry.provenance.registered import (
    CARRIED,
    CARRIED_LATELY,
    ORIGINS,
    PANEL,
    SPLIT,
    TEACHER,
    VERDICT,
    RegisteredVersion,
)
from canal.registry.store.database import Version
from canal.registry.store.store import Store

LEDGER = "ledger"
"""The subject of a finding about the ledger."""

MANIFESTS = (KEY_FILE, RECORD_FILE)

_LONGEST_NOTE = 2000
_SECONDS = 30
_COMPARE = """
import marshal, resource, sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path
source, content = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
if content[:len(MAGIC_NUMBER)] != MAGIC_NUMBER:
    sys.exit(1)
if sys.platform == "linux":  # forged bytes may ask for a list of billions
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = 1 << 30 if hard == resource.RLIM_INFINITY else min(1 << 30, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
wanted = compile(source.read_bytes(), str(source), "exec", dont_inherit=True, optimize=0)
sys.exit(marshal.loads(content[16:]) != wanted)
"""
"""Compares a file that Python compiled (16 bytes of header, then code) with its source; nothing is run."""


@dataclass(frozen=True)
class Finding:
    """A fault, or, among the notes, something to know.

    Attributes
    ----------
    subject : str
        The version or file concerned, such as ``version 3`` or ``ledger``.
    check : str
        Name of the check.
    what : str
        What was expected and what was found; names the file where there is one.
    """

    subject: str
    check: str
    what: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return asdict(self)


@dataclass
class AuditLog:
    """The findings and notes of checks, and counts of what they checked."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def finding(self, subject: str, check: str, what: str) -> None:
        """Add a finding, once."""
        _once(self.findings, Finding(subject, check, what))

    def note(self, subject: str, check: str, what: str) -> None:
        """Add a note, once."""
        _once(self.notes, Finding(subject, check, what))


def examples(names: list[str], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def version_name(store: Store, model: str, number: int) -> str:
    """Return a version's name in findings; the annotator's model name is left out."""
    return f"version {number}" if model == store.names.model else f"{model} {number}"


def _once(kept: list[Finding], one: Finding) -> None:
    if one not in kept:
        kept.append(one)


def read_manifest_key(
    name: str, folder: Path, version: Version, entry: Entry | None, log: AuditLog
) -> Key | None:
    """Return key.json if it has its registered digest; None, and a finding, otherwise."""
    path = folder / KEY_FILE
    if not _registered(name, path, version.key, _recorded(entry, "key"), log):
        return None
    try:
        key = read_key(folder)
    except CanalError as error:
        log.finding(name, "schema", str(error))
        return None
    broken = schema_complaints("key", key)
    for what in broken:
        log.finding(name, "schema", f"{KEY_FILE} breaks its schema: {what}")
    return None if broken else key


def check_key(member: RegisteredVersion, log: AuditLog) -> None:
    """Check that digests which key.json holds twice agree."""
    key, files = member.key, member.files
    pairs = {
        "request_digest": (key["request_digest"], json_digest(key["request"])),
        "split": (key.get("split"), files.get(SPLIT)) if member.is_annotator else None,
        "verdict": (key.get("verdict"), files.get(VERDICT)) if member.is_annotator else None,
        "teacher": (key.get("teacher"), files.get(TEACHER)) if member.is_annotator else None,
        "panel": (key.get("panel"), files.get(PANEL)) if member.stage == "backbone" else None,
    }
    for name, pair in pairs.items():
        if pair is not None and pair[0] != pair[1]:
            log.finding(
                member.name,
                "key",
                f"{KEY_FILE}: {name} is {_short(pair[0])}, but what it names has {_short(pair[1])}",
            )


def check_files(member: RegisteredVersion, log: AuditLog) -> None:
    """Check every file that key.json names.

    An ancestor that came along with an import has only some files; those that its chain is checked with must
    be among them.
    """
    for name, digest in sorted(member.files.items()) if not member.erased else ():
        actual = member.sum(name)
        if actual is None and name in member.withheld:
            continue
        if actual is None and member.elsewhere:
            if name in (*CARRIED, *corpus_tables(member.key).values()):
                what = f"{name} did not come along: what was learned on it cannot be checked without"
                log.finding(member.name, "files", f"{what}; ask for the bundle again")
            elif name in CARRIED_LATELY:
                what = f"{name} did not come along (an older canal exported it)"
                log.note(member.name, "files", f"{what}: genes without sums are not compared")
            continue
        log.counts["files"] += 1
        if actual != digest:
            log.finding(member.name, "files", _differs(name, actual, digest))


def check_record(
    member: RegisteredVersion, version: Version, entry: Entry | None, log: AuditLog
) -> Record | None:
    """Check record.json, its files, and that there are no others; return it if it is valid."""
    path = member.folder / RECORD_FILE
    if not _registered(member.name, path, version.record, _recorded(entry, "record"), log):
        return None
    try:
        record = read_record(member.folder)
    except CanalError as error:
        log.finding(member.name, "schema", str(error))
        return None
    broken = schema_complaints("record", record)
    for what in broken:
        log.finding(member.name, "schema", f"{RECORD_FILE} breaks its schema: {what}")
    if broken:
        return None
    if record["key"] != member.digest:
        what = f"{RECORD_FILE} is about key {_short(record['key'])}, {KEY_FILE} has {_short(member.digest)}"
        log.finding(member.name, "record", what)
    for name, digest in sorted(record["files"].items()):
        actual = member.sum(name)
        if actual is None and name in member.withheld:
            continue
        log.counts["files"] += 1
        if actual != digest:
            log.finding(member.name, "files", _differs(name, actual, digest))
    listed = {**member.files, **record["files"]}
    for name in unlisted(member.folder, {*listed, *MANIFESTS}):
        if _left_by_loading(member, version, name, listed):
            continue
        log.finding(member.name, "files", f"{name} lies there, but neither key.json nor record.json knows it")
    return record


def _left_by_loading(
    member: RegisteredVersion, version: Version, name: str, listed: Mapping[str, str]
) -> bool:
    """Whether MLflow or Python wrote a file when the version was loaded from its folder.

    MLflow writes which version it loaded, Python caches the compiled code of the version: such a cache must
    be what the code compiles to, since Python would run it instead.
    """
    path = member.folder / name
    if path.is_symlink() or not path.is_file():
        return False
    if name == LOADED_FILE:
        return _names_version(path, version)
    if path.parent.name != "__pycache__":
        return False
    try:
        source = Path(source_from_cache(path))
    except ValueError:
        return False
    code = source.relative_to(member.folder).as_posix()
    return code in listed and member.sum(code) == listed[code] and _compiles_to(source, path)


def _names_version(path: Path, version: Version) -> bool:
    """Whether MLflow's file names this version, or none, as for a logged model."""
    if path.stat().st_size > _LONGEST_NOTE:
        return False
    try:
        note = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError):
        return False
    if not isinstance(note, dict) or note.keys() != {"model_name", "model_version"}:
        return False
    names = (note["model_name"], note["model_version"])
    return names in ((version.model, version.number), (version.model, str(version.number)), (None, None))


def _compiles_to(source: Path, compiled: Path) -> bool:
    """Whether a file holds what this Python compiles a source to; False for a file of another Python.

    A child process reads the file: forged bytes can crash Python.
    """
    command = [sys.executable, "-I", "-S", "-c", _COMPARE, str(source), str(compiled)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def unlisted(folder: Path, known: set[str]) -> list[str]:
    """Return the files (and links) below a folder that are not among the known ones, sorted."""
    actual = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in actual} - known)


def _registered(name: str, path: Path, tag: str, recorded: str | None, log: AuditLog) -> bool:
    """Whether a manifest has the digest in tag or ledger; a difference to either is a finding."""
    if not path.is_file():
        log.finding(name, "files", f"{path.name}: missing ({path})")
        return False
    actual = file_digest(path)
    log.counts["files"] += 1
    names = {"the tag": tag, "the ledger": recorded}
    wrong = {who: digest for who, digest in names.items() if digest is not None and digest != actual}
    if not wrong:
        return True
    registered = examples([f"{who} says {_short(digest)}" for who, digest in wrong.items()])
    log.finding(name, "files", f"{path.name} has sha256 {_short(actual)}, but {registered}")
    return len(wrong) < len([digest for digest in names.values() if digest is not None])


def _recorded(entry: Entry | None, field: str) -> str | None:
    return None if entry is None else str(entry.document[field])


def _differs(name: str, actual: str | None, digest: str) -> str:
    if actual is None:
        return f"{name}: missing"
    return f"{name} has sha256 {_short(actual)} instead of {_short(digest)}"


def _short(digest: object) -> str:
    text = str(digest)
    return f"{text[:12]}..." if len(text) > 12 else text


def check_origin_record(member: RegisteredVersion, record: Record, log: AuditLog) -> None:
    """Check that an imported version has the record and ledger entry of its original registry."""
    about = record.get("imported_from")
    if about is None:
        return
    place = f"{ORIGINS}/{about['record']}"
    folder = member.folder / place
    names = {RECORD_FILE: about["record"], "manifest.json": about["manifest"]}
    for name, digest in names.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            log.finding(member.name, "origin", f"{place}/{name} is not the one that record.json names")
            return
    before = read_record(folder)
    if before["key"] != member.digest:
        log.finding(member.name, "origin", f"{place}/{RECORD_FILE} is about another key")
    path = folder / "ledger.jsonl"
    entries = [read_entry(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
    registered = {
        (one.model, one.version, one.document["key"], one.document["record"])
        for one in entries
        if not isinstance(one, str)
    }
    if (about["model"], about["version"], member.digest, about["record"]) not in registered:
        log.finding(
            member.name, "origin", f"{place}/ledger.jsonl does not say that it was registered as claimed"
        )
    for name, digest in before["files"].items():
        kept = record["files"].get(name)
        # An import makes the pyfunc anew: nothing that runs is taken over.
        of_pyfunc = name.startswith("code/") or "/" not in name
        if kept is not None and kept != digest and not of_pyfunc:
            log.finding(
                member.name, "origin", f"{name} is not the file that it was registered with elsewhere"
            )
