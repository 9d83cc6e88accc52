"""Audit of lineages: the chain of keys from a version to its backbone, and labels, panel and teacher of each.

Each version is opened once, and its manifests are checked then. The gate's verdict of the newest version must
have passed, for the very bytes that were learned from.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from canal.config.sections import BACKBONE
from canal.core.digests import file_digest, json_digest
from canal.core.errors import CanalError
from canal.core.files import unreadable
from canal.quality.verdict import read_verdict, require_passing
from canal.registry.audit.version_files import (
    AuditLog,
    check_key,
    check_record,
    examples,
    read_manifest_key,
    version_name,
)
from canal.registry.ledger.ledger import Entry
from canal.registry.manifest.version_folder import (
    IMPORT_KEY,
    IMPORTED,
    KEY_FILE,
    Record,
    corpus_tables,
    read_key,
    schema_complaints,
)
from canal.registry.provenance.registered import (
    ANCESTORS,
    GENES,
    LABELS,
    PANEL,
    SPLIT,
    TEACHER,
    VERDICT,
    WEIGHTS,
    RegisteredVersion,
)
from canal.registry.store.database import Version
from canal.registry.store.store import Fetch, Store


class VersionReader:
    """Opens the versions of both registered models, once each, and checks their manifests.

    ``fetch`` returns the folder of a version's artifacts (`canal.registry.store.store.fresh_copies`): of a
    remote store, the bytes that it holds now, not an earlier copy.
    """

    def __init__(
        self,
        store: Store,
        versions: Sequence[Version],
        entries: Mapping[tuple[str, int], Entry],
        log: AuditLog,
        fetch: Fetch,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._log = log
        self._entries = entries
        self._by_key: dict[str, Version] = {}
        for version in versions:
            self._by_key.setdefault(version.key, version)
        self._opened: dict[tuple[str, int], RegisteredVersion | None] = {}

    def member(self, version: Version) -> RegisteredVersion | None:
        """Return a version with a valid key.json; None, and findings, otherwise."""
        place = (version.model, version.number)
        if place not in self._opened:
            self._opened[place] = self._open(version)
        return self._opened[place]

    def record(self, member: RegisteredVersion) -> Record | None:
        """Check record.json and the files that it covers; return it if it is valid."""
        if member.elsewhere:
            return None
        version = member.version
        return check_record(member, version, self._entry(version), self._log)

    def chain(
        self, member: RegisteredVersion, with_: RegisteredVersion | None = None
    ) -> list[RegisteredVersion]:
        """Return a member's ancestors and the member, oldest first; a missing ancestor is a finding.

        A parent is looked for among the registered versions, then among the ancestors that came along with an
        imported version: that of ``with_``, where the member itself came along.
        """
        chain, came_with = [member], with_ or member
        while (parent := chain[0].parent) is not None:
            version = self._by_key.get(parent)
            if version is None:
                older = ancestor(came_with.folder / ANCESTORS / parent, parent, came_with.name, self._log)
            else:
                older = self.member(version)
            if version is None and older is None:
                what = f"key.json names the parent {parent[:12]}..., which is not registered"
                self._log.finding(chain[0].name, "chain", what)
            if older is None or older in chain:
                break
            came_with = came_with if older.elsewhere else older
            chain.insert(0, older)
        return chain

    def others(self, chain: Sequence[RegisteredVersion]) -> list[RegisteredVersion]:
        """Return the versions of the other lineages that were merged into members of a chain."""
        found: list[RegisteredVersion] = []
        places = list(chain)
        for member in places:  # which grows: the other lineage may have been merged in turn
            key = member.merged_with
            if key is None or key in {one.digest for one in found}:
                continue
            version = self._by_key.get(key)
            other = (
                ancestor(chain[-1].folder / ANCESTORS / key, key, chain[-1].name, self._log)
                if version is None
                else self.member(version)
            )
            for one in [] if other is None else self.chain(other, chain[-1] if other.elsewhere else None):
                found.append(one)
                places.append(one)
        return found

    def with_key(self, key: str) -> RegisteredVersion | None:
        """Return the version with a key; None where it is not registered here, or its key is invalid."""
        version = self._by_key.get(key)
        return None if version is None else self.member(version)

    def _open(self, version: Version) -> RegisteredVersion | None:
        name = version_name(self._store, version.model, version.number)
        try:
            folder = self._fetch(version)
        except CanalError as error:
            self._log.finding(name, "files", f"its artifacts are not there: {error}")
            return None
        if closed := unreadable(folder):
            names = examples([path.relative_to(folder).as_posix() for path in closed])
            what = f"this user may not read {names} in {folder}: whose they are can grant it (chmod -R a+rX)"
            self._log.finding(name, "files", what)
            return None
        key = read_manifest_key(name, folder, version, self._entry(version), self._log)
        if key is None:
            self._log.note(name, "files", "its other files were not checked: key.json does not hold")
            return None
        member = RegisteredVersion(name, folder, key, file_digest(folder / KEY_FILE), version)
        check_key(member, self._log)
        return member

    def _entry(self, version: Version) -> Entry | None:
        return self._entries.get((version.model, version.number))


def ancestor(folder: Path, digest: str, of: str, log: AuditLog) -> RegisteredVersion | None:
    """Return an ancestor that came along with an imported version, if its key.json is valid."""
    if not (folder / KEY_FILE).is_file():
        return None
    name = f"{of}, ancestor {digest[:12]}"
    if file_digest(folder / KEY_FILE) != digest:
        log.finding(
            name, "files", f"{ANCESTORS}/{digest}/{KEY_FILE} is not the key that its folder is called after"
        )
        return None
    try:
        key = read_key(folder)
    except CanalError as error:
        log.finding(name, "schema", str(error))
        return None
    if broken := schema_complaints("key", key):
        log.finding(name, "schema", f"{KEY_FILE} breaks its schema: {broken[0]}")
        return None
    return RegisteredVersion(name, folder, key, digest, None)


def check_chain(chain: Sequence[RegisteredVersion], log: AuditLog) -> None:
    """Check each member of a chain, oldest first, against its parent."""
    backbone = next((member for member in chain if member.stage == BACKBONE), None)
    for parent, child in pairwise(chain):
        if parent.stage == IMPORTED:
            _check_adopted(parent, child, log)
            continue
        _check_panel(parent, child, log)
        if not parent.is_annotator:
            if child.key["teacher"] is not None:
                what = "a first stage has no teacher, but key.json names one"
                log.finding(child.name, "teacher", what)
            if parent.key["split"] != child.key["split"] and parent.parent is None:
                _note_other_split(parent, child, log)
            continue
        _check_labels(parent, child, log)
        if child.trained and "merged" not in child.key:
            _check_teacher(parent, child, log)
        # The backbone may have been pretrained on cells of a later stage, too.
        if backbone is not None and child.stage in backbone.extra_stages:
            seen = backbone.key.get("extra_stages", {}).get(child.stage, {})
            if seen.get("split") != child.key["split"]:
                _note_other_split(backbone, child, log)
    first = chain[0]
    if first.parent is None and first.is_annotator:
        log.finding(first.name, "chain", "key.json names no parent, but a learned stage has one")


def _check_adopted(imported: RegisteredVersion, backbone: RegisteredVersion, log: AuditLog) -> None:
    """Check that a backbone holds the bytes of the import that it names as its parent."""
    if backbone.is_annotator:
        log.finding(
            backbone.name, "chain", f"a stage begins on a backbone, but its parent is {imported.name}"
        )
        return
    expected = {f"model/{name}": digest for name, digest in imported.files.items()}
    expected[IMPORT_KEY] = imported.digest
    for name, digest in sorted(expected.items()):
        if backbone.files.get(name) != digest:
            log.finding(backbone.name, "chain", f"{name} is not what {imported.name} holds")


def _check_panel(parent: RegisteredVersion, child: RegisteredVersion, log: AuditLog) -> None:
    """Check that a panel is the parent's, or begins with it and has no more genes than were asked for."""
    if parent.key["panel"] != child.key["panel"]:
        what = f"key.json names another panel than that of {parent.name}: a lineage keeps one"
        log.finding(child.name, "panel", what)
    elif parent.genes is not None and child.genes is not None:
        known, genes, limit = parent.genes, child.genes, child.grow if parent.is_annotator else 0
        added = len(genes) - len(known)
        if genes[: len(known)] != known or (added and not limit):
            place = GENES if parent.is_annotator else PANEL
            log.finding(child.name, "panel", f"{GENES} differs from {place} of {parent.name}")
        elif added > limit or len(set(genes)) < len(genes):
            what = f"{GENES} has {added} more than that of {parent.name}, asked for were at most {limit} new"
            log.finding(child.name, "panel", f"{what} ones")


def _note_other_split(backbone: RegisteredVersion, stage: RegisteredVersion, log: AuditLog) -> None:
    log.note(
        stage.name,
        "cells",
        f"{backbone.name} was pretrained on another split than {SPLIT}: whether it saw test cells cannot "
        "be told from what it stores",
    )


def _check_labels(parent: RegisteredVersion, child: RegisteredVersion, log: AuditLog) -> None:
    if parent.labels is None or child.labels is None:
        return
    unlearned = "unlearned" in child.key  # types without cells leave with them
    kept = [label for label in parent.labels if label in child.labels] if unlearned else parent.labels
    if child.labels[: len(kept)] != kept:
        lost = [label for label in parent.labels if label not in child.labels]
        detail = f"it lacks {examples(lost)}" if lost else "their order differs"
        what = f"{LABELS} does not begin with the {len(parent.labels)} labels of {parent.name}: {detail}"
        log.finding(child.name, "labels", what)


def _check_teacher(parent: RegisteredVersion, child: RegisteredVersion, log: AuditLog) -> None:
    """Check that a teacher is the parent's model: configuration, labels and every tensor."""
    for name in ("config.json", "labels.json", "genes.json"):
        ours, theirs = f"teacher/{name}", f"model/{name}"
        if child.files.get(ours) != parent.files.get(theirs):
            log.finding(child.name, "teacher", f"{ours} is not {theirs} of {parent.name}")
    if child.key["teacher"] is None:
        log.finding(child.name, "teacher", f"key.json names no teacher, though the parent is {parent.name}")
    elif child.files.get(TEACHER) != parent.files.get(WEIGHTS):
        what = f"{TEACHER} is not {WEIGHTS} of {parent.name}"
        if parent.intact(WEIGHTS) and child.intact(TEACHER):
            differing = differing_tensors(parent.folder / WEIGHTS, child.folder / TEACHER)
            same = "the tensors are the same, the bytes of the file are not"
            what += f": {len(differing)} tensors differ, {examples(differing)}" if differing else f": {same}"
        log.finding(child.name, "teacher", what)


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Return the names of the tensors that are not the same bits in two safetensors files, sorted.

    Tensors are read one at a time, each with its type and shape.
    """
    with safe_open(one, framework="numpy") as first, safe_open(other, framework="numpy") as second:
        names, theirs = set(first.keys()), set(second.keys())
        shared = (
            name for name in names & theirs if not _same(first.get_tensor(name), second.get_tensor(name))
        )
        return sorted({*(names ^ theirs), *shared})


def _same(one: object, other: object) -> bool:
    left, right = np.asarray(one), np.asarray(other)
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


def check_unlearned(chain: Sequence[RegisteredVersion], reader: VersionReader, log: AuditLog) -> None:
    """Check that the splits of a chain are those of the versions before, without just the withdrawn cells."""
    member = chain[-1]
    left = member.key.get("unlearned")
    if left is None or not member.is_annotator:
        return
    gone: dict[str, str] = {}
    for one in chain:
        same = one.key.get("unlearned", {}).get("cells") == left["cells"]
        if not same or not one.is_annotator or one.rows is None:
            continue
        before = reader.with_key(one.key["unlearned"]["version"])
        if before is not None and before.erased:
            log.note(member.name, "unlearned", f"which cells left cannot be told: {before.name} was erased")
            return
        if before is None or before.rows is None:
            what = f"the version with key {one.key['unlearned']['version'][:12]}... cannot be read here"
            log.note(member.name, "unlearned", f"which cells left cannot be told: {what}")
            return
        if other := [cell for cell, row in one.rows.items() if before.rows.get(cell) != row]:
            what = f"{SPLIT} has rows that {before.name} has not: {examples(other)}"
            log.finding(one.name, "unlearned", what)
        gone |= {cell: before.rows[cell][2] for cell in before.rows.keys() - one.rows.keys()}
    for key in left.get("removed", {}).values():
        removed = reader.with_key(key)
        gone |= {cell: row[2] for cell, row in ((removed and removed.rows) or {}).items()}
    if json_digest(sorted(set(gone.values()))) != left["cells"] or len(gone) != left["n_cells"]:
        what = f"key.json says that {left['n_cells']:,} cells left; the splits lack {len(gone):,}, or others"
        log.finding(member.name, "unlearned", what)


def check_verdict(chain: Sequence[RegisteredVersion], log: AuditLog) -> None:
    """Check validation/verdict.json of the newest member of a chain, if it is a stage, against its key.

    The gate judges the genes that the lineage began with, without those that stages added.
    """
    member = chain[-1]
    for source, about in member.key.get("unlabelled", {}).items():
        _check_corpus_verdict(member, source, about, log)
    if not member.is_annotator or not member.intact(VERDICT):
        return
    try:
        verdict = read_verdict(member.folder / VERDICT)
    except CanalError as error:
        log.finding(member.name, "verdict", f"{VERDICT}: {error}")
        return
    data, left = member.key["data"], member.key.get("unlearned")
    pairs = {
        "stage": (verdict.stage, member.stage),
        "source": (verdict.source, data["source"]),
        "source file": (verdict.source_sha256, data["source_sha256"]),
        "prepared cells": (verdict.prepared_sha256, data["prepared_sha256"]),
        "split": (verdict.split_sha256, left["split"] if left else member.files.get(SPLIT)),
    }
    genes = next((one.genes for one in chain if one.genes is not None), None)
    if genes is not None:
        pairs["panel"] = (verdict.profile.panel_digest, json_digest(genes))
    for name, (judged, learned) in pairs.items():
        if judged != learned:
            what = f"{VERDICT} is about {name} {_short(judged)}, learned was {_short(learned)}"
            log.finding(member.name, "verdict", what)
    for rule in verdict.failures("error"):
        what = f"{VERDICT}: the gate did not pass, {rule.rule}: expected {rule.expected}; found {rule.found}"
        log.finding(member.name, "verdict", what)


def _check_corpus_verdict(
    backbone: RegisteredVersion, source: str, about: Mapping[str, Any], log: AuditLog
) -> None:
    """Check that an unlabelled source passed the gate with the cells that pre-trained a backbone."""
    place, table = f"corpus/{source}/verdict.json", corpus_tables(backbone.key)[source]
    for name, digest in ((place, about["verdict"]), (table, about["cells"])):
        if backbone.files.get(name) != digest:
            log.finding(backbone.name, "verdict", f"{name} is not the one that key.json names for {source}")
    if not backbone.intact(place):
        return
    try:
        require_passing(backbone.folder / place, about["prepared_sha256"], source)
    except CanalError as error:
        log.finding(backbone.name, "verdict", f"{place}: {error}")


def _short(text: str | None) -> str:
    return "none" if text is None else text if len(text) <= 40 else f"{text[:12]}..."
