"""Registered versions with their documents and files, and the chain of keys back to the backbone.

An audit reports every file that differs from its digest; `proven` and `ancestry` refuse such a version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.config.sections import BACKBONE
from canal.continual.cells import StoredCells, load_cells
from canal.core.digests import file_digest
from canal.core.errors import CanalError, RegistryError
from canal.core.files import read_json
from canal.data.split import read_split
from canal.registry.manifest.version_folder import (
    IMPORTED,
    KEY_FILE,
    RECORD_FILE,
    Key,
    Record,
    check_files,
    merged_with,
    parent_keys,
    read_key,
)
from canal.registry.store.database import Version, require_files
from canal.registry.store.store import Store

if TYPE_CHECKING:
    import pandas as pd


Rows = Mapping[str, tuple[str, str, str, str]]
"""By cell id: cell type, batch, content digest and set."""
LABELS, GENES = "model/labels.json", "model/genes.json"
WEIGHTS, TEACHER = "model/weights.safetensors", "teacher/weights.safetensors"
SPLIT, VERDICT = "split/cells.csv", "validation/verdict.json"
ANCESTORS = "ancestors"
"""Folder of an imported version with what is needed of the versions that it was learned on."""
ORIGINS = "origins"
"""Folder of an imported version with record, ledger entries and manifest as they came."""
CARRIED = (
    "model/config.json",
    "model/labels.json",
    "model/genes.json",
    "panel.json",
    "split/cells.csv",
    "split/cells.json",
    "validation/verdict.json",
    "imported.json",
)
"""What a chain is checked with: of an ancestor these travel, where it has them, not its weights and cells."""
CARRIED_LATELY = ("sums/missing.json",)
"""Files that bundles also hold since audits compare them; audits note their absence in older bundles."""
BANK, PROBE, PANEL = "bank/bank.h5ad", "probe/probe.h5ad", "panel.json"


class RegisteredVersion:
    """A version whose key.json is the one that was registered, or an ancestor that came with an imported one.

    Attributes
    ----------
    name : str
        Its name in findings.
    folder : Path
        Its artifacts.
    key : dict
        key.json.
    digest : str
        SHA-256 of key.json.
    elsewhere : bool
        Whether it is not registered here, but came along with an imported version: only some files are here.
    version : Version
        Of a version elsewhere: what its key says, with number 0.
    record : dict
        record.json, where it was read and has its registered digest; else empty.
    withheld : frozenset of str
        Files with cells that were left out of the bundle in which it came.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        key: Key,
        digest: str,
        version: Version | None,
        record: Record | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.key = key
        self.digest = digest
        self.elsewhere = version is None
        self.version = version or replace(
            Version.unregistered("", 0, digest, ""),
            stage=key["stage"],
            branch=key["branch"],
            request=key["request_digest"],
        )
        self.record = record or {}
        self.withheld: frozenset[str] = frozenset()
        self._found: dict[str, str | None] = {}

    @property
    def stage(self) -> str:
        """Name of the stage, ``backbone`` or ``imported``."""
        return str(self.key["stage"])

    @property
    def parent(self) -> str | None:
        """Digest of the parent's key.json."""
        return None if self.key["parent"] is None else str(self.key["parent"])

    @property
    def erased(self) -> bool:
        """Whether its files were erased, but for its two manifests."""
        return self.version.erased

    @property
    def merged_with(self) -> str | None:
        """Digest of the other parent's key.json, where it was merged with a version and not shared sums."""
        return merged_with(self.key)

    @property
    def parents(self) -> tuple[str, ...]:
        """Digests of the keys of its parents: none, one, or two where two lineages were merged."""
        return parent_keys(self.key)

    @property
    def is_annotator(self) -> bool:
        """Whether it is an annotator; a backbone is not."""
        return self.stage not in (BACKBONE, IMPORTED)

    @property
    def imported(self) -> bool:
        """Whether these are published weights, which were not learned here."""
        return self.stage == IMPORTED

    @property
    def adopted(self) -> bool:
        """Whether it is the backbone of a project that began with published weights: nothing was trained."""
        return "cells" in self.key["request"] and self.parent is not None and not self.is_annotator

    @property
    def trained(self) -> bool:
        """Whether a network was trained: not where a stage was learned by sums alone."""
        request = self.key["request"].get("continual")
        return not (isinstance(request, Mapping) and request.get("method") == "exact")

    @property
    def by_sums_alone(self) -> bool:
        """Whether a stage was learned by sums alone, by no network."""
        return self.is_annotator and not self.trained

    @property
    def files(self) -> dict[str, str]:
        """The files that key.json names, with their digests."""
        files: dict[str, str] = self.key["files"]
        return files

    @property
    def all_files(self) -> dict[str, str]:
        """Every file but the two manifests, with its digest; of a version elsewhere, what came along."""
        files = {**self.record["files"], **self.files}
        if not self.elsewhere:
            return files
        return {name: one for name, one in files.items() if (self.folder / name).is_file()}

    def holds(self, name: str) -> bool:
        """Whether it has this file here; a version elsewhere lacks most."""
        return name in self.all_files

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its bytes.

        Raises
        ------
        RegistryError
            If the version has no such file, or other bytes than registered.
        """
        if name not in self.all_files:
            raise RegistryError(f"{self.name} ({self.version.stage}) holds no {name}")
        check_files(self.folder, {name: self.all_files[name]})
        return self.folder / name

    def sum(self, name: str) -> str | None:
        """Return the SHA-256 of a file on disk; None where it is missing. Each file is read once."""
        if name not in self._found:
            path = self.folder / name
            self._found[name] = file_digest(path) if path.is_file() else None
        return self._found[name]

    def intact(self, name: str) -> bool:
        """Whether key.json names the file and it holds those bytes."""
        return name in self.files and self.sum(name) == self.files[name]

    def document(self, name: str) -> Any:
        """Return the JSON document in an intact file; None where it is not intact, or no JSON."""
        if not self.intact(name):
            return None
        try:
            return read_json(self.folder / name)
        except ValueError:
            return None

    @cached_property
    def labels(self) -> list[str] | None:
        """The labels, in order; None where they cannot be read."""
        return _names(self.document(LABELS))

    @cached_property
    def genes(self) -> list[str] | None:
        """The panel, in order; a backbone's is in panel.json."""
        if self.is_annotator:
            return _names(self.document(GENES))
        document = self.document(PANEL)
        return _names(document.get("genes")) if isinstance(document, dict) else None

    @property
    def extra_stages(self) -> tuple[str, ...]:
        """The stages beside the first that a backbone is pretrained on, by its request."""
        request = self.key["request"].get("backbone")
        extra = request.get("extra_stages", ()) if isinstance(request, Mapping) else ()
        return tuple(extra) if isinstance(extra, (list, tuple)) else ()

    @property
    def grow(self) -> int:
        """How many genes the stage may add, by its request."""
        panel = self.key["request"].get("panel")
        grow = panel.get("grow", 0) if isinstance(panel, Mapping) else 0
        return grow if isinstance(grow, int) else 0

    @cached_property
    def split(self) -> "pd.DataFrame | None":
        """The table of the stage's cells; None where it cannot be read."""
        if not self.intact(SPLIT):
            return None
        try:
            return read_split(self.folder / SPLIT)
        except (CanalError, ValueError):
            return None

    @cached_property
    def rows(self) -> Rows | None:
        """The split by cell id."""
        if self.split is None:
            return None
        columns = (self.split[name] for name in ("cell_type", "batch", "cell_digest", "set"))
        return dict(zip(self.split["cell_id"], zip(*columns, strict=True), strict=True))

    @cached_property
    def bank(self) -> StoredCells | None:
        """The example bank; None where it cannot be read."""
        return self._cells(BANK, ranked=True)

    @cached_property
    def probe(self) -> StoredCells | None:
        """The probe sets; None where they cannot be read."""
        return self._cells(PROBE, ranked=False)

    def _cells(self, name: str, ranked: bool) -> StoredCells | None:
        if self.genes is None or not self.intact(name):
            return None
        try:
            return load_cells(self.folder / name, self.genes, ranked)
        except CanalError:
            return None


def proven(store: Store, version: Version) -> RegisteredVersion:
    """Return a version with its documents.

    Raises
    ------
    RegistryError
        If key.json or record.json is missing or not the one that was registered.
    """
    folder = store.manifests(version)
    for name, wanted in ((KEY_FILE, version.key), (RECORD_FILE, version.record)):
        path = folder / name
        digest = file_digest(path) if path.is_file() else "none"
        if digest != wanted:
            raise RegistryError(
                f"{version.model} {version.number}: {name} has sha256 {digest[:12]}, registered was "
                f"{wanted[:12]}...; `canal audit` says what else does not hold"
            )
    name, record = f"{version.model} {version.number}", read_json(folder / RECORD_FILE)
    return RegisteredVersion(name, folder, read_key(folder), version.key, version, record)


def every_version(store: Store) -> list[RegisteredVersion]:
    """Return all ready versions with their documents, and the ancestors that came along with imported ones.

    Backbones, then annotators, each oldest first; ancestors that came along last.
    """
    versions = [
        proven(store, version) for name in store.models for version in store.versions(name) if version.ready
    ]
    known = {one.version.key: one for one in versions}
    for one in versions:
        came = [one]
        for younger in came:  # which grows
            for parent in younger.parents:
                if parent not in known and (older := _from_elsewhere(store, came, parent)) is not None:
                    came.append(older)
                    known[parent] = older
    return list(known.values())


def ancestry(store: Store, version: Version) -> list[RegisteredVersion]:
    """Return a version and its ancestors, the version first, the backbone or import last.

    Behind these come, for each version that two lineages were merged to, those of the other lineage.

    Every file of each of them is checked against its digest. The parent of an imported version is looked for
    among the registered versions, then among the ancestors that came along.

    Raises
    ------
    RegistryError
        If a parent is neither registered nor came along, or a file holds other bytes than registered.
    """
    known = {one.key: one for name in store.models for one in store.versions(name) if one.ready}
    chain: list[RegisteredVersion] = []
    lines: list[str | None] = [version.key]  # the keys that a line of ancestors begins with
    while lines:
        key = lines.pop(0)
        while key is not None and key not in {one.digest for one in chain}:
            one = proven(store, known[key]) if key in known else _from_elsewhere(store, chain, key)
            if one is None:
                raise RegistryError(
                    f"{chain[-1].name} was learned on a model with key {key[:12]}... that is not registered: "
                    "run `canal registry sync`, or bring the registry that holds it"
                )
            chain.append(one)
            lines.append(one.merged_with)
            key = one.parent
    for one in chain:
        require_files(one.version)
        check_files(one.folder, one.all_files)
    return chain


def _from_elsewhere(store: Store, chain: Sequence[RegisteredVersion], key: str) -> RegisteredVersion | None:
    """Return the ancestor with this key that came along with a version of the chain; None without one."""
    folders = [one.folder / ANCESTORS / key for one in chain]
    folder = next((one for one in folders if (one / RECORD_FILE).is_file()), None)
    if folder is None or file_digest(folder / KEY_FILE) != key:
        return None
    about, record = read_key(folder), read_json(folder / RECORD_FILE)
    model = store.names.model if "continual" in about["request"] else store.names.backbone
    ancestor = RegisteredVersion(f"{model} elsewhere", folder, about, key, None, record)
    ancestor.version = replace(
        ancestor.version,
        model=model,
        record=file_digest(folder / RECORD_FILE),
        run_id=record["run"],
        created=int(datetime.fromisoformat(record["time"]).timestamp() * 1000),
        commit=record["git_commit"],
        dirty=record["dirty"],
    )
    return ancestor


def summed_splits(
    one: RegisteredVersion, known: Mapping[str, RegisteredVersion]
) -> "dict[str, pd.DataFrame | None]":
    """Return for each stage whose sums a version holds the split of its cells; None where it is not here.

    ``known`` are the version's ancestors by the digest of their keys.
    """
    found: dict[str, pd.DataFrame | None] = {}
    at: RegisteredVersion | None = one
    while at is not None and at.is_annotator:
        found.setdefault(at.stage, at.split)
        if (merged := at.key.get("merged")) is not None:
            other = known.get(merged["other"])
            theirs = {} if other is None else summed_splits(other, known)
            for name, about in merged["stages"].items():
                found.setdefault(name, theirs.get(about["named"]))
        at = known.get(at.parent or "")
    return {stage: found.get(stage) for stage in one.key.get("sums", {})}


def _names(document: Any) -> list[str] | None:
    whole = isinstance(document, list) and all(isinstance(one, str) for one in document)
    return document if whole else None


def common_ancestor(
    first: Sequence[RegisteredVersion], second: Sequence[RegisteredVersion]
) -> RegisteredVersion | None:
    """Return the newest version that two ancestries share, or None."""
    theirs = {one.version.key for one in second}
    return next((one for one in first if one.version.key in theirs), None)
