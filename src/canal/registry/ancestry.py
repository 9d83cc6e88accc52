"""Versions with their documents proven, and the chain of keys from one of them back to the beginning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canal.digests import file_digest
from canal.errors import RegistryError
from canal.files import read_json
from canal.registry.bundle import RECORD_FILE
from canal.registry.imported import IMPORTED
from canal.registry.key import KEY_FILE, Key, check_files, read_key
from canal.registry.store import Store, Version


@dataclass(frozen=True)
class Proven:
    """A version whose key.json and record.json are the ones that were registered.

    Attributes
    ----------
    version : Version
    folder : Path
        Its artifacts.
    key, record : dict
    """

    version: Version
    folder: Path
    key: Key
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Model and number, as people read them."""
        return f"{self.version.model} {self.version.number}"

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
    def files(self) -> dict[str, str]:
        """Every file but the two manifests, with its digest."""
        return {**self.record["files"], **self.key["files"]}

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
    """Return all ready versions with their documents: backbones, then annotators, each oldest first."""
    names = (store.names.backbone, store.names.model)
    return [proven(store, version) for name in names for version in store.versions(name) if version.ready]


def ancestry(store: Store, version: Version) -> list[Proven]:
    """Return a version and all it was learned on, itself first, the beginning of the lineage last.

    Every file of each of them is checked against its digest.

    Raises
    ------
    RegistryError
        If a parent is not registered, or a file holds other bytes than registered.
    """
    names = (store.names.backbone, store.names.model)
    known = {one.key: one for name in names for one in store.versions(name) if one.ready}
    chain = [proven(store, version)]
    while (parent := chain[-1].key["parent"]) is not None:
        if parent not in known:
            raise RegistryError(
                f"{chain[-1].name} was learned on a model with key {parent[:12]}... that is not registered: "
                "run `canal registry sync`, or bring the registry that holds it"
            )
        chain.append(proven(store, known[parent]))
    for one in chain:
        check_files(one.folder, one.files)
    return chain


def common_ancestor(first: Sequence[Proven], second: Sequence[Proven]) -> Proven | None:
    """Return the newest version that two ancestries share, or None."""
    theirs = {one.version.key for one in second}
    return next((one for one in first if one.version.key in theirs), None)
