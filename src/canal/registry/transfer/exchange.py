"""`canal export` and `canal import`: move a version, with the proof of its ancestry, to another registry.

Both check the unpacked bundle completely: the version, its ancestors, and its entries of the ledger.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import AuditError, RegistryError
from canal.core.files import read_json
from canal.registry.audit.cells_used import check_cells, declared_exclusions
from canal.registry.audit.chain import VersionReader, check_chain, check_verdict
from canal.registry.audit.kept_cells import check_sums
from canal.registry.audit.ledger_entries import take_snapshot
from canal.registry.audit.merged import check_merged
from canal.registry.audit.opening import Opening
from canal.registry.audit.shown_versions import check_shown, expected_page
from canal.registry.audit.version_files import (
    MANIFESTS,
    AuditLog,
    check_files,
    check_key,
    check_record,
    read_manifest_key,
)
from canal.registry.ledger.joined import replayed
from canal.registry.ledger.ledger import Entry, Sign, plain_name, read_entry
from canal.registry.manifest.version_folder import KEY_FILE, RECORD_FILE, read_record, schema_complaints
from canal.registry.promotion.moves import ledger_of, moving
from canal.registry.promotion.promotion import register_entry
from canal.registry.provenance.registered import (
    ANCESTORS,
    CARRIED,
    CARRIED_LATELY,
    ORIGINS,
    RegisteredVersion,
)
from canal.registry.store.database import Version, require_files
from canal.registry.store.shown import read_shown
from canal.registry.store.store import TAG, Fetch, Store, fresh_copies
from canal.registry.store.tracking import parent_run
from canal.registry.transfer.bundle import (
    LEDGER,
    MANIFEST,
    VERSION,
    About,
    Manifest,
    holds_cells,
    unpacked,
    write_bundle,
)
from canal.registry.transfer.members import (
    REGISTERED,
    chain_in,
    check_ancestors,
    left_out,
    others_in,
    registered_elsewhere,
)
from canal.registry.versions.publish import Publication, publish, published, ready_version

_FACTS = ("host", "platform", "cpu", "user", "time", "git_commit", "dirty")
"""Fields of the record that an import keeps: how the version was made."""

_EVALUATION, _PREDICTIONS = "metrics/evaluation.json", "metrics/predictions.csv"
_KINDS = {".json", ".csv", ".safetensors", ".h5ad"}
"""Suffixes of a model's files: none of them runs code when it is read."""


@dataclass(frozen=True)
class Exported:
    """A written bundle.

    Attributes
    ----------
    holds : dict
        How many cells it gives away: with their expression (``bank``, ``probe``), and ``named`` ones.
    """

    path: Path
    files: int
    size: int
    sha256: str
    holds: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        about = {"files": self.files, "size": self.size, "sha256": self.sha256, "holds": self.holds}
        return {"path": str(self.path), **about}


def export_bundle(
    store: Store, wanted: str, path: Path, overwrite: bool = False, without_cells: bool = False
) -> Exported:
    """Write a version, all its artifacts and the proof of its ancestry into one ZIP file.

    ``without_cells`` leaves out the example bank, the validation cells, all names of cells and the sums of
    single batches: such a bundle labels cells and proves its files, but nothing can be learned on it.

    Raises
    ------
    RegistryError
        If there is no such version, or the file exists already.
    AuditError
        If the audit of the version has findings; names them.
    """
    if path.exists() and not overwrite:
        raise RegistryError(f"{path} is there already; --overwrite replaces it")
    version = store.version(wanted)
    require_files(version)
    with fresh_copies(store) as fetch:
        files = _files(store, version, fetch)
        about = About(version.model, version.number, version.key, version.record)
        withheld = [name for name in files if without_cells and holds_cells(name)]
        kept = {name: one for name, one in files.items() if name not in withheld}
        try:
            write_bundle(path, about, kept, withheld=withheld)
            with unpacked(path) as (folder, manifest):
                holds = held_cells(prove(folder, manifest))
        except OSError as error:
            raise RegistryError(f"{path} could not be written: {error.strerror or error}") from error
    return Exported(path, len(kept) + 1, path.stat().st_size, file_digest(path), holds)


def held_cells(chain: Sequence[RegisteredVersion]) -> dict[str, int]:
    """Return how many cells a bundle holds with their expression, and how many by name; see `Exported`."""
    bank, probe = chain[-1].bank, chain[-1].probe
    named = {cell for one in chain if one.rows is not None for cell in one.rows}
    stored = {
        "bank": 0 if bank is None else len(bank.cells),
        "probe": 0 if probe is None else len(probe.cells),
    }
    return {**stored, "named": len(named)}


def _files(store: Store, version: Version, fetch: Fetch) -> dict[str, Path | bytes]:
    """Return the files of a version's bundle, by name, after checking all of them."""
    log, snapshot = AuditLog(), take_snapshot(store, ledger_of(store))
    reader = VersionReader(store, snapshot.ready, snapshot.records, log, fetch)
    member = reader.member(version)
    record = None if member is None else reader.record(member)
    if member is not None and record is not None:
        check_shown(read_shown(store), member, record, expected_page(member, record), log)
    chain = [] if member is None else reader.chain(member)
    if member is not None:
        chain = [*(one for one in reader.others(chain) if one not in chain), *chain]
        check_merged(chain, chain, log)
    for one in chain:
        check_files(one, log)
    if log.findings or member is None or record is None:
        raise AuditError(
            f"version {version.number} was not exported, for its audit has findings:\n  "
            + "\n  ".join(str(one) for one in log.findings)
        )
    files: dict[str, Path | bytes] = {
        f"{VERSION}/{name}": member.folder / name for name in (*member.files, *record["files"], *MANIFESTS)
    }
    for one in chain[:-1]:
        if one.folder.parent != member.folder / ANCESTORS:
            for name in (*MANIFESTS, *CARRIED, *CARRIED_LATELY):  # the files that its chain is checked with
                if (one.folder / name).is_file():
                    files[f"{ANCESTORS}/{one.digest}/{name}"] = one.folder / name
    keys = {one.digest for one in chain}
    lines = [
        entry.line
        for entry in snapshot.entries
        if (
            (entry.model, entry.version) == (version.model, version.number)
            or (entry.kind in REGISTERED and entry.document["key"] in keys)
        )
        # what a merge appended of another store's same version is not about this one
        and not (
            replayed(entry)
            and entry.kind in REGISTERED
            and snapshot.records.get((entry.model, entry.version)) is not entry
        )
    ]
    files[LEDGER] = "".join([*registered_elsewhere(chain, keys), *lines]).encode()
    return files


@dataclass(frozen=True)
class ImportedVersion:
    """An imported version; ``made`` says whether the import registered it."""

    version: Version
    made: bool
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        one = self.version
        named = {"model": one.model, "version": one.number, "stage": one.stage, "key": one.key}
        return {**named, "made": self.made, "notes": list(self.notes)}


def import_bundle(store: Store, path: Path, sign: Sign | None = None) -> ImportedVersion:
    """Register the version in a bundle, unless it is registered; nothing is written before all checks pass.

    ``sign`` signs the new entry of the ledger.

    No code is taken from the bundle: the pyfunc is made by this canal, and HTML pages are left out. The
    version keeps its ancestors' keys, so that it can be audited where they are not registered.

    Raises
    ------
    AuditError
        If the file is no bundle, or a check of it fails.
    RegistryError
        If the version was erased here, a disk is full, or the store refuses.
    """
    try:
        with unpacked(path) as (folder, manifest):
            if manifest.withheld:
                raise AuditError(
                    f"{path} was written by `canal export --without-cells`: nothing can be learned on it, so "
                    "it is not registered. `canal annotate --model` labels with it; `canal models add` keeps "
                    "it for that"
                )
            chain = prove(folder, manifest)
            version, made = _registered(store, folder, manifest, chain, sign)
    except OSError as error:
        raise RegistryError(
            f"{path} could not be registered: {error}; no incomplete version is visible, import it again"
        ) from error
    return ImportedVersion(version, made, tuple(_notes(store, version, chain)) if made else ())


def _registered(
    store: Store, folder: Path, manifest: Manifest, chain: Sequence[RegisteredVersion], sign: Sign | None
) -> tuple[Version, bool]:
    """Return the version of a checked bundle, and whether it was registered now."""
    with moving(store) as ledger:
        version = published(store, store.names.model, manifest.key)
        made = version is None
        if version is not None:
            require_files(version)  # erased is erased: its bytes do not come back with a bundle
        else:
            version = publish(store, _publication(store, folder, manifest, chain))
        register_entry(store, ledger, version, sign, by="canal import")
    return store.version(str(version.number)), made


def _publication(
    store: Store, folder: Path, manifest: Manifest, chain: Sequence[RegisteredVersion]
) -> Publication:
    """Return the content of the new version: the model, its metrics and figures, its ancestors and origin."""
    source, member = folder / VERSION, chain[-1]
    record, parent = read_record(source), member.parent
    model = folder / "model"
    for name in (*member.files, KEY_FILE):
        _place(source / name, model / name)
    origin = folder / "origin"
    for name in (f"{VERSION}/{RECORD_FILE}", LEDGER):
        _place(folder / name, origin / Path(name).name)
    (origin / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    extras = {
        name: source / name
        for name in record["files"]
        if name.startswith(("metrics/", f"{ORIGINS}/", f"{ANCESTORS}/")) or Path(name).suffix == ".png"
    }
    extras |= {ANCESTORS: folder / ANCESTORS, f"{ORIGINS}/{manifest.record}": origin}
    about = {
        "model": manifest.model,
        "version": manifest.version,
        "run": record["run"],
        "record": manifest.record,
        "manifest": file_digest(origin / MANIFEST),
    }
    return Publication(
        model=store.names.model,
        folder=model,
        run_id=parent_run(store, f"import-{member.stage}", manifest.key),
        parent=None if parent is None else ready_version(store, parent),
        extras=extras,
        pyfunc=True,
        facts={**{name: record[name] for name in _FACTS if name in record}, "imported_from": about},
        tags={f"{TAG}imported_from": f"{manifest.model} {manifest.version}, manifest {about['manifest']}"},
    )


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _notes(store: Store, version: Version, chain: Sequence[RegisteredVersion]) -> Iterator[str]:
    """Yield notes about an imported version."""
    strangers = [member.stage for member in chain[:-1] if ready_version(store, member.digest) is None]
    if strangers:
        yield (
            f"it was learned on {', '.join(strangers)}, not registered here: their keys travel with it, so "
            "the audit proves its chain, but cannot look at their data"
        )
    yield (
        f"`canal promote {version.number}` judges it like any other; stages of the champion that it was not "
        "measured on count as not measured unless their cells are here"
    )


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
    check_record(member, version, entry, log)
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
    check_ancestors(chain, folder / ANCESTORS, entries, log)
    return chain


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
    path = member.folder / _PREDICTIONS
    header = path.open(encoding="utf-8").readline().strip().split(",") if path.is_file() else []
    if missing := sorted({"cell_id", "stage", "truth", "predicted"} - set(header)):
        log.finding(member.name, "schema", f"{_PREDICTIONS} lacks {', '.join(missing)}")
