"""Audit of the values and sums that a version stores, against the prepared cells where they still exist.

Sums must cover the right cells, add up, and solve to the stored weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canal.config.layout import Layout
from canal.config.sections import Memory
from canal.continual.cells import StoredCells
from canal.continual.exact_learner import uncalibrated
from canal.core.digests import file_digest
from canal.core.errors import CanalError, SumsError
from canal.data.prepared import PreparedCells
from canal.data.split import SUMMED
from canal.memory.answer import ExactAnnotator
from canal.memory.stage_sums import OWN_BATCHES, StageSums, by_type
from canal.memory.sums import Sums, add_up
from canal.registry.audit.version_files import AuditLog, examples
from canal.registry.provenance.registered import BANK, LABELS, PROBE, SPLIT, RegisteredVersion

EXACT = "model/exact/answer.json"
SUMS, MISSING = "sums", "missing.json"
_CHECK = "sums"


class CellFiles:
    """The prepared cells of a project's sources, where their digest is the one in a version's key."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._digests: dict[str, str | None] = {}
        self._opened: dict[str, PreparedCells] = {}
        self._read: dict[tuple[str, tuple[str, ...]], dict[str, np.ndarray]] = {}

    def of(self, member: RegisteredVersion) -> PreparedCells | None:
        """Return the prepared cells that a member learned from; None where they are gone or changed."""
        source, wanted = str(member.key["data"]["source"]), member.key["data"]["prepared_sha256"]
        path = self._layout.prepared(source) / "cells.h5ad"
        if source not in self._digests:
            self._digests[source] = file_digest(path) if path.is_file() else None
        if self._digests[source] != wanted:
            return None
        return self._opened.setdefault(source, PreparedCells(path))

    def expression(self, prepared: PreparedCells, ids: Sequence[str], genes: Sequence[str]) -> np.ndarray:
        """Return the expression of cells; each cell is read once, however many versions store it."""
        known = self._read.setdefault((str(prepared.path), tuple(genes)), {})
        if new := [cell for cell in dict.fromkeys(ids) if cell not in known]:
            known.update(zip(new, prepared.expression(new, genes), strict=True))
        return np.stack([known[cell] for cell in ids]) if ids else prepared.expression(ids, genes)


def check_values(chain: Sequence[RegisteredVersion], files: CellFiles, log: AuditLog) -> None:
    """Check the labels, batches, digests and expression that the newest member of a chain stores."""
    newest = chain[-1]
    if not newest.is_annotator:
        return
    stages = {member.stage: member for member in chain if member.is_annotator}
    try:
        _check_split(newest, files.of(newest), log)
        for name, stored in ((BANK, newest.bank), (PROBE, newest.probe)):
            if stored is not None:
                _check_stored(newest, name, stored, stages, files, log)
    except CanalError as error:
        log.finding(newest.name, "values", f"the prepared cells cannot be read: {error}")


def _check_split(newest: RegisteredVersion, prepared: PreparedCells | None, log: AuditLog) -> None:
    if prepared is None:
        what = "the cells it was learned from are not in prepared/: its split and values were not compared"
        log.note(newest.name, "values", what)
        return
    if newest.split is None:
        return
    columns = ["cell_type", "batch", "cell_digest"]
    split = newest.split.set_index("cell_id")[columns]
    actual = prepared.obs[columns].astype(str).reindex(split.index)
    wrong = [str(cell) for cell in split.index[(split != actual).any(axis=1)]]
    if wrong:
        what = (
            f"{SPLIT}: {len(wrong)} cells are not in the prepared cells as they stand here: {examples(wrong)}"
        )
        log.finding(newest.name, "values", what)


def _check_stored(
    newest: RegisteredVersion,
    name: str,
    stored: StoredCells,
    stages: dict[str, RegisteredVersion],
    files: CellFiles,
    log: AuditLog,
) -> None:
    cells = stored.cells
    for stage in cells.stage_names:
        prepared = files.of(stages[stage]) if stage in stages else None
        if prepared is None:
            continue
        part = cells.of_stage(stage)
        known = set(prepared.obs.index)
        rows = [row for row, cell in enumerate(part.cell_ids) if cell in known]
        ids = [part.cell_ids[row] for row in rows]
        # Cells stored before a later stage added genes hold zeros for these.
        own = stages[stage].genes or stored.genes
        actual = np.pad(files.expression(prepared, ids, own), ((0, 0), (0, len(stored.genes) - len(own))))
        same = np.all(actual == part.expression[rows], axis=1)
        if wrong := [cell for cell, right in zip(ids, same, strict=True) if not right]:
            what = f"{name}: {len(wrong)} cells have other values than the data of {stage}: {examples(wrong)}"
            log.finding(newest.name, "values", what)


def check_sums(chain: Sequence[RegisteredVersion], log: AuditLog) -> None:
    """Check the sums of the newest member of a chain, oldest first: files, digests, cells and solution."""
    newest = chain[-1]
    if not newest.is_annotator or not newest.key.get("sums"):
        if kept := sorted(name for name in newest.files if name.startswith(("sums/", "model/exact/"))):
            what = f"key.json names no sums, but the version holds {examples(kept)}"
            log.finding(newest.name, _CHECK, what)
        return
    if broken := [name for name in newest.files if name.startswith("sums/") and not newest.intact(name)]:
        log.note(newest.name, _CHECK, f"not checked further: {examples(sorted(broken))} is not intact")
        return
    try:
        sums = _read(newest)
        _check_digests(newest, sums, log)
        _check_basis(chain, sums, log)
        for member in chain:
            _check_cells(newest, member, sums, log)
        _check_handed_on(chain, sums, log)
        if newest.intact(OWN_BATCHES) and newest.stage in sums.stages:
            whole = by_type(Sums.load(newest.folder / OWN_BATCHES))
            if whole.digest != sums.stages[newest.stage].digest:
                what = f"{OWN_BATCHES} does not add up to the sums of {newest.stage}"
                log.finding(newest.name, _CHECK, what)
        _check_solution(newest, sums, log)
    except CanalError as error:
        log.finding(newest.name, _CHECK, str(error))


def recompute(chain: Sequence[RegisteredVersion], files: CellFiles, log: AuditLog) -> None:
    """Recompute the sums of the newest member from the prepared cells, where they still exist.

    Sums of ancestors whose own versions have none are recomputed too: they were made with the newest member.
    """
    newest = chain[-1]
    recorded = newest.key.get("sums", {}) if newest.is_annotator else {}
    for member in chain:
        own = member.is_annotator and member.stage in recorded
        if own and (member is newest or member.stage not in member.key.get("sums", {})):
            _recompute(newest, member, recorded[member.stage], files.of(member), log)


def _recompute(
    newest: RegisteredVersion, member: RegisteredVersion, recorded: str, prepared: Any, log: AuditLog
) -> None:
    stage = member.stage
    if prepared is None or member.split is None:
        log.note(newest.name, _CHECK, f"{stage}: cells gone: digest only")
        return
    try:
        sums = _read(newest)
        split = member.split[member.split["set"].isin(SUMMED)]
        types = dict(zip(split["cell_id"], split["cell_type"], strict=True))
        chunks = prepared.chunks(list(types), sums.basis.genes)
        cells = ((expression, [types[one] for one in ids]) for ids, expression in chunks)
        digest = add_up(sums.basis, cells).digest
    except CanalError as error:
        log.finding(newest.name, _CHECK, f"{stage} cannot be added up again: {error}")
        return
    if digest != recorded:
        what = f"{stage}: the prepared cells add up to {digest[:12]}..., not {recorded[:12]}..."
        log.finding(newest.name, _CHECK, what)
        return
    lacking = set(prepared.missing(sums.basis.genes))
    if lacking != set(sums.missing[stage]):
        what = f"{MISSING} names other genes than the prepared cells of {stage} lack"
        log.finding(newest.name, _CHECK, f"{what}: {examples(sorted(lacking ^ set(sums.missing[stage])))}")
        return
    log.note(newest.name, _CHECK, f"{stage}: recomputed from {len(types):,} cells, the same")


def _read(member: RegisteredVersion) -> StageSums:
    sums = StageSums.load(member.folder, list(member.key["sums"]))
    if sums is None:
        raise SumsError("key.json names sums, but the version holds none")
    return sums


def _check_digests(member: RegisteredVersion, sums: StageSums, log: AuditLog) -> None:
    recorded, actual = member.key["sums"], {stage: one.digest for stage, one in sums.stages.items()}
    for stage in sorted(recorded.keys() | actual.keys()):
        if recorded.get(stage) != actual.get(stage):
            what = f"the sums of {stage} have digest {actual.get(stage)}, key.json says {recorded.get(stage)}"
            log.finding(member.name, _CHECK, what)
    if member.key["basis"]["digest"] != sums.basis.digest:
        log.finding(member.name, _CHECK, "the basis is not the one that key.json names")
    if strange := [stage for stage, one in sums.stages.items() if one.basis != sums.basis.digest]:
        log.finding(member.name, _CHECK, f"the sums of {examples(strange)} are of another basis")
    log.counts["sums"] += len(actual)


def _check_basis(chain: Sequence[RegisteredVersion], sums: StageSums, log: AuditLog) -> None:
    """Check which cells chose the basis, and that the lineage keeps one basis."""
    newest, recorded = chain[-1], chain[-1].key["basis"]
    if recorded["seen"] != sums.basis.seen:
        log.finding(newest.name, _CHECK, "basis.json names other cells that chose it than key.json")
    # A basis was chosen before cells left: by the split that the stage was learned by.
    splits = {one.stage: one.key.get("unlearned", one.key)["split"] for one in chain if one.is_annotator}
    requested = [member.key["request"].get("memory") for member in chain]
    adopted = next((str(one["basis"]) for one in requested if isinstance(one, dict) and "basis" in one), None)
    if adopted is not None and adopted != recorded["digest"]:
        log.finding(newest.name, _CHECK, "the basis is not the one that was to be adopted")
    if adopted is None and (
        strange := [stage for stage, split in recorded["seen"].items() if splits.get(stage) != split]
    ):
        what = f"the basis is said to be chosen on cells of {examples(strange)}, which this lineage has not"
        log.finding(newest.name, _CHECK, what)
    parent = chain[-2] if len(chain) > 1 else newest
    before = parent.key.get("basis") if parent.is_annotator else None
    if before is not None and before != recorded:
        log.finding(newest.name, _CHECK, f"the basis is not that of {parent.name}: a lineage keeps one")


def _check_cells(
    newest: RegisteredVersion, member: RegisteredVersion, sums: StageSums, log: AuditLog
) -> None:
    """Check that the sums hold as many cells of each type as the split has in training and reserve."""
    own = sums.stages.get(member.stage)
    if not member.is_annotator or own is None or member.rows is None:
        return
    wanted = Counter(cell_type for cell_type, _, _, chosen in member.rows.values() if chosen in SUMMED)
    actual = dict(zip(own.types, own.counts.tolist(), strict=True))
    if wrong := [name for name in sorted({*wanted, *actual}) if wanted.get(name, 0) != actual.get(name, 0)]:
        shown = examples([f"{name}: {actual.get(name, 0)} of {wanted.get(name, 0)}" for name in wrong])
        whose = SPLIT if member is newest else f"{SPLIT} of {member.name}"
        log.finding(newest.name, _CHECK, f"sums of other cells than {whose} lets train: {shown}")


def _check_handed_on(chain: Sequence[RegisteredVersion], sums: StageSums, log: AuditLog) -> None:
    """Check that sums of older stages are those of the stages' own versions."""
    newest = chain[-1]
    for member in chain[:-1]:
        kept = member.key.get("sums", {}) if member.is_annotator else {}
        whole = member is chain[-2]
        for stage, recorded in kept.items() if whole else [(member.stage, kept.get(member.stage))]:
            actual = sums.stages.get(stage)
            if recorded is not None and (actual is None or actual.digest != recorded):
                log.finding(newest.name, _CHECK, f"the sums of {stage} are not those of {member.name}")
    handed = chain[-2].document(f"{SUMS}/{MISSING}") if len(chain) > 1 and chain[-2].is_annotator else None
    for stage, genes in handed.items() if isinstance(handed, dict) else ():
        if list(sums.missing.get(stage, ())) != genes:
            what = f"{MISSING} says of {stage} something else than that of {chain[-2].name}"
            log.finding(newest.name, _CHECK, what)
    known = {member.stage for member in chain if member.is_annotator}
    known |= {
        name for member in chain for name in (member.key["request"].get("merged") or {}).get("stages", ())
    }
    if strange := sorted(set(sums.stages) - known):
        log.finding(newest.name, _CHECK, f"sums of {examples(strange)}, on which it was not learned")


def _check_solution(member: RegisteredVersion, sums: StageSums, log: AuditLog) -> None:
    """Check that solving the sums again gives the stored weights, within one unit on another machine."""
    stored = ExactAnnotator.load(member.folder / Path(EXACT).parent)
    settings = member.key["request"].get("memory") or member.key.get("memory") or {}
    memory = Memory.model_validate({name: value for name, value in settings.items() if name != "basis"})
    again = uncalibrated(sums, stored.labels, stored.genes, memory)
    if member.labels is not None and list(stored.labels) != member.labels:
        log.finding(member.name, _CHECK, f"the sums answer with other types than {LABELS}")
    if not stored.classifier.like(again.classifier):
        log.finding(member.name, _CHECK, "the sums, solved again, give other centroids")
    units = _units_apart(stored, again)
    if units is None or units > 1:
        shown = "of another shape" if units is None else f"up to {units:,} units apart"
        log.finding(
            member.name, _CHECK, f"the sums, solved again, give other weights than are stored: {shown}"
        )
    elif units:
        log.note(member.name, _CHECK, "solved again, weights differ by one unit: another machine made them")
    log.counts["solutions"] += int(np.asarray(units is not None))


def _units_apart(stored: ExactAnnotator, again: ExactAnnotator) -> int | None:
    """Return the largest difference of whole-number weights, in units; None where shapes differ."""
    apart = 0
    for name in ("own", "within", "new"):
        one, other = getattr(stored.classifier, name), getattr(again.classifier, name)
        if one is None or other is None:
            if one is not other:
                return None
            continue
        if one.weights.shape != other.weights.shape or one.places != other.places:
            return None
        for left, right in ((one.weights, other.weights), (one.bias, other.bias)):
            apart = max(apart, int(np.abs(left - right).max()))
    return apart
