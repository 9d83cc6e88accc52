"""`canal import`: the version in a parcel becomes one of this registry, after everything in it is proven."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import RegistryError
from canal.registry.bundle import RECORD_FILE, read_record
from canal.registry.checks.member import ANCESTORS, ORIGINS, Member
from canal.registry.key import KEY_FILE
from canal.registry.ledger import Sign
from canal.registry.moves import moving
from canal.registry.parcel.manifest import LEDGER, MANIFEST, VERSION, Manifest
from canal.registry.parcel.proof import prove
from canal.registry.parcel.unpacking import unpacked
from canal.registry.publish import Publication, publish, published
from canal.registry.registration import enter
from canal.registry.store import TAG, Store, Version
from canal.registry.sync import ready_version
from canal.registry.tracking import parent_run

_FACTS = ("host", "platform", "cpu", "user", "time", "git_commit", "dirty")
"""What the record goes on saying of how the version came to be."""


@dataclass(frozen=True)
class ImportedVersion:
    """A version that came in a parcel; ``made`` says whether it was not there before."""

    version: Version
    made: bool
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        one = self.version
        named = {"model": one.model, "version": one.number, "stage": one.stage, "key": one.key}
        return {**named, "made": self.made, "notes": list(self.notes)}


def import_parcel(store: Store, path: Path, sign: Sign | None = None) -> ImportedVersion:
    """Register the version in a parcel, unless it is registered; nothing is written before all is proven.

    ``sign`` signs the entry that the ledger gets.

    What could run is not taken from the file: the pyfunc is this canal's own, and HTML pages stay behind. The
    version keeps its ancestors' keys, so that it can be audited where they are not registered.

    Raises
    ------
    AuditError
        If the file is not what `canal export` writes, or does not prove what it claims.
    RegistryError
        If a disk is full, or the store refuses.
    """
    try:
        with unpacked(path) as (folder, manifest):
            chain = prove(folder, manifest)
            version, made = _registered(store, folder, manifest, chain, sign)
    except OSError as error:
        raise RegistryError(
            f"{path} could not be registered: {error}; nothing half-made can be seen, import it again"
        ) from error
    return ImportedVersion(version, made, tuple(_notes(store, version, chain)) if made else ())


def _registered(
    store: Store, folder: Path, manifest: Manifest, chain: Sequence[Member], sign: Sign | None
) -> tuple[Version, bool]:
    """Return the version of a proven parcel, and whether it was made now."""
    with moving(store) as ledger:
        version = published(store, store.names.model, manifest.key)
        made = version is None
        if version is None:
            version = publish(store, _publication(store, folder, manifest, chain))
        enter(store, ledger, version, sign, by="canal import")
    return store.version(str(version.number)), made


def _publication(store: Store, folder: Path, manifest: Manifest, chain: Sequence[Member]) -> Publication:
    """Return what becomes the version: the model, its measures and figures, and what came with it."""
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


def _notes(store: Store, version: Version, chain: Sequence[Member]) -> Iterator[str]:
    """Yield what a person should know of a version that came from elsewhere."""
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
