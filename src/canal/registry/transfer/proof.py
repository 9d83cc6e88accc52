"""What a bundle proves: the version in it, its ancestors, merged lineages and entries of the ledger, checked.

A bundle that was made without cells names the files that were left out: those are passed over, all else is
checked as in any other.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.errors import AuditError, RegistryError
from canal.core.files import read_json, scratch_folder
from canal.core.progress import doing
from canal.registry.audit.cells_used import check_cells, declared_exclusions
from canal.registry.audit.chain import ancestor, check_chain, check_verdict
from canal.registry.audit.kept_cells import check_sums
from canal.registry.audit.merged import check_merged
from canal.registry.audit.opening import Opening
from canal.registry.audit.version_files import (
    MANIFESTS,
    AuditLog,
    check_files,
    check_key,
    check_record,
    examples,
    read_manifest_key,
    unlisted,
)
from canal.registry.ledger.ledger import Entry, plain_name, read_entry
from canal.registry.manifest.version_folder import KEY_FILE, RECORD_FILE, Record, schema_complaints
from canal.registry.provenance.registered import ANCESTORS, ORIGINS, RegisteredVersion
from canal.registry.store.database import Version
from canal.registry.transfer.bundle import (
    LEDGER,
    MANIFEST,
    SOURCES,
    VERSION,
    Content,
    Manifest,
    check_names,
    parse_manifest,
    unpacked,
)

REGISTERED = ("register", "rebuild")
"""Kinds of entries of the ledger that name the record of a version."""

_EVALUATION, _PREDICTIONS = "metrics/evaluation.json", "metrics/predictions.csv"
_KINDS = {".json", ".csv", ".safetensors", ".h5ad"}
"""Suffixes of a model's files: none of them runs code when it is read."""


@contextmanager
def proven_bundle(path: Path) -> Iterator[tuple[Path, Manifest, list[RegisteredVersion]]]:
    """Give the folder of a bundle after everything in it was proven, its manifest, and the chain.

    ``path`` is a file of `canal export`, or a folder with its content.

    Raises
    ------
    AuditError
        If it is no bundle, or a check of it fails.
    """
    if path.is_dir():
        with scratch_folder("bundle") as scratch:  # a copy: nobody changes it between proof and use
            folder = shutil.copytree(path, scratch / "bundle", symlinks=True)
            manifest = checked_folder(folder)
            yield folder, manifest, prove(folder, manifest)
        return
    with unpacked(path) as (folder, manifest):
        yield folder, manifest, prove(folder, manifest)


def bundle_digest(path: Path) -> str:
    """Return the SHA-256 of a bundle's file; of its folder that of the manifest, which names all else."""
    return file_digest(path / MANIFEST if path.is_dir() else path)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in an unpacked bundle."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AuditError(f"{path} not found: the folder is no unpacked file of `canal export`")
    return parse_manifest(path.read_bytes())


def checked_folder(folder: Path) -> Manifest:
    """Return the manifest of an unpacked bundle after comparing all files with it.

    Raises
    ------
    AuditError
        If a file is missing, was changed or added, or is a link.
    """
    manifest = read_manifest(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    check_names(found)
    wrong = [name for name, path in found.items() if path.is_symlink() or not path.is_file()]
    wrong += sorted(found.keys() - manifest.files.keys() - {MANIFEST, *wrong})
    if wrong:
        raise AuditError(f"{folder} holds what its {MANIFEST} does not name: {examples(wrong)}")
    changed = [
        name
        for name, content in sorted(manifest.files.items())
        if name not in found or Content.of(found[name]) != content
    ]
    if changed:
        raise AuditError(
            f"{folder} does not hold what its {MANIFEST} says; missing or changed are {examples(changed)}: "
            "ask for the bundle again"
        )
    return manifest


@doing("proving what the bundle claims")
def prove(folder: Path, manifest: Manifest) -> list[RegisteredVersion]:
    """Return the chain of an unpacked bundle, oldest first, if all checks pass.

    Raises
    ------
    AuditError
        Naming every finding.
    """
    log = AuditLog()
    try:
        chain = _prove(folder, manifest, log)
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError) as error:
        log.finding(VERSION, "schema", f"a document is not as canal writes it ({error!r})")
        chain = []
    if log.findings:
        shown = "\n  ".join(str(one) for one in log.findings[:20])
        raise AuditError(
            f"the bundle does not prove what it claims ({len(log.findings)} findings):\n  {shown}\n"
            "Nothing was registered; ask for it again, and for the sha256 by another way"
        )
    return chain


def held_cells(chain: Sequence[RegisteredVersion]) -> dict[str, int]:
    """Return how many cells a bundle holds with their expression (bank, probe), and how many by name."""
    bank, probe = chain[-1].bank, chain[-1].probe
    named = {cell for one in chain if one.rows is not None for cell in one.rows}
    stored = {
        "bank": 0 if bank is None else len(bank.cells),
        "probe": 0 if probe is None else len(probe.cells),
    }
    return {**stored, "named": len(named)}


def _prove(folder: Path, manifest: Manifest, log: AuditLog) -> list[RegisteredVersion]:
    version = Version.unregistered(manifest.model, manifest.version, manifest.key, manifest.record)
    entries = _entries(folder / LEDGER, log)
    named = (manifest.model, manifest.version)
    entry = next((one for one in reversed(entries) if (one.model, one.version) == named), None)
    if entry is None:
        log.finding(LEDGER, "ledger", "no entry says that the version was registered")
    key = read_manifest_key(VERSION, folder / VERSION, version, entry, log)
    if key is None:
        return []
    member = RegisteredVersion(
        VERSION, folder / VERSION, key, file_digest(folder / VERSION / KEY_FILE), version
    )
    member.withheld = left_out(VERSION, manifest.withheld)
    record = check_record(member, version, entry, log)
    chain = chain_in(member, folder, manifest.withheld, log)
    for one in chain:
        check_key(one, log)
        check_files(one, log)
        for name in sorted(name for name in one.files if Path(name).suffix not in _KINDS):
            what = f"{ascii(name)} is no file of a model ({', '.join(sorted(_KINDS))})"
            log.finding(one.name, "files", what)
    Opening([member], cells=True).start().report(log)
    if log.findings:
        return chain  # faulty files are not read any further
    check_verdict(chain, log)
    check_chain(chain, log)
    check_cells(chain, log)
    check_sums(chain, log)
    others = others_in(chain, folder, manifest.withheld, log)
    check_merged(chain, others, log)
    chain = [*(one for one in others if one.digest not in {own.digest for own in chain}), *chain]
    _ = declared_exclusions(chain), key["request"]["parent"]["stage"]  # which commands will read
    _check_answers(member, log)
    _check_withheld(chain, record or {}, manifest, log)
    _check_sources(folder / SOURCES, log)
    check_ancestors(chain, folder / ANCESTORS, entries, log)
    return chain


def _check_withheld(
    chain: Sequence[RegisteredVersion], record: Record, manifest: Manifest, log: AuditLog
) -> None:
    """Check that every file that was left out is one that the documents of its version name."""
    known = {VERSION: {*chain[-1].files, *record.get("files", ())}}
    places = {one.folder: one for one in chain[:-1]}
    for folder, one in places.items():
        known[f"{ANCESTORS}/{folder.name}"] = set(one.files)
    strange = [
        name
        for name in manifest.withheld
        if not any(name.removeprefix(f"{place}/") in names for place, names in known.items())
    ]
    if strange:
        log.finding(MANIFEST, "files", f"it withholds what no version names: {examples(strange)}")


def _check_sources(path: Path, log: AuditLog) -> None:
    """Check the licences and citations of the data, if the bundle tells them: texts, by source."""
    if not path.is_file():
        return
    try:
        document = read_json(path)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not all(
        isinstance(one, dict) and {type(one.get(name)) for name in ("licence", "citation")} == {str}
        for one in document.values()
    ):
        log.finding(path.name, "schema", "it holds no licence and citation, in text, of each source")


def _entries(path: Path, log: AuditLog) -> list[Entry]:
    """Return the registrations in the bundle's ledger; each is checked by itself, without the chain."""
    entries = []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        entry = read_entry(line)
        if isinstance(entry, str):
            log.finding(LEDGER, "ledger", f"line {number}: {entry}")
        elif entry.kind in REGISTERED:
            entries.append(entry)
    return entries


def _check_answers(member: RegisteredVersion, log: AuditLog) -> None:
    """Check the documents that every command reads: labels, evaluation and predictions."""
    try:
        for label in member.labels or ():
            plain_name(label, f"the label {ascii(label[:60])}")
    except RegistryError as error:
        log.finding(member.name, "labels", str(error))
    path = member.folder / _EVALUATION
    document = read_json(path) if path.is_file() else None
    broken = schema_complaints("evaluation", document)
    for what in broken:
        log.finding(member.name, "schema", f"{_EVALUATION}: {what}")
    if (
        document is not None
        and not broken
        and (document["labels"] != member.labels or member.stage not in document["row"])
    ):
        log.finding(
            member.name, "labels", f"{_EVALUATION} is not about the labels and the stage of the model"
        )
    if _PREDICTIONS in member.withheld:
        return
    path = member.folder / _PREDICTIONS
    header = path.open(encoding="utf-8").readline().strip().split(",") if path.is_file() else []
    if missing := sorted({"cell_id", "stage", "truth", "predicted"} - set(header)):
        log.finding(member.name, "schema", f"{_PREDICTIONS} lacks {', '.join(missing)}")


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
