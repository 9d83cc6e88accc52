"""Whether an unpacked parcel holds what it claims: the version, its ancestors, and the ledger's word."""

from pathlib import Path

from canal.core.digests import file_digest
from canal.core.errors import AuditError, RegistryError
from canal.core.files import read_json
from canal.registry import words
from canal.registry.bundle import RECORD_FILE
from canal.registry.checks.cells_used import check_cells
from canal.registry.checks.chain import check_chain, check_verdict
from canal.registry.checks.exclusion import declared_in
from canal.registry.checks.family import ancestor
from canal.registry.checks.finding import Found
from canal.registry.checks.member import ANCESTORS, Member
from canal.registry.checks.version_files import (
    MANIFESTS,
    check_files,
    check_key,
    check_record,
    read_manifest_key,
    unlisted,
)
from canal.registry.checks.version_sums import check_sums
from canal.registry.key import KEY_FILE
from canal.registry.ledger import Entry, read_entry
from canal.registry.opening import Opening
from canal.registry.parcel.manifest import LEDGER, VERSION, Manifest
from canal.registry.schema import schema_complaints
from canal.registry.store import READY, Version

_EVALUATION, _PREDICTIONS = "metrics/evaluation.json", "metrics/predictions.csv"
_REGISTERED = ("register", "rebuild")
_KINDS = {".json", ".csv", ".safetensors", ".h5ad"}
"""What a model may consist of: nothing that runs when it is read."""


def prove(folder: Path, manifest: Manifest) -> list[Member]:
    """Return the chain of an unpacked parcel, oldest first, if everything about it holds.

    Raises
    ------
    AuditError
        Naming everything that does not hold.
    """
    found = Found()
    try:
        chain = _prove(folder, manifest, found)
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError) as error:
        found.wrong(VERSION, "schema", f"a document is not as canal writes it ({error!r})")
        chain = []
    _refuse(found)
    return chain


def _prove(folder: Path, manifest: Manifest, found: Found) -> list[Member]:
    version, entries = _as_version(manifest), _entries(folder / LEDGER, found)
    entry = _registration(entries, manifest, found)
    key = read_manifest_key(VERSION, folder / VERSION, version, entry, found)
    if key is None:
        return []
    member = Member(VERSION, folder / VERSION, key, file_digest(folder / VERSION / KEY_FILE), version)
    check_record(member, version, entry, found)
    chain = _chain(member, folder, found)
    for one in chain:
        check_key(one, found)
        check_files(one, found)
        _check_kinds(one, found)
    Opening([member], cells=True).start().tell(found)
    if found.findings:
        return chain  # what its own files are not good for is not read any further
    check_verdict(chain, found)
    check_chain(chain, found)
    check_cells(chain, found)
    check_sums(chain, found)
    _ = declared_in(chain), key["request"]["parent"]["stage"]  # what commands will have to read
    _check_answers(member, found)
    _check_ancestors(chain, folder / ANCESTORS, entries, found)
    return chain


def _refuse(found: Found) -> None:
    if found.findings:
        shown = "\n  ".join(str(one) for one in found.findings[:20])
        raise AuditError(
            f"the parcel does not prove what it claims ({len(found.findings)} findings):\n  {shown}\n"
            "Nothing was registered; ask for it again, and for the sha256 by another way"
        )


def _as_version(manifest: Manifest) -> Version:
    return Version(
        model=manifest.model,
        number=manifest.version,
        stage="",
        branch=0,
        key=manifest.key,
        request="",
        record=manifest.record,
        parent="",
        status=READY,
        aliases=(),
        run_id="",
        source="",
        created=0,
    )


def _entries(path: Path, found: Found) -> list[Entry]:
    """Return the ledger's entries that travel with the version; each proves itself, not the chain."""
    entries = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        entry = read_entry(line)
        if isinstance(entry, str):
            found.wrong(LEDGER, "ledger", f"line {number}: {entry}")
        elif entry.kind in _REGISTERED:
            entries.append(entry)
    return entries


def _registration(entries: list[Entry], manifest: Manifest, found: Found) -> Entry | None:
    """Return the ledger's last word on the version's manifests."""
    named = (manifest.model, manifest.version)
    said = [entry for entry in entries if (entry.model, entry.version) == named]
    if not said:
        found.wrong(LEDGER, "ledger", "no entry says that the version was registered")
    return said[-1] if said else None


def _chain(member: Member, folder: Path, found: Found) -> list[Member]:
    """Return the ancestors that travel with the version, and the version."""
    chain = [member]
    while (parent := chain[0].parent) is not None:
        places = (folder / ANCESTORS / parent, folder / VERSION / ANCESTORS / parent)
        older = next((one for place in places if (one := ancestor(place, parent, VERSION, found))), None)
        if older is None:
            found.wrong(chain[0].name, "chain", f"its parent {parent[:12]}... is not in the parcel")
            break
        chain.insert(0, older)
    return chain


def _check_kinds(member: Member, found: Found) -> None:
    other = sorted(name for name in member.files if Path(name).suffix not in _KINDS)
    for name in other:
        found.wrong(
            member.name, "files", f"{ascii(name)} is no file of a model ({', '.join(sorted(_KINDS))})"
        )


def _check_answers(member: Member, found: Found) -> None:
    """Check what every command reads of a version: its labels, which people see, and its measures."""
    try:
        for label in member.labels or ():
            words.name(label, f"the label {ascii(label[:60])}")
    except RegistryError as error:
        found.wrong(member.name, "labels", str(error))
    path = member.folder / _EVALUATION
    document = read_json(path) if path.is_file() else None
    broken = schema_complaints("evaluation", document)
    for what in broken:
        found.wrong(member.name, "schema", f"{_EVALUATION}: {what}")
    if (
        document is not None
        and not broken
        and (document["labels"] != member.labels or member.stage not in document["row"])
    ):
        found.wrong(
            member.name, "labels", f"{_EVALUATION} is not about the labels and the stage of the model"
        )
    path = member.folder / _PREDICTIONS
    header = path.open(encoding="utf-8").readline().strip().split(",") if path.is_file() else []
    if missing := sorted({"cell_id", "stage", "truth", "predicted"} - set(header)):
        found.wrong(member.name, "schema", f"{_PREDICTIONS} lacks {', '.join(missing)}")


def _check_ancestors(chain: list[Member], folder: Path, entries: list[Entry], found: Found) -> None:
    """Check that nothing lies among the ancestors but files of the chain's members, and records of theirs."""
    known = {f"{member.digest}/{name}" for member in chain for name in (*member.files, *MANIFESTS)}
    for name in unlisted(folder, known):
        what = "it belongs to nothing that the version was learned on"
        found.wrong(f"{ANCESTORS}/{ascii(name)}", "files", what)
    registered = {(entry.document["key"], entry.document["record"]) for entry in entries}
    for member in chain[:-1]:
        path = folder / member.digest / RECORD_FILE
        if path.is_file() and (member.digest, file_digest(path)) not in registered:
            found.wrong(member.name, "files", f"{RECORD_FILE} is not the one that the ledger's entries name")
