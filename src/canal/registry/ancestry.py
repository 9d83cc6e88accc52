"""Versions with their documents proven, and the chain of keys from one of them back to the beginning."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from canal.core.digests import file_digest
from canal.core.errors import RegistryError
from canal.core.files import read_json
from canal.registry.bundle import RECORD_FILE
from canal.registry.checks.member import ANCESTORS
from canal.registry.imported import IMPORTED
from canal.registry.key import KEY_FILE, Key, check_files, read_key
from canal.registry.store import READY, Store, Version


@dataclass(frozen=True)
class Proven:
    """A version whose key.json and record.json are the ones that were registered.

    Attributes
    ----------
    version : Version
    folder : Path
        Its artifacts.
    key, record : dict
    elsewhere : bool
        Whether it is not registered here, but came with an imported version that was learned on it: of its
        files only those that tell of its cells are there, and its ``version`` has number 0.
    """

    version: Version
    folder: Path
    key: Key
    record: dict[str, Any]
    elsewhere: bool = False

    @property
    def name(self) -> str:
        """Model and number, as people read them."""
        return f"{self.version.model} {'elsewhere' if self.elsewhere else self.version.number}"

    @property
    def imported(self) -> bool:
        """Whether these are published weights, which were not learned here."""
        return bool(self.key["stage"] == IMPORTED)

    @property
    def adopted(self) -> bool:
        """Whether it is the backbone of a project that began with published weights: nothing was trained."""
        return "cells" in self.key["request"] and self.key["parent"] is not None and not self.taught

    @property
    def taught(self) -> bool:
        """Whether it is an annotator: a stage was learned."""
        return "continual" in self.key["request"]

    @property
    def by_sums_alone(self) -> bool:
        """Whether a stage was learned by sums alone, by no network."""
        return self.taught and self.key["request"]["continual"].get("method") == "exact"

    @property
    def files(self) -> dict[str, str]:
        """Every file but the two manifests, with its digest; of one from elsewhere, those that came along."""
        files = {**self.record["files"], **self.key["files"]}
        if not self.elsewhere:
            return files
        return {name: one for name, one in files.items() if (self.folder / name).is_file()}

    def holds(self, name: str) -> bool:
        """Whether it has such a file here; one from elsewhere lacks most."""
        return name in self.files

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its bytes.

        Raises
        ------
        RegistryError
            If the version has no such file, or other bytes than registered.
        """
        if name not in self.files:
            raise RegistryError(f"{self.name} ({self.version.stage}) holds no {name}")
        check_files(self.folder, {name: self.files[name]})
        return self.folder / name


def proven(store: Store, version: Version) -> Proven:
    """Return a version with its documents.

    Raises
    ------
    RegistryError
        If key.json or record.json is missing or not the one that was registered.
    """
    folder = store.artifacts(version)
    for name, wanted in ((KEY_FILE, version.key), (RECORD_FILE, version.record)):
        path = folder / name
        found = file_digest(path) if path.is_file() else "none"
        if found != wanted:
            raise RegistryError(
                f"{version.model} {version.number}: {name} has sha256 {found[:12]}, registered was "
                f"{wanted[:12]}...; `canal audit` says what else does not hold"
            )
    return Proven(version, folder, read_key(folder), read_json(folder / RECORD_FILE))


def every_version(store: Store) -> list[Proven]:
    """Return all ready versions with their documents, and those elsewhere that imported ones came from.

    Backbones, then annotators, each oldest first; those from elsewhere last.
    """
    names = (store.names.backbone, store.names.model)
    found = [proven(store, version) for name in names for version in store.versions(name) if version.ready]
    known = {one.version.key: one for one in found}
    for one in found:
        chain = [one]
        while (parent := chain[-1].key["parent"]) is not None and parent not in known:
            if (older := _from_elsewhere(store, chain, parent)) is None:
                break
            chain.append(older)
        known |= {older.version.key: older for older in chain[1:]}
    return list(known.values())


def ancestry(store: Store, version: Version) -> list[Proven]:
    """Return a version and all it was learned on, itself first, the beginning of the lineage last.

    Every file of each of them is checked against its digest. What an imported version was learned on is
    looked for among the registered versions, then among what came with it.

    Raises
    ------
    RegistryError
        If a parent is neither registered nor came along, or a file holds other bytes than registered.
    """
    names = (store.names.backbone, store.names.model)
    known = {one.key: one for name in names for one in store.versions(name) if one.ready}
    chain = [proven(store, version)]
    while (parent := chain[-1].key["parent"]) is not None:
        older = proven(store, known[parent]) if parent in known else _from_elsewhere(store, chain, parent)
        if older is None:
            raise RegistryError(
                f"{chain[-1].name} was learned on a model with key {parent[:12]}... that is not registered: "
                "run `canal registry sync`, or bring the registry that holds it"
            )
        chain.append(older)
    for one in chain:
        check_files(one.folder, one.files)
    return chain


def _from_elsewhere(store: Store, chain: Sequence[Proven], key: str) -> Proven | None:
    """Return what came with a version of the chain of one that it was learned on, if it came."""
    folders = [one.folder / ANCESTORS / key for one in chain]
    folder = next((one for one in folders if (one / RECORD_FILE).is_file()), None)
    if folder is None or file_digest(folder / KEY_FILE) != key:
        return None
    about, record = read_key(folder), read_json(folder / RECORD_FILE)
    version = Version(
        model=store.names.model if "continual" in about["request"] else store.names.backbone,
        number=0,
        stage=about["stage"],
        branch=about["branch"],
        key=key,
        request=about["request_digest"],
        record=file_digest(folder / RECORD_FILE),
        parent="",
        status=READY,
        aliases=(),
        run_id=record["run"],
        source="",
        created=int(datetime.fromisoformat(record["time"]).timestamp() * 1000),
        commit=record["git_commit"],
        dirty=record["dirty"],
    )
    return Proven(version, folder, about, record, elsewhere=True)


def common_ancestor(first: Sequence[Proven], second: Sequence[Proven]) -> Proven | None:
    """Return the newest version that two ancestries share, or None."""
    theirs = {one.version.key for one in second}
    return next((one for one in first if one.version.key in theirs), None)
