"""`canal export` and `canal import`: move a version, with the proof of its ancestry, to another registry.

Both check the unpacked bundle completely: the version, its ancestors, and its entries of the ledger.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import AuditError, RegistryError
from canal.core.files import new_file, read_json
from canal.core.progress import size
from canal.registry.audit.chain import VersionReader
from canal.registry.audit.ledger_entries import take_snapshot
from canal.registry.audit.merged import check_merged
from canal.registry.audit.shown_versions import check_shown, expected_page
from canal.registry.audit.version_files import MANIFESTS, AuditLog, check_files
from canal.registry.ledger.joined import replayed
from canal.registry.ledger.ledger import Sign
from canal.registry.manifest.card import README, Card, Declared, training_data
from canal.registry.manifest.version_folder import (
    EVALUATION,
    KEY_FILE,
    RECORD_FILE,
    corpus_tables,
    read_record,
)
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
    SOURCES,
    VERSION,
    About,
    Manifest,
    holds_cells,
    unpacked,
    write_bundle,
)
from canal.registry.transfer.proof import REGISTERED, held_cells, prove, proven_bundle, registered_elsewhere
from canal.registry.versions.publish import Publication, publish, published, ready_version

_FACTS = ("host", "platform", "cpu", "user", "time", "git_commit", "dirty")
"""Fields of the record that an import keeps: how the version was made."""


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


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is written.

    Attributes
    ----------
    overwrite : bool
        Whether an existing file may be replaced.
    without_cells : bool
        Whether the example bank, the validation cells, all names of cells and the sums of single batches are
        left out: such a bundle labels cells and proves its files, but nothing can be learned on it.
    sources : dict
        What is said of where the cells come from: by source, licence and citation.
    notice : callable
        Receives progress messages.
    """

    overwrite: bool = False
    without_cells: bool = False
    sources: Mapping[str, Any] = field(default_factory=dict)
    notice: Callable[[str], None] = lambda message: None


def export_bundle(store: Store, wanted: str, path: Path, options: ExportOptions | None = None) -> Exported:
    """Write a version, all its artifacts and the proof of its ancestry into one ZIP file.

    Raises
    ------
    RegistryError
        If there is no such version, or the file exists already.
    AuditError
        If the audit of the version has findings; names them.
    """
    options = options or ExportOptions()
    if path.exists() and not options.overwrite:
        raise RegistryError(f"{path} is there already; --overwrite replaces it")
    version = store.version(wanted)
    require_files(version)
    options.notice(f"checking the files of version {version.number} ({version.stage}) and of its ancestors")
    with fresh_copies(store) as fetch:
        files, chain = _files(store, version, fetch)
        about = About(version.model, version.number, version.key, version.record)
        withheld = [name for name in files if options.without_cells and holds_cells(name)]
        kept = {name: one for name, one in files.items() if name not in withheld}
        if options.sources:
            kept[SOURCES] = json.dumps(options.sources, sort_keys=True, indent=1).encode()
        kept[README] = _card(version, chain, options.sources).markdown().encode()
        try:
            with new_file(path) as new:  # only a bundle that proves what it claims takes its name
                options.notice(f"writing {len(kept) + 1} files")
                write_bundle(new, about, kept, withheld=withheld)
                options.notice(f"proving what was written, {size(new.stat().st_size)}")
                with proven_bundle(new) as (_, _, chain):
                    holds = held_cells(chain)
        except OSError as error:
            raise RegistryError(f"{path} could not be written: {error.strerror or error}") from error
    return Exported(path, len(kept) + 1, path.stat().st_size, file_digest(path), holds)


def _card(version: Version, chain: Sequence[RegisteredVersion], sources: Mapping[str, Any]) -> Card:
    """Return the model card of a chain's last version; ``sources``: licence and citation by source."""
    member, name = chain[-1], f"{version.model} {version.number}"
    data = _data(chain, sources)
    return Card(name, member.stage, version.key, read_json(member.folder / EVALUATION), data)


def _data(chain: Sequence[RegisteredVersion], sources: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    named = [(one, one.key["data"]["source"]) for one in chain if one.is_annotator]
    said = {name: Declared(one.get("licence", ""), one.get("citation", "")) for name, one in sources.items()}
    return [
        data
        for one, source in named
        for data in training_data(one.folder, one.stage, source, said.get(source, Declared()))
    ]


def _files(
    store: Store, version: Version, fetch: Fetch
) -> tuple[dict[str, Path | bytes], list[RegisteredVersion]]:
    """Return the files of a version's bundle by name, and its chain, after checking all of them."""
    log, snapshot = AuditLog(), take_snapshot(store, ledger_of(store))
    reader = VersionReader(store, snapshot.ready, snapshot.records, log, fetch)
    member = reader.member(version)
    record = None if member is None else reader.record(member)
    if member is not None and record is not None:
        page = expected_page(member, record)
        check_shown(read_shown(store), member, record, page, log, snapshot.known)
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
            checked = (*MANIFESTS, *CARRIED, *CARRIED_LATELY, *corpus_tables(one.key).values())
            for name in checked:  # the files that its chain is checked with
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
    return files, chain


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
        sources=_data(chain, read_json(folder / SOURCES) if (folder / SOURCES).is_file() else {}),
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
